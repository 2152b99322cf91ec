"""What XLA makes of a step and of a tile for a GPU that need not be there: kernels and bytes.

    python3.12 -m venv .venv-gpu
    .venv-gpu/bin/pip install -r benchmarks/gpu_requirements.txt -e .
    PATH=$PWD/.venv-gpu/bin:$PATH python -m benchmarks gpu_compile

XLA's compiler for GPUs runs without one; only the algorithms of cuDNN are not chosen. `gigabytes`
are the operands and results of all kernels, `temporary` what they need besides arguments; `copies`
those of more than a megabyte; `relu_in_convolution` convolutions of which bias and ReLU are a part;
`layouts` those that convolutions ask for. `--cases` are KIND:CHIP:FORMAT:BATCH:WIDTH, the kind
`step` or `tile`.
"""

import os
import re
from collections import Counter

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.side_by_side import rounded
from benchmarks.training_step import Case
from unet_jax.augmentation import Crop
from unet_jax.network import init_params
from unet_jax.optimiser import sgd
from unet_jax.overlap_tile import tile_probabilities
from unet_jax.train_step import create_train_state, make_train_step

_CASES = (
    "step:H100:bfloat16:1:64",
    "step:H100:bfloat16:8:64",
    "step:H100:default:1:64",
    "step:H100:default:8:64",
    "step:H200:bfloat16:1:64",
    "tile:H100:bfloat16:1:64",
    "tile:H100:default:1:64",
    "tile:H200:bfloat16:1:64",
)
_QUICK_CASES = ("step:H100:bfloat16:1:4", "tile:H100:bfloat16:1:4")
# Bytes a second, bytes.
_CHIPS = {"H100": (3.35e12, 85e9), "H200": (4.8e12, 151e9)}
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f} device_address_bits: 64
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  name: "NVIDIA {chip}" driver_version: "13.0.0" runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA {chip}"
"""
# What is no kernel of its own.
_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "call", "while"),
    *("copy-done", "after-all"),
}
_LARGE = 1e6  # bytes
_BITS = {"pred": 8, "bf16": 16}


def rows(quick, cases=None):
    """One row for each case."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    for text in cases or (_QUICK_CASES if quick else _CASES):
        kind, chip, text = text.split(":", 2)
        case = Case.read(text, quick)
        with jax.default_matmul_precision(case.precision):
            compiled = {"step": step, "tile": tile}[kind](case, target(chip)).compile()
        yield {
            "kind": kind,
            "chip": chip,
            **case.row(),
            **counted(compiled.as_text()),
            "temporary": rounded(compiled.memory_analysis().temp_size_in_bytes / 1e9),
        }


def target(chip):
    """Where such a GPU would be."""
    bandwidth, memory = _CHIPS[chip]
    description = topologies.get_topology_desc(
        platform="cuda",
        topology_name=chip,
        topology="1x1x1",
        target_config=_TARGET.format(chip=chip, bandwidth=bandwidth, memory=memory),
    )
    return SingleDeviceSharding(description.devices[0])


def step(case, sharding):
    """The training step, lowered."""
    optimiser = sgd(steps=10_000)
    state = jax.eval_shape(
        lambda key: create_train_state(key, case.network, optimiser), jax.random.key(0)
    )
    shape = case.batch_size, 512, 512
    batch = Crop(
        image=jax.ShapeDtypeStruct((*shape, 1), jnp.float32),
        labels=jax.ShapeDtypeStruct(shape, jnp.int32),
        weights=jax.ShapeDtypeStruct(shape, jnp.float32),
        size=jax.ShapeDtypeStruct((case.batch_size, 2), jnp.int32),
    )
    key = jax.eval_shape(lambda: jax.random.key(1))
    train_step = make_train_step(case.network, optimiser, tile_side=case.side)
    return train_step.trace(*on(sharding, (state, batch, key))).lower()


def tile(case, sharding):
    """The prediction of tiles, lowered."""
    params = jax.eval_shape(lambda key: init_params(key, case.network, 1), jax.random.key(0))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), params)
    tiles = jax.ShapeDtypeStruct((case.batch_size, case.side, case.side, 1), jnp.float32)
    return tile_probabilities(case.network).trace(*on(sharding, (params, tiles))).lower()


def on(sharding, arrays):
    """The same shapes on a device."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arrays)


def counted(text):
    """What the compiled code consists of."""
    computations = dict(re.findall(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{\n((?:  .*\n)*)", text, re.M))
    (entry,) = re.findall(r"^ENTRY %([\w.\-]+)", text, re.M)
    kernels, moved, copies, transfers = Counter(), 0, 0, 0
    layouts = Counter()
    waiting = [entry]
    while waiting:
        results = {}
        for line in computations[waiting.pop()].splitlines():
            name, result, operation, operands, rest = re.match(
                r" *(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)", line
            ).groups()
            results[name] = bytes_of(result)
            waiting += re.findall(r"(?:to_apply|body)=%([\w.\-]+)", rest) * (
                operation in ("call", "while")
            )
            if operation in _NOTHING:
                continue
            kernels[operation] += 1
            moved += results[name] + sum(results[x] for x in re.findall(r"%([\w.\-]+)", operands))
            copies += operation.startswith("copy") and results[name] > _LARGE
            transfers += operation in ("infeed", "outfeed", "send", "recv") or "callback" in rest
            layouts.update(re.findall(r"dim_labels=([\w>\-]+)", rest) if "conv" in rest else ())
    return {
        "kernels": kernels.total(),
        "gigabytes": rounded(moved / 1e9),
        "copies": copies,
        "callbacks_and_transfers": transfers,
        "relu_in_convolution": text.count('"activation_mode":"kRelu"'),
        "layouts": dict(layouts),
    }


def bytes_of(result):
    """Of the arrays of a type; scratch space, which is of bytes, not counted."""
    total = 0
    for dtype, shape in re.findall(
        r"\b([a-z]+\d*)\[([\d,]*)\]", re.sub(r"\bu8\[\d+\]", "", result)
    ):
        bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype) or 0)
        elements = 1
        for side in filter(None, shape.split(",")):
            elements *= int(side)
        total += elements * bits // 8
    return total
