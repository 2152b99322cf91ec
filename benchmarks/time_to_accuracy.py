"""Seconds of training until the held-out pixel error is below 0.08, 0.06 and 0.05, beside PyTorch.

`configs/em_small.py` (`em.py` on a GPU) in 2000 steps on the ISBI 2012 stack, which is downloaded
if it is not there; scored on the validation slices every 50 steps, which is not counted. PyTorch
has the same network, tile, weights, order and schedule; SciPy deforms its tiles on the host, in a
thread that works ahead. Compiling counts. The two take turns, 50 steps each.
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import torch
from scipy import ndimage
from unet_jax.data.arrays import batch_indices, take, training_arrays, weight_maps

from benchmarks import torch_unet
from benchmarks.side_by_side import rounded
from configs import em, em_small
from unet_jax import predict_tiled
from unet_jax.data.splits import read_splits
from unet_jax.metrics.scores import em_errors
from unet_jax.model import Model
from unet_jax.network import UNet, context, valid_input_sides
from unet_jax.normalisation import PERCENTILES, grey_value_statistics, normalise
from unet_jax.optimiser import create_optimiser
from unet_jax.train_step import create_train_state, make_train_step, tile_keys
from unet_jax.weight_map import class_weights

_TARGETS = (0.08, 0.06, 0.05)
_EVERY = 50


def rows(quick):
    """One row for each evaluation; the last ones say when each target was reached."""
    on_gpu = jax.default_backend() != "cpu"
    config = (em if on_gpu else em_small).get_config()
    config.train.steps = _EVERY if quick else 2000
    if quick:
        config.model.width, config.train.tile_side = 2, 188
        config.optimiser.warmup_steps = 10
    splits = read_splits(config.data, config.model.classes)
    class_weight = class_weights([e.labels for e in splits["train"]], config.model.classes)
    weights = weight_maps(splits["train"], class_weight, **config.weight_map)
    data = training_arrays(splits["train"], weights)
    validation = splits["validation"]
    contestants = {
        "ours": ours(config, data),
        "PyTorch": pytorch(config, data, "cuda" if on_gpu else "cpu"),
    }
    seconds = dict.fromkeys(contestants, 0.0)
    reached = {name: {} for name in contestants}
    for last in range(_EVERY, config.train.steps + 1, _EVERY):
        for name, (train, predict) in contestants.items():
            began = time.perf_counter()
            train(range(last - _EVERY, last))
            seconds[name] += time.perf_counter() - began
            errors = em_errors(validation, [predict(e.image) for e in validation])
            error = errors["pixel_error"].value
            for target in _TARGETS:
                if error < target:
                    reached[name].setdefault(target, seconds[name])
            spent = rounded(seconds[name])
            yield {"contestant": name, "step": last, "seconds": spent, "error": rounded(error)}
    for name, when in reached.items():
        for target, spent in when.items():
            row = {"contestant": name, "target": target, "seconds": rounded(spent)}
            if target in reached["ours"]:
                row["ours_over_it"] = rounded(reached["ours"][target] / spent)
            yield row


def ours(config, data):
    """train(steps), and predict(image) -> probability of cell."""
    network = UNet(**config.model)
    optimiser, _ = create_optimiser(steps=config.train.steps, **config.optimiser)
    initial_key, key = jax.random.split(jax.random.key(config.train.seed))
    state = create_train_state(initial_key, network, optimiser, channels=1)
    train_step = make_train_step(
        network,
        optimiser,
        tile_side=config.train.tile_side,
        augmentation=config.augmentation.to_dict(),
    )

    def train(steps):
        nonlocal state
        for step in steps:
            step_key = jax.random.fold_in(key, step)
            indices = _indices(config, step, data)
            batch = take(
                data,
                indices,
                tile_keys(step_key, len(indices)),
                tile_side=config.train.tile_side,
                context=context(config.model.depth),
                augmentation=config.augmentation.to_dict(),
            )
            state, metrics = train_step(state, batch, step_key)
        metrics["loss"].block_until_ready()

    def predict(image):
        params = jax.tree.map(lambda x: x[None], state.params)
        return predict_tiled(Model(network, params, 1, 1.0, PERCENTILES, {}), image)[..., 1]

    return train, predict


def pytorch(config, data, device):
    """The same in PyTorch."""
    torch.manual_seed(config.train.seed)
    rng = np.random.default_rng(config.train.seed)
    layout = {"memory_format": torch.channels_last}
    depth = config.model.depth
    network = torch_unet.UNet(
        config.model.width, depth, config.model.classes, config.model.dropout_rate
    ).to(device, **layout)
    sgd = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    train_step = torch_unet.make_train_step(network, sgd)
    settings = config.optimiser
    _, learning_rate = create_optimiser(steps=config.train.steps, **settings)
    ratio = (1 - settings.initial_momentum) / (1 - settings.momentum)

    slices = {"size": data["size"]}
    for name in ("image", "labels", "weights"):  # all slices are of one size
        pixels = np.asarray(data[name])
        slices[name] = pixels.reshape(-1, *data["size"][0], *pixels.shape[1:])

    def tile(step):
        index = _indices(config, step, data)[0]
        arrays = {name: array[index] for name, array in slices.items()}
        return deformed(rng, arrays, config.train.tile_side, context(depth), config.augmentation)

    def train(steps):
        network.train()
        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(tile, steps[0])
            for step in steps:
                image, labels, weights = (torch.from_numpy(a)[None] for a in ahead.result())
                if step + 1 in steps:
                    ahead = thread.submit(tile, step + 1)
                friction = ratio ** (1 - min(step / settings.momentum_warmup_steps, 1))
                sgd.param_groups[0]["lr"] = float(learning_rate(step))
                sgd.param_groups[0]["momentum"] = 1 - (1 - settings.momentum) * friction
                image = image[None].to(device, **layout)
                loss = train_step(image, labels.to(device), weights.to(device))
        loss.item()

    @torch.inference_mode()
    def predict(image):
        network.eval()
        normalised = normalise(image[..., None], *grey_value_statistics(image[..., None]))[..., 0]
        margin = context(depth)
        sides = [valid_input_sides(size + 2 * margin, depth)[-1] for size in image.shape]
        end = [
            (margin, side - size - margin) for side, size in zip(sides, image.shape, strict=True)
        ]
        pixels = torch.from_numpy(np.pad(normalised, end, mode="reflect"))[None, None]
        probabilities = torch.softmax(network(pixels.to(device, **layout)), 1)[0, 1].cpu().numpy()
        return probabilities[: image.shape[0], : image.shape[1]]

    return train, predict


def deformed(rng, arrays, side, margin, strengths):
    """A random tile as `unet_jax.augmentation.augment` makes it, by SciPy."""
    size = arrays["size"]
    centre = (side - 1) / 2
    y, x = np.indices((side, side), np.float32) - np.float32(centre)
    grid = rng.normal(0, strengths.elastic_pixels, (2, 3, 3)).astype(np.float32)
    dy, dx = (
        ndimage.zoom(nodes, side / 3, order=3, mode="nearest", grid_mode=True) for nodes in grid
    )
    y, x = y + dy, x + dx
    if rng.random() < strengths.mirror_probability:
        x = -x
    angle = math.radians(rng.uniform(-1, 1) * strengths.rotation_degrees)
    y, x = math.cos(angle) * y - math.sin(angle) * x, math.sin(angle) * y + math.cos(angle) * x
    moved = np.round(strengths.shift * size * rng.uniform(-0.5, 0.5, 2)) + (size - side) // 2
    y, x = y + np.float32(centre + moved[0]), x + np.float32(centre + moved[1])
    image = ndimage.map_coordinates(arrays["image"][..., 0], (y, x), order=1, mode="mirror")
    image = image * rng.normal(1, strengths.contrast_std) + rng.normal(0, strengths.brightness_std)
    inner = (slice(margin, side - margin),) * 2
    labels, weights = (
        ndimage.map_coordinates(arrays[name], (y[inner], x[inner]), order=0, mode="mirror")
        for name in ("labels", "weights")
    )
    return image.astype(np.float32), labels.astype(np.int64), weights


def _indices(config, step, data):
    return batch_indices(step, len(data["size"]), config.train.batch_size, config.train.seed)
