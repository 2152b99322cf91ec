"""Fine-tuning: a network starts from what another one has learnt, instead of at random."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from unet_jax import checkpoint
from unet_jax.configuration import Configuration
from unet_jax.errors import InputError
from unet_jax.model import Model
from unet_jax.pretrained import run_folder
from unet_jax.run_record import StartedFrom, Training
from unet_jax.train_step import TrainState

logger = logging.getLogger("unet_jax")

# The only layers whose parameters depend on the images' channels and on the classes.
_FIRST, _LAST = "contracting1_conv1", "classes"


def first_state(
    workdir: Path,
    state: TrainState,
    configuration: Configuration,
    *,
    channels: int,
    held_out: Mapping[str, set[str]],
) -> tuple[TrainState, StartedFrom | None]:
    """The state before the first step, and the run it is taken from.

    All layers are taken over, except the first convolution if the number of channels differs, and
    the last one if the number of classes differs; layers that stay random are reported. The
    optimiser starts afresh. A run that has been saved no longer needs the one it started from.

    Args:
      workdir: the run's folder.
      state: the random state.
      configuration: of this run.
      channels: of its images.
      held_out: of its validation and test images by name: the digests of each example, and of its
        image alone.

    Returns:
      The state, and, for the checkpoint, where it comes from; None = started at random.

    Raises:
      InputError: there is no usable checkpoint, or its network does not fit.
    """
    steps = checkpoint.saved_steps(workdir)
    if steps:
        training = checkpoint.describe(workdir, steps[-1]).training
        return state, training.started_from if training else None
    given, scale = configuration.train.start_from, configuration.data.scale
    if not given:
        return state, None
    source = run_folder(given)
    model, new = _source_model(source, configuration, channels)
    params = {
        name: layer if name in new else {key: x[0] for key, x in model.params[name].items()}
        for name, layer in state.params.items()
    }
    step = model.record.step if model.record else checkpoint.best_step(source)
    taken = len(params) - len(new)
    logger.info("Starting from %s, step %d: %d layers are taken over.", given, step, taken)
    for name, reason in new.items():
        logger.info("  %s starts with random weights: %s.", name, reason)
    if model.scale != scale:
        logger.info(
            "  it was trained at %g times the resolution of its images, this run uses %g "
            "(config.data.scale); this works best if objects have the same size in pixels in both.",
            *(model.scale, scale),
        )
    seen = _seen(model.training, held_out)
    if seen:
        logger.info(
            "  it has already seen %d of the %d images that this run validates or tests on (such "
            "as %s), so their scores will be too good.",
            *(len(seen), len(held_out), seen[0]),
        )
    average = state.average and jax.tree.map(jnp.copy, params)
    return dataclasses.replace(state, params=params, average=average), StartedFrom(
        checkpoint=given,
        step=step,
        manifest_sha256=checkpoint.manifest_sha256(source, step),
        new_layers=list(new),
        seen=seen,
    )


def _source_model(
    source: Path, configuration: Configuration, channels: int
) -> tuple[Model, dict[str, str]]:
    """The network of the run to start from, and which layers do not fit, with the reason."""
    members = checkpoint.load_members(source)
    if len(members) > 1:
        raise InputError(
            f"{source}: holds a cross-validation, whose networks cannot be merged into one; start "
            f"from one of them, such as {source / 'fold0'}."
        )
    (model,) = members
    theirs, ours = model.network, configuration.model
    if (theirs.width, theirs.depth) != (ours.width, ours.depth):
        raise InputError(
            f"{source}: its network has width {theirs.width} and depth {theirs.depth}, but this "
            f"run's has {ours.width} and {ours.depth}, so its layers do not fit; give "
            f"--config.model.width={theirs.width} --config.model.depth={theirs.depth}."
        )
    new: dict[str, str] = {}
    if model.channels != channels:
        new[_FIRST] = f"it takes {model.channels} channel(s), these images have {channels}"
    if theirs.classes != ours.classes:
        new[_LAST] = f"it has {theirs.classes} classes, this run has {ours.classes}"
    if configuration.train.freeze_contracting_path and _FIRST in new:
        raise InputError(
            f"{source}: {new[_FIRST]}, so {_FIRST} starts with random weights and has to be "
            "trained; leave config.train.freeze_contracting_path at False."
        )
    return model, new


def _seen(training: Training | None, held_out: Mapping[str, set[str]]) -> list[str]:
    """Those of our images that are among the training and validation images of a checkpoint."""
    if training is None:
        return []
    names = {*training.splits["train"], *training.splits["validation"]}
    digests = {of[name] for of in (training.data, training.images) for name in names & of.keys()}
    return [name for name, own in held_out.items() if own & digests]
