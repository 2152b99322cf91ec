"""Training on examples, step by step; for a run with a folder, see `run.fit`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from unet_jax.augmentation import Crop
from unet_jax.configuration import Configuration, TrainSettings
from unet_jax.devices import data_mesh, divided, local, put_everywhere, whole
from unet_jax.errors import InputError
from unet_jax.example import IGNORED, Example, separated
from unet_jax.grey_values import are_grey_values
from unet_jax.layers import compiler_options
from unet_jax.model import Model
from unet_jax.network import UNet, context
from unet_jax.optimiser import create_optimiser
from unet_jax.train_step import (
    TrainState,
    TrainStep,
    create_train_state,
    pure_train_step,
    tile_keys,
)
from unet_jax.training_images import (
    AnnotatedImages,
    Draw,
    UnreadImages,
    annotated_images,
    batch_indices,
    batches,
    take,
)
from unet_jax.unread import Facts, Unread, facts_of, in_threads
from unet_jax.weight_map import balanced, weight_maps

#: What is told of each step: the metrics of `make_train_step`, and the learning rate.
METRICS = ("loss", "gradient_norm", "learning_rate")


@dataclass(frozen=True)
class Steps:
    """Steps done in one call.

    Attributes:
      numbers: their numbers, from 1.
      values: float32 [at least as many, 3], their `METRICS`, on the device.
    """

    numbers: range
    values: jax.Array

    def metrics(self) -> list[dict[str, float]]:
        """The `METRICS` of each step by name; waits for the device."""
        rows = np.asarray(self.values)[: len(self.numbers)].tolist()
        return [dict(zip(METRICS, row, strict=True)) for row in rows]


@dataclass(frozen=True)
class Progress:
    """Where training is.

    Attributes:
      steps: the steps done since the previous `Progress`; one unless `steps_at_once` is larger.
      state: the state after them; the next step uses it up.
      network: the network that is trained.
    """

    steps: Steps
    state: TrainState
    network: UNet

    @property
    def step(self) -> int:
        """The number of the last step done, from 1."""
        return self.steps.numbers[-1]

    @property
    def metrics(self) -> dict[str, float]:
        """The last step's `loss` and so on, see `make_train_step`; waits for the device.

        `learning_rate` is NaN if the optimiser does not report it.
        """
        return self.steps.metrics()[-1]

    def model(self) -> Model:
        """The network as it is now, for `predict_tiled`; later steps do not change it."""
        return Model.of(self.network, self.state.result)


def train(
    examples: Sequence[Example],
    configuration: Configuration = Configuration(),
    *,
    optimiser: optax.GradientTransformation | None = None,
    state: TrainState | None = None,
    class_weight: np.ndarray | None = None,
    steps_at_once: int = 1,
) -> Iterator[Progress]:
    """Trains on examples; a step is done each time the iterator is asked for the next item.

        for progress in unet_jax.train(examples, configuration):
            if progress.step == 1000:
                break
        model = progress.model()

    You can stop at any step and run it in any thread. A ridge of background is put between touching
    cells, see `separated`. Several devices share each batch, see `devices.data_mesh`; if there are
    several processes, each gives the same examples.

    Args:
      examples: to train on, of any sizes but with the same number of channels. A list or tuple is
        prepared and kept in memory. From any other sequence, each example is requested once at the
        beginning (the first one twice) and again for each step that sees it, some steps ahead and
        in several threads at once: such examples may exceed the memory, and give the same steps bit
        for bit.
      configuration: its `model`, `weight_map`, `augmentation`, `optimiser` and `train` are used; if
        it has a `train.start_from`, a state must be given.
      optimiser: to use instead of the configuration's; there is no last step then.
      state: to continue from, which is used up; by default a new one, drawn with the seed.
      class_weight: float32 [classes], by default `class_weights` of the examples.
      steps_at_once: more than 1 saves an accelerator from waiting for the host after each step.
        Blocks end at multiples of this number and of `train.validate_every`. Steps on images that
        are too large for the device are done one by one.

    Raises:
      InputError: no examples, or examples that do not fit each other or the network; no state
        although the configuration starts from another run.
    """
    settings, network = configuration.train, configuration.model
    if not examples:
        raise InputError("There are no examples to train on.")
    in_memory = isinstance(examples, list | tuple)
    facts: Sequence[Facts]
    if in_memory:
        for example in examples:
            _check(example, examples[0], network.classes)
        examples = [separated(example) for example in examples]
        facts = [facts_of(example, network.classes) for example in examples]
    else:
        facts = _looked_through(examples, network.classes)
    if optimiser is None:
        optimiser = create_optimiser(configuration.optimiser, steps=settings.steps)
        last = settings.steps
    else:
        last = None
    if state is None:
        if settings.start_from:
            raise InputError("With config.train.start_from, give a state; `fit` does this for you.")
        state = initial_state(configuration, optimiser, facts[0].channels)
    if class_weight is None:
        class_weight = balanced(np.sum([f.pixels[:-1] for f in facts], 0))
    mesh = data_mesh(settings.batch_size)
    images: AnnotatedImages | UnreadImages
    if in_memory:
        weights = weight_maps(examples, class_weight, configuration.weight_map)
        images = annotated_images(examples, weights, mesh)
    else:
        images = UnreadImages(examples, facts, class_weight, configuration.weight_map)
    train_step = pure_train_step(
        network,
        optimiser,
        tile_side=settings.tile_side,
        augmentation=configuration.augmentation,
        freeze_contracting_path=settings.freeze_contracting_path,
        average_over=settings.average_over,
    )
    at_once = steps_at_once if images.on_device else 1
    blocks = _blocks(int(state.step) + 1, last, at_once, settings.validate_every)
    # It must not hold the examples: their memory is free once the images are there.
    return _train(images, blocks, at_once, state, train_step, configuration, mesh)


def _train(
    images: AnnotatedImages | UnreadImages,
    blocks: Iterator[range],
    at_once: int,
    state: TrainState,
    train_step: TrainStep,
    configuration: Configuration,
    mesh: Mesh | None,
) -> Iterator[Progress]:
    steps = compiled_steps(train_step, at_once, configuration, mesh)
    key = jax.random.key_data(training_key(configuration.train))
    state, key = put_everywhere((state, key), mesh)
    on_device = images if images.on_device else None
    for numbers, given in _given(images, blocks, at_once, configuration, mesh):
        state, values = steps(state, given, np.int32(len(numbers)), key, on_device)
        yield Progress(Steps(numbers, local(values, mesh)), local(state, mesh), configuration.model)


def compiled_steps(
    train_step: TrainStep, at_once: int, configuration: Configuration, mesh: Mesh | None = None
):
    """The steps(state, given, count, key, images) -> (state, values), which use up the state.

    Everything that a step needs is computed in there: its key, crops and learning rate.
    """
    settings = configuration.train
    geometry = _geometry(configuration)

    def steps(state, given, count, key, images):
        key = jax.random.wrap_key_data(key)

        def step(i, before):
            state, values = before
            step_key = jax.random.fold_in(key, state.step + 1)
            batch = given
            if images is not None:
                keys = tile_keys(step_key, settings.batch_size)
                batch = take(images, given[i], keys, configuration.augmentation, **geometry)
                batch = divided(batch, mesh)
            state, metrics = train_step(state, batch, step_key)
            metrics |= getattr(state.opt_state, "hyperparams", {})
            row = jnp.stack([metrics.get(name, jnp.float32(jnp.nan)) for name in METRICS])
            return state, values.at[i].set(row)

        before = state, jnp.zeros((at_once, len(METRICS)), jnp.float32)
        if at_once == 1:  # in a loop a CPU takes up to 1.6 times as long, and rounds otherwise
            return step(0, before)
        return jax.lax.fori_loop(0, count, step, before)

    options = compiler_options(settings.deterministic)
    return jax.jit(steps, donate_argnums=0, compiler_options=options, out_shardings=whole(mesh))


def _blocks(first: int, last: int | None, at_once: int, validate_every: int) -> Iterator[range]:
    """The steps from the first one, divided into blocks that are done in one call."""
    while last is None or first <= last:
        ends = [-(-first // multiple) * multiple for multiple in (at_once, validate_every)]
        end = min(ends if last is None else [*ends, last])
        yield range(first, end + 1)
        first = end + 1


def _given(
    images: AnnotatedImages | UnreadImages,
    blocks: Iterator[range],
    at_once: int,
    configuration: Configuration,
    mesh: Mesh | None,
) -> Iterator[tuple[range, np.ndarray | Crop]]:
    """What each block is trained on: indices [at_once, B] of images on the device, or crops."""
    settings, count = configuration.train, len(images.sizes)
    if images.on_device:
        for numbers in blocks:
            indices = np.zeros((at_once, settings.batch_size), np.int32)
            for row, number in zip(indices, numbers, strict=False):
                row[:] = batch_indices(number - 1, count, settings.batch_size, settings.seed)
            yield numbers, indices
        return
    key = training_key(settings)
    draws = (draw(key, number, count, settings) for numbers in blocks for number in numbers)
    options = _geometry(configuration)
    for drawn, crop in batches(images, draws, configuration.augmentation, mesh=mesh, **options):
        yield range(drawn.step, drawn.step + 1), crop


def _geometry(configuration: Configuration) -> dict[str, int]:
    reach = context(configuration.model.depth)
    return {"tile_side": configuration.train.tile_side, "context": reach}


def initial_state(
    configuration: Configuration, optimiser: optax.GradientTransformation, channels: int
) -> TrainState:
    """The state before the first step, drawn with the configuration's seed."""
    key = jax.random.split(jax.random.key(configuration.train.seed))[0]
    averaged = configuration.train.average_over > 0
    return create_train_state(key, configuration.model, optimiser, channels, averaged=averaged)


def training_key(settings: TrainSettings) -> jax.Array:
    """The random key from which the keys of all steps are derived."""
    return jax.random.split(jax.random.key(settings.seed))[1]


def draw(key: jax.Array, step: int, examples: int, settings: TrainSettings) -> Draw:
    """What is drawn for a step, from 1, for this many examples and the `training_key`."""
    indices = batch_indices(step - 1, examples, settings.batch_size, settings.seed)
    return Draw(step, indices, jax.random.fold_in(key, step))


def _looked_through(examples: Sequence[Example], classes: int) -> Sequence[Facts]:
    """The facts about examples that are not in memory; each is read, unless known."""
    if isinstance(examples, Unread):
        return examples.facts
    first = examples[0]

    def look(number):
        example = examples[number]
        _check(example, first, classes)
        return facts_of(separated(example), classes)

    return [*in_threads(look, range(len(examples)))]


def _check(example: Example, first: Example, classes: int) -> None:
    expected = example.image.shape[:2]
    if not example.labels.shape == example.instances.shape == expected:
        raise InputError(
            f"{example.name}: labels and instances are {example.labels.shape} and "
            f"{example.instances.shape}, expected {expected} like the image"
        )
    if example.channels != first.channels:
        raise InputError(
            f"{example.name}: has {example.channels} channel(s), expected "
            f"{first.channels} as in {first.name}"
        )
    for dtype in (example.labels.dtype, example.instances.dtype):
        if not np.issubdtype(dtype, np.integer):
            raise InputError(f"{example.name}: labels or instances are {dtype}, expected integers")
    for label in (np.min(example.labels), np.max(example.labels)):
        if not IGNORED <= label < classes:
            raise InputError(f"{example.name}: holds class {label}, but the network has {classes}")
    if not are_grey_values(example.image):
        raise InputError(f"{example.name}: holds NaN, infinite or huge pixels")
