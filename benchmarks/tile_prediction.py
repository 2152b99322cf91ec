"""One tile of 572x572 pixels through the network, beside PyTorch; the soft-max included.

The tile lies on the device before, and its probabilities stay there.
"""

import shutil

import jax
import numpy as np

from benchmarks.side_by_side import alternate, rounded, summary
from benchmarks.training_step import forward_flops
from unet_jax.network import UNet, init_params
from unet_jax.overlap_tile import tile_probabilities

_CPU_CASES = [(16, 1, "float32"), (32, 1, "float32"), (64, 1, "float32")]
_GPU_CASES = [(64, n, dtype) for n in (1, 16) for dtype in ("float32", "bfloat16")]


def rows(quick):
    """One row for each contestant."""
    on_gpu = jax.default_backend() != "cpu"
    side, rounds = (188, 2) if quick else (572, 30 if on_gpu else 10)
    cases = [(4, 1, "float32"), (4, 2, "bfloat16")] if quick else _CPU_CASES
    for width, batch_size, dtype in _GPU_CASES if on_gpu and not quick else cases:
        contestants = {"ours": ours(width, batch_size, side, dtype)}
        contestants |= pytorch(width, batch_size, side, dtype)
        seconds = alternate(contestants, rounds)
        for name in contestants:
            result = summary(seconds, name, ours="ours")
            flops = forward_flops(width, side, side) * batch_size
            yield {
                "width": width,
                "batch": batch_size,
                "dtype": dtype,
                "contestant": name,
                **result,
                "tiles_per_second": rounded(batch_size / result["seconds"]),
                "tflops": rounded(flops / result["seconds"] / 1e12),
            }


def ours(width, batch_size, side, dtype):
    """A call that predicts the tiles."""
    network = UNet(width=width, dtype=dtype)
    params = jax.jit(init_params, static_argnums=(1, 2))(jax.random.key(0), network, 1)
    params = jax.tree.map(lambda x: x[None], params)
    tiles = jax.device_put(np.zeros((batch_size, side, side, 1), np.float32))
    predict = tile_probabilities(network)
    return lambda: predict(params, tiles).block_until_ready()


def pytorch(width, batch_size, side, dtype):
    """The same in PyTorch, in each variant that this machine has."""
    import torch

    from benchmarks.torch_unet import UNet as TorchUNet

    device = "cuda" if jax.default_backend() != "cpu" else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    layout = {"memory_format": torch.channels_last}
    network = TorchUNet(width).eval().to(device, **layout)
    tiles = torch.zeros(batch_size, 1, side, side, device=device).contiguous(**layout)
    half = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    variants = {"PyTorch": network}
    if shutil.which("c++"):
        variants["PyTorch compiled"] = torch.compile(network)

    def call(variant):
        @torch.inference_mode()
        def predict():
            with half:
                torch.softmax(variant(tiles), 1)
            if device == "cuda":
                torch.cuda.synchronize()

        return predict

    return {name: call(variant) for name, variant in variants.items()}
