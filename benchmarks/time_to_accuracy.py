"""Seconds of training until the held-out pixel error is below 0.08, 0.06 and 0.05, beside PyTorch.

The paper's experiment with a quarter of the width, on a GPU with all of it, in 2000 steps on the
ISBI 2012 stack, which is downloaded if it is not there; scored on the validation slices every 50
steps, which is not counted. PyTorch has the same network, tile, weights, order and schedule; SciPy
deforms its tiles on the host, in a thread that works ahead. Compiling counts. The two take turns,
50 steps each.
"""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import torch
from scipy import ndimage

from benchmarks import torch_unet
from benchmarks.recipes import of_em
from benchmarks.side_by_side import rounded
from configs import em
from unet_jax import predict_tiled, train
from unet_jax.augmentation import Crop
from unet_jax.configuration import read_configuration
from unet_jax.data.splits import read_splits
from unet_jax.example import separated
from unet_jax.grey_values import grey_value_statistics
from unet_jax.metrics.scores import em_errors
from unet_jax.network import context, valid_input_sides
from unet_jax.normalisation import normalise
from unet_jax.optimiser import sgd
from unet_jax.training_images import batch_indices
from unet_jax.weight_map import class_weights, weight_maps

_TARGETS = (0.08, 0.06, 0.05)
_EVERY = 50


def rows(quick):
    """One row for each evaluation; the last ones say when each target was reached."""
    on_gpu = jax.default_backend() != "cpu"
    config = em.get_config() if on_gpu else of_em()
    config.train.steps = _EVERY if quick else 2000
    if quick:
        config.model.width, config.model.depth, config.train.tile_side = 2, 2, 44
        config.optimiser.warmup_steps = 10
    configuration = read_configuration(config)
    splits = read_splits(configuration.data, configuration.model.classes)
    validation = splits["validation"]
    contestants = {
        "ours": ours(splits["train"], configuration),
        "PyTorch": pytorch(splits["train"], configuration, "cuda" if on_gpu else "cpu"),
    }
    seconds = dict.fromkeys(contestants, 0.0)
    reached = {name: {} for name in contestants}
    for last in range(_EVERY, config.train.steps + 1, _EVERY):
        for name, (go_on, predict) in contestants.items():
            began = time.perf_counter()
            go_on(range(last - _EVERY, last))
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


def ours(examples, configuration):
    """go_on(steps), and predict(image) -> probability of cell."""
    run = train(examples, configuration)
    progress = None

    def go_on(steps):
        nonlocal progress
        for progress in islice(run, len(steps)):
            values = progress.steps.values
        values.block_until_ready()

    return go_on, lambda image: predict_tiled(progress.model(), image)[..., 1]


def pytorch(examples, configuration, device):
    """The same in PyTorch."""
    settings, model = configuration.train, configuration.model
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    layout = {"memory_format": torch.channels_last}
    network = torch_unet.UNet(model.width, model.depth, model.classes, model.dropout_rate)
    network = network.to(device, **layout)
    optimiser = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    train_step = torch_unet.make_train_step(network, optimiser)
    schedule = learning_rates_and_momenta(configuration)
    crops = whole_images(examples, configuration)
    geometry = {"tile_side": settings.tile_side, "context": context(model.depth)}

    def tile(step):
        index = batch_indices(step, len(crops), settings.batch_size, settings.seed)[0]
        return deformed(rng, crops[index], configuration.augmentation, **geometry)

    def go_on(steps):
        network.train()
        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(tile, steps[0])
            for step in steps:
                image, labels, weights = (torch.from_numpy(a)[None] for a in ahead.result())
                if step + 1 in steps:
                    ahead = thread.submit(tile, step + 1)
                group = optimiser.param_groups[0]
                group["lr"], group["momentum"] = schedule[step]
                image = image[None].to(device, **layout)
                loss = train_step(image, labels.to(device), weights.to(device))
        loss.item()

    @torch.inference_mode()
    def predict(image):
        network.eval()
        normalised = normalise(image[..., None], *grey_value_statistics(image[..., None]))[..., 0]
        margin = context(model.depth)
        sides = [valid_input_sides(size + 2 * margin, model.depth)[-1] for size in image.shape]
        end = [
            (margin, side - size - margin) for side, size in zip(sides, image.shape, strict=True)
        ]
        pixels = torch.from_numpy(np.pad(normalised, end, mode="reflect"))[None, None]
        probabilities = torch.softmax(network(pixels.to(device, **layout)), 1)[0, 1].cpu().numpy()
        return probabilities[: image.shape[0], : image.shape[1]]

    return go_on, predict


def learning_rates_and_momenta(configuration):
    """Both at each step, as `sgd` has them."""
    optimiser = sgd(configuration.optimiser, steps=configuration.train.steps)
    update = jax.jit(lambda state: optimiser.update(jnp.float32(0), state)[1])
    state, both = optimiser.init(jnp.float32(0)), []
    for _ in range(configuration.train.steps):
        state = update(state)
        both.append([float(state.hyperparams[name]) for name in ("learning_rate", "momentum")])
    return both


def whole_images(examples, configuration):
    """The examples with their weight maps, as `train` has them."""
    examples = [separated(example) for example in examples]
    class_weight = class_weights([e.labels for e in examples], configuration.model.classes)
    maps = weight_maps(examples, class_weight, configuration.weight_map)
    crops = []
    for example, weights in zip(examples, maps, strict=True):
        image = example.image[..., None]
        image = normalise(image, *grey_value_statistics(image))
        crops.append(Crop(image, example.labels, weights, np.array(weights.shape)))
    return crops


def deformed(rng, crop, strengths, *, tile_side, context):
    """A random tile as `unet_jax.augmentation.augment` makes it, by SciPy."""
    size, side = crop.size, tile_side
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
    image = ndimage.map_coordinates(crop.image[..., 0], (y, x), order=1, mode="mirror")
    image = image * rng.normal(1, strengths.contrast_std) + rng.normal(0, strengths.brightness_std)
    inner = (slice(context, side - context),) * 2
    labels, weights = (
        ndimage.map_coordinates(array, (y[inner], x[inner]), order=0, mode="mirror")
        for array in (crop.labels, crop.weights)
    )
    return image.astype(np.float32), labels.astype(np.int64), weights
