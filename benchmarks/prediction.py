"""Megapixels a second of prediction against the image's size, beside PyTorch, MONAI and patches.

`predict_tiled` of the paper's network at a width of 16 (64 on a GPU) on made-up images, beside

- the same network and tiles in PyTorch, the image mirrored and cut by NumPy;
- MONAI's `sliding_window_inference` with a padded U-Net of the same layers in PyTorch: windows of
  512 pixels that overlap by a quarter, its defaults;
- one patch for each pixel, the method that the paper replaced: 188x188 pixels for one of them,
  measured on a few and extrapolated;
- the averages over turned images at the smallest size, and bfloat16 on a GPU.

`gigabytes` is the host's memory at its highest, beyond image and result. `operations` are those of
all tiles over those of the whole image at once.
"""

import math
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np

from benchmarks.side_by_side import alternate, rounded, summary, timed
from benchmarks.training_step import forward_flops
from unet_jax import predict_tiled
from unet_jax.model import Model
from unet_jax.network import UNet, context, init_params, valid_input_sides
from unet_jax.normalisation import PERCENTILES
from unet_jax.overlap_tile import tile_probabilities
from unet_jax.tiles import choose_tile_side, tile_step

_SIDES = (512, 1024, 2048, 4096, 8192, 16_384)
_LARGEST_BESIDE_OTHERS = 2048
_PATCHES = 64


def rows(quick):
    """One row for each size and contestant."""
    on_gpu = jax.default_backend() != "cpu"
    width = 2 if quick else 64 if on_gpu else 16
    model, in_half = a_model(width), {}
    if on_gpu or quick:
        in_half = {"ours, bfloat16": a_model(width, "bfloat16")}
    sides = (200, 300) if quick else _SIDES
    for side in sides:
        image = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
        tile = choose_tile_side(model.network, side, side)
        gigabytes = None

        def ours(image=image):
            nonlocal gigabytes
            gigabytes = peak_gigabytes(lambda: predict_tiled(model, image))

        contestants = {"ours": ours}
        contestants |= {name: partial(predict_tiled, half, image) for name, half in in_half.items()}
        for any_model in (model, *in_half.values()):
            predict_tiled(any_model, image[:200, :200], tile_side=tile)  # compiles
        if side > _LARGEST_BESIDE_OTHERS:
            seconds = {name: [timed(call)] for name, call in contestants.items()}
        else:
            if side == sides[0]:
                contestants |= {
                    f"ours, {views}": partial(predict_tiled, model, image, averaging=views)
                    for views in ("rotations", "symmetries")
                }
            contestants |= others(model, image, tile)
            seconds = alternate(contestants, rounds=5)
            patch_seconds = np.median(seconds["one patch a pixel"]) * image.size / _PATCHES
            seconds["one patch a pixel"] = [patch_seconds]
        for name in contestants:
            result = summary(seconds, name, ours="ours")
            row = {
                "side": side,
                "contestant": name,
                **result,
                "megapixels_per_second": rounded(image.size / 1e6 / result["seconds"]),
            }
            if name == "ours":
                row["gigabytes"] = rounded(gigabytes)
                row["operations"] = rounded(operations(model.network, side, tile))
            yield row


def a_model(width, dtype="float32"):
    """A network of random weights, which takes as long as any."""
    network = UNet(width=width, dtype=dtype)
    params = init_params(jax.random.key(0), network, 1)
    return Model.of(network, params)


def operations(network, side, tile):
    """Multiplications and additions of all tiles over those of the whole image."""
    step = tile_step(tile, network.depth)
    whole = valid_input_sides(side + 2 * context(network.depth), network.depth)[-1]
    count = math.ceil(side / step) ** 2
    each, all_at_once = (forward_flops(network, s) for s in (tile, whole))
    return count * each / all_at_once


def others(model, image, tile):
    """The same image by the other methods."""
    import torch

    from benchmarks.torch_unet import UNet as TorchUNet

    device = "cuda" if jax.default_backend() != "cpu" else "cpu"
    layout = {"memory_format": torch.channels_last}

    def network(**settings):
        network = TorchUNet(model.network.width, **settings).eval()
        return network.to(device, **layout)

    unpadded, padded = network(), network(padding=1)
    margin, step = context(model.network.depth), tile_step(tile, model.network.depth)

    @torch.inference_mode()
    def tiles():
        height, width = image.shape
        low, high = np.percentile(image, PERCENTILES)
        inside = image[(image >= low) & (image <= high)]
        normalised = (image - inside.mean()) / inside.std()
        end = [(margin, margin + -size % step + tile) for size in image.shape]
        mirrored = np.pad(normalised, end, mode="reflect")
        result = np.empty((2, height, width), np.float32)
        for top in range(0, height, step):
            for left in range(0, width, step):
                pixels = torch.from_numpy(mirrored[top : top + tile, left : left + tile].copy())
                pixels = pixels[None, None].to(device, **layout)
                target = result[:, top : top + step, left : left + step]
                found = torch.softmax(unpadded(pixels), 1)[0].cpu().numpy()
                target[...] = found[:, : target.shape[1], : target.shape[2]]

    @torch.inference_mode()
    def monai():
        from monai.inferers import sliding_window_inference

        pixels = torch.from_numpy(image)[None, None].to(device)
        window = (min(512, image.shape[0] // 16 * 16),) * 2
        sliding_window_inference(pixels, window, 1, lambda x: torch.softmax(padded(x), 1)).cpu()

    side = valid_input_sides(0, model.network.depth)[0]
    patch = np.zeros((1, side, side, 1), np.float32)
    predict = tile_probabilities(model.network)

    def patches():
        for _ in range(_PATCHES):
            predict(model.params, patch).block_until_ready()

    contestants = {"PyTorch": tiles, "MONAI": monai, "one patch a pixel": patches}
    if not find_spec("monai"):
        del contestants["MONAI"]
    return contestants


def peak_gigabytes(call):
    """The process's memory at its highest during a call, beyond that before it and the result."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not os.access(clear, os.W_OK):  # not Linux
        return math.nan

    def highest():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e9

    clear.write_text("5")  # the highest is what is in use now
    before = highest()
    result = call()
    return highest() - before - result.nbytes / 1e9
