"""Training on examples in memory, step by step; what a run in a folder adds is in `run.fit`."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import optax

from unet_jax.configuration import Configuration, TrainSettings
from unet_jax.errors import InputError
from unet_jax.example import IGNORED, Example, separated
from unet_jax.model import Model
from unet_jax.network import UNet, context
from unet_jax.normalisation import are_grey_values
from unet_jax.optimiser import sgd
from unet_jax.train_step import TrainState, create_train_state, make_train_step
from unet_jax.training_images import Draw, annotated_images, batch_indices, batches
from unet_jax.weight_map import class_weights, weight_maps


@dataclass(frozen=True)
class Progress:
    """Where training is after one of its steps.

    Attributes:
      step: its number, from 1 on.
      metrics: of the step, on the device, see `make_train_step`; to look at a value waits for it.
      state: after the step; the next step uses it up.
      network: what is trained.
    """

    step: int
    metrics: dict[str, jax.Array]
    state: TrainState
    network: UNet

    def model(self) -> Model:
        """The network as it is now, for `predict_tiled`; later steps leave it as it is."""
        return Model.of(self.network, self.state.params)


def train(
    examples: Sequence[Example],
    configuration: Configuration = Configuration(),
    *,
    optimiser: optax.GradientTransformation | None = None,
    state: TrainState | None = None,
    class_weight: np.ndarray | None = None,
) -> Iterator[Progress]:
    """Trains on examples in memory; a step is done when the iterator is asked for the next.

        for progress in unet_jax.train(examples, configuration):
            if progress.step == 1000:
                break
        model = progress.model()

    It may be left at any step and runs in any thread. A ridge of background is put between touching
    cells, see `separated`.

    Args:
      examples: to train on, of one number of channels and any sizes.
      configuration: `model`, `weight_map`, `augmentation`, `optimiser` and `train` of it count.
      optimiser: another one than the configuration's; there is no last step then.
      state: to go on from, which is used up; by default a new one, drawn by the seed.
      class_weight: float32 [classes], by default `class_weights` of the examples.

    Raises:
      InputError: no examples, or such that do not go with each other or with the network.
    """
    settings, network = configuration.train, configuration.model
    _check(examples, network.classes)
    examples = [separated(example) for example in examples]
    if optimiser is None:
        optimiser = sgd(configuration.optimiser, steps=settings.steps)
        last = settings.steps
    else:
        last = None
    if state is None:
        state = initial_state(configuration, optimiser, examples[0].channels)
    if class_weight is None:
        class_weight = class_weights([e.labels for e in examples], network.classes)
    weights = weight_maps(examples, class_weight, configuration.weight_map)
    images = annotated_images(examples, weights)
    geometry = {"tile_side": settings.tile_side, "context": context(network.depth)}
    train_step = make_train_step(
        network,
        optimiser,
        tile_side=settings.tile_side,
        augmentation=configuration.augmentation,
        freeze_contracting_path=settings.freeze_contracting_path,
        deterministic=settings.deterministic,
    )
    first = int(state.step) + 1
    numbers = itertools.count(first) if last is None else range(first, last + 1)
    key, count = training_key(settings), len(examples)
    # It must not hold the examples: their memory is free once the images are there.
    draws = (draw(key, number, count, settings) for number in numbers)
    steps = batches(images, draws, configuration.augmentation, **geometry)
    return _steps(state, steps, train_step, network)


def _steps(state, steps, train_step, network) -> Iterator[Progress]:
    for drawn, batch in steps:
        state, metrics = train_step(state, batch, drawn.key)
        yield Progress(drawn.step, metrics, state, network)


def initial_state(
    configuration: Configuration, optimiser: optax.GradientTransformation, channels: int
) -> TrainState:
    """The state before the first step, drawn by the configuration's seed."""
    key = jax.random.split(jax.random.key(configuration.train.seed))[0]
    return create_train_state(key, configuration.model, optimiser, channels)


def training_key(settings: TrainSettings) -> jax.Array:
    """The random key that all steps derive theirs from."""
    return jax.random.split(jax.random.key(settings.seed))[1]


def draw(key: jax.Array, step: int, examples: int, settings: TrainSettings) -> Draw:
    """What chance decides of a step, from 1 on, with so many examples and the `training_key`."""
    indices = batch_indices(step - 1, examples, settings.batch_size, settings.seed)
    return Draw(step, indices, jax.random.fold_in(key, step))


def _check(examples: Sequence[Example], classes: int) -> None:
    if not examples:
        raise InputError("There are no examples to train on.")
    for example in examples:
        expected = example.image.shape[:2]
        if not example.labels.shape == example.instances.shape == expected:
            raise InputError(
                f"{example.name}: labels and instances are {example.labels.shape} and "
                f"{example.instances.shape}, expected {expected} as the image"
            )
        if example.channels != examples[0].channels:
            raise InputError(
                f"{example.name}: has {example.channels} channel(s), expected "
                f"{examples[0].channels} as in {examples[0].name}"
            )
        for label in (np.min(example.labels), np.max(example.labels)):
            if not IGNORED <= label < classes:
                raise InputError(f"{example.name}: holds class {label}, the network has {classes}")
        if not are_grey_values(example.image):
            raise InputError(f"{example.name}: holds NaN, infinite or huge pixels")
