"""One training step, 572x572 pixels, beside PyTorch.

Ours is `unet_jax.train_step.make_train_step`; "no augmentation" is the same step with all strengths
at 0. PyTorch's steps have none and take the same tile each time. `flops_percent` is of the device's
measured matrix product, `gigabytes` what one step takes besides its arguments.
"""

import shutil
import time

import jax
import numpy as np

from benchmarks.side_by_side import alternate, matrix_product_peak, rounded, summary
from configs import em
from unet_jax.network import UNet, context
from unet_jax.optimiser import create_optimiser
from unet_jax.train_step import create_train_state, make_train_step

_CPU_CASES = [(16, 1), (32, 1), (64, 1)]
_GPU_CASES = [(64, 1), (64, 8)]
# What the convolutions compute in: dtype, and JAX's precision of float32 products on a GPU.
_FORMATS = {
    "float32": ("float32", "highest"),
    "TF32": ("float32", "tensorfloat32"),
    "bfloat16": ("bfloat16", None),
}


def rows(quick):
    """One row for each contestant."""
    on_gpu = jax.default_backend() != "cpu"
    side, rounds = (188, 2) if quick else (572, 30 if on_gpu else 10)
    cases = [(4, 2)] if quick else _GPU_CASES if on_gpu else _CPU_CASES
    for number_format in _FORMATS if on_gpu or quick else ("float32",):
        dtype, precision = _FORMATS[number_format]
        with jax.default_matmul_precision(precision):
            peak = matrix_product_peak(dtype)
            for width, batch_size in cases:
                contestants, facts = {}, {}
                for augmented in (True, False):
                    name = "ours" if augmented else "ours, no augmentation"
                    contestants[name], facts[name] = ours(width, batch_size, side, dtype, augmented)
                contestants |= pytorch(width, batch_size, side, number_format)
                seconds = alternate(contestants, rounds)
                flops = step_flops(width, side) * batch_size
                for name in contestants:
                    result = summary(seconds, name, ours="ours")
                    yield {
                        "width": width,
                        "batch": batch_size,
                        "format": number_format,
                        "contestant": name,
                        **result,
                        "images_per_second": rounded(batch_size / result["seconds"]),
                        "tflops": rounded(flops / result["seconds"] / 1e12),
                        "flops_percent": rounded(100 * flops / result["seconds"] / peak),
                        **facts.get(name, {}),
                    }


def ours(width, batch_size, side, dtype, augmented):
    """A call that takes one step, and what compiling it cost."""
    config = em.get_config()
    config.model.width, config.model.dtype = width, dtype
    network = UNet(**config.model)
    strengths = config.augmentation.to_dict()
    if not augmented:
        strengths = dict.fromkeys(strengths, 0.0)
    optimiser, _ = create_optimiser(steps=10_000, **config.optimiser)
    state = create_train_state(jax.random.key(0), network, optimiser, channels=1)
    rng = np.random.default_rng(0)
    batch = jax.device_put(
        {
            "image": rng.normal(size=(batch_size, 512, 512, 1)).astype(np.float32),
            "labels": rng.integers(0, 2, (batch_size, 512, 512)).astype(np.int32),
            "weights": np.ones((batch_size, 512, 512), np.float32),
            "size": np.full((batch_size, 2), 512, np.int32),
        }
    )
    key = jax.random.key(1)
    began = time.perf_counter()
    train_step = (
        make_train_step(network, optimiser, tile_side=side, augmentation=strengths)
        .lower(state, batch, key)
        .compile()
    )
    compile_seconds = time.perf_counter() - began
    memory = train_step.memory_analysis()

    def step():
        nonlocal state
        state, metrics = train_step(state, batch, key)
        metrics["loss"].block_until_ready()

    return step, {
        "compile_seconds": rounded(compile_seconds),
        "gigabytes": rounded(memory.temp_size_in_bytes / 1e9),
    }


def pytorch(width, batch_size, side, number_format):
    """The same step in PyTorch, in each variant that this machine has."""
    import torch

    from benchmarks import torch_unet

    device = "cuda" if jax.default_backend() != "cpu" else "cpu"
    autocast = torch.bfloat16 if number_format == "bfloat16" else None
    variants = {"PyTorch": lambda network: network}
    if shutil.which("c++"):
        variants["PyTorch compiled"] = torch.compile
    tf32 = number_format != "float32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True

    calls = {}
    for name, variant in variants.items():
        layout = torch.channels_last
        network = torch_unet.UNet(width).to(device, memory_format=layout)
        fused = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.99, fused=True)
        train_step = torch_unet.make_train_step(variant(network), fused, autocast_dtype=autocast)
        output = side - 2 * context(5)
        images = torch.randn(batch_size, 1, side, side, device=device)
        images = images.contiguous(memory_format=layout)
        labels = torch.randint(0, 2, (batch_size, output, output), device=device)
        weights = torch.ones(batch_size, output, output, device=device)

        def step(train_step=train_step, images=images, labels=labels, weights=weights):
            train_step(images, labels, weights).item()

        calls[name] = step
    return calls


def step_flops(width: int, side: int, depth: int = 5, classes: int = 2) -> int:
    """Operations of the convolutions of one step on one tile: forward, and twice that backward."""
    return 3 * forward_flops(width, side, side, depth, classes)


def forward_flops(width, height, width_pixels, depth=5, classes=2):
    """Multiplications and additions of the convolutions of one forward pass."""
    total, incoming = 0, 1
    sides = np.array([height, width_pixels], np.int64)

    def convolution(outgoing):
        nonlocal total, incoming, sides
        sides = sides - 2
        total += 2 * 9 * int(sides.prod()) * incoming * outgoing
        incoming = outgoing

    for level in range(depth):
        convolution(width * 2**level)
        convolution(width * 2**level)
        if level < depth - 1:
            sides = sides // 2
    for level in reversed(range(depth - 1)):
        sides = sides * 2
        total += 2 * int(sides.prod()) * incoming * incoming // 2
        convolution(width * 2**level)  # of skip and up-convolution together
        convolution(width * 2**level)
    return total + 2 * int(sides.prod()) * width * classes
