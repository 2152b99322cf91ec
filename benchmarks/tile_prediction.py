"""One tile of 572x572 pixels through the network, beside PyTorch; the soft-max included.

The tile lies on the device before, and its probabilities stay there. On a GPU also several tiles at
a time, and a larger one.
"""

import jax

from benchmarks.side_by_side import alternate, repeated, rounded, summary
from benchmarks.training_step import forward_flops
from unet_jax.network import UNet, init_params
from unet_jax.overlap_tile import tile_probabilities

# Width, side of the tile in pixels, tiles at a time, what is computed in.
_CPU_CASES = [(16, 572, 1, "float32"), (32, 572, 1, "float32"), (64, 572, 1, "float32")]
_GPU_CASES = [
    (64, side, batch_size, dtype)
    for side, batch_size in ((572, 1), (572, 16), (572, 3), (1212, 1))
    for dtype in ("bfloat16", "float32")
]
_QUICK_CASES = [(4, 44, 1, "float32"), (4, 44, 2, "bfloat16")]


def rows(quick):
    """One row for each contestant."""
    on_gpu = jax.default_backend() != "cpu"
    rounds, repeats = (2, 1) if quick else (30, 10) if on_gpu else (10, 1)
    cases = _QUICK_CASES if quick else _GPU_CASES if on_gpu else _CPU_CASES
    for width, side, batch_size, dtype in cases:
        network = UNet(width=width, depth=2 if quick else 5, dtype=dtype)
        contestants = {"ours": ours(network, batch_size, side, repeats)}
        contestants |= pytorch(network, batch_size, side, repeats)
        seconds = alternate(contestants, rounds, repeats)
        for name in contestants:
            result = summary(seconds, name, ours="ours")
            yield {
                "width": width,
                "side": side,
                "batch": batch_size,
                "dtype": dtype,
                "contestant": name,
                **result,
                "tiles_per_second": rounded(batch_size / result["seconds"]),
                "tflops": rounded(
                    forward_flops(network, side) * batch_size / result["seconds"] / 1e12
                ),
            }


def ours(network, batch_size, side, repeats):
    """A call that predicts the tiles so many times."""
    params = init_params(jax.random.key(0), network, 1)
    params = jax.tree.map(lambda x: x[None], params)
    tiles = jax.random.normal(jax.random.key(1), (batch_size, side, side, 1))
    predict = tile_probabilities(network)
    return repeated(lambda: predict(params, tiles), repeats)


def pytorch(network, batch_size, side, repeats):
    """The same in PyTorch, in each variant that this machine has."""
    import torch

    from benchmarks import torch_unet

    device = "cuda" if jax.default_backend() != "cpu" else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    layout = {"memory_format": torch.channels_last}
    half = torch.autocast(device, torch.bfloat16, enabled=network.dtype == "bfloat16")
    network = torch_unet.UNet(network.width, network.depth).eval().to(device, **layout)
    tiles = torch.randn(batch_size, 1, side, side, device=device).contiguous(**layout)

    def call(variant):
        @torch.inference_mode()
        def predict():
            with half:
                for _ in range(repeats):
                    torch.softmax(variant(tiles), 1)
            if device == "cuda":
                torch.cuda.synchronize()

        return predict

    return {name: call(variant(network)) for name, variant in torch_unet.variants().items()}
