"""A training run: from a configuration to checkpoints, a log and pictures in one folder."""

import contextlib
import logging
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from unet_jax import checkpoint
from unet_jax.configuration import Configuration, read_configuration
from unet_jax.data.findings import doubts, duplicates
from unet_jax.data.splits import read_run
from unet_jax.errors import InputError, RunFailed
from unet_jax.example import Example
from unet_jax.figures import class_colours, save_examples, save_training_curves
from unet_jax.files.output import unlocking
from unet_jax.hardware import is_out_of_memory
from unet_jax.network import valid_input_sides
from unet_jax.optimiser import create_optimiser
from unet_jax.provenance import versions
from unet_jax.run.event_files import EventFiles, check_tensorboard
from unet_jax.run.guard import collapse, record_failure
from unet_jax.run.log import RunLog
from unet_jax.run.pictures import Pictures
from unet_jax.run.processes import Largest, agreed, largest, writes
from unet_jax.run.resume import resume_or_start
from unet_jax.run.start_from import first_state
from unet_jax.run.stop import StopRequest
from unet_jax.run.validation import validate
from unet_jax.run_record import Record, Training
from unet_jax.train_step import TrainState
from unet_jax.training_loop import draw, initial_state, train, training_key
from unet_jax.unread import Examples, digests_of, image_digests, names_of, pixels_of
from unet_jax.weight_map import balanced, weight_maps

logger = logging.getLogger("unet_jax")

_EXAMPLES_SHOWN = 3
_PATIENCE_HOURS = 3


@dataclass(frozen=True)
class Run:
    """How a call of `fit` ended.

    Attributes:
      workdir: the run's folder.
      begun_after: the step that the call continued from; 0 for a new run.
      step: the last step done and saved.
      steps: the number of steps of the whole run.
      stop_signal: the number of the signal that asked to stop, 0 = none.
    """

    workdir: Path
    begun_after: int
    step: int
    steps: int
    stop_signal: int = 0

    @property
    def status(self) -> int:
        """The exit status: 0, or that of a process ended by the signal."""
        return 128 + self.stop_signal if self.stop_signal else 0

    def __str__(self):
        """What to tell the user."""
        evaluate = f"Evaluate it: unet-jax eval --checkpoint={shlex.quote(str(self.workdir))}"
        if self.step < self.steps:
            return (
                f"Stopped and saved after step {self.step}. Run the same command again to continue "
                "from there."
            )
        if self.begun_after == self.steps:
            return f"This run is finished. {evaluate}"
        return f"Finished: {self.workdir}. {evaluate}"


def cross_validate(
    config: Mapping[str, Any] | Configuration,
    workdir: str | Path,
    folds: int,
    *,
    allow_change: Collection[str] = (),
    command: str | None = None,
    tensorboard: bool = False,
) -> list[Run]:
    """Trains one network for each of `folds` folds, in `fold0`, `fold1`, ... of `workdir`.

    A fold is a part of the training and validation splits, which are divided again: its network is
    trained on the other parts and validated on it. The test split is not used in any of them.

    Arguments and errors as for `fit`.

    Returns:
      The folds' runs, up to the first that was asked to stop.
    """
    if folds < 2:
        raise InputError(f"--folds must be at least 2, not {folds}.")
    if checkpoint.saved_steps(Path(workdir)):
        raise InputError(f"{workdir}: holds a run without --folds; give another --workdir.")
    runs: list[Run] = []
    for fold in range(folds):
        logger.info("Fold %d (of 0 to %d)", fold, folds - 1)
        options: dict[str, Any] = {
            "allow_change": allow_change,
            "command": command,
            "tensorboard": tensorboard,
        }
        runs.append(fit(config, Path(workdir, f"fold{fold}"), fold=fold, folds=folds, **options))
        logger.info("%s", runs[-1])
        if runs[-1].stop_signal:
            break
    return runs


@unlocking()
def fit(
    config: Mapping[str, Any] | Configuration,
    workdir: str | Path,
    *,
    fold: int = 0,
    folds: int = 1,
    allow_change: Collection[str] = (),
    command: str | None = None,
    tensorboard: bool = False,
) -> Run:
    """Trains as the configuration says, or continues exactly where a run in `workdir` stopped.

    Writes `checkpoints/`, `log.jsonl`, `training.png` and `validation.png`; also `failure.json`, if
    a step is not finite. SIGINT and SIGTERM end it after the current step, on an accelerator after
    at most ten more, and the last step done is saved. Several devices share each batch, see
    `devices.data_mesh`. With several processes, all call this with the same arguments and files:
    the first one writes, and a signal to any of them ends all after one more step.

    Args:
      config: the settings, such as from `named_config`.
      workdir: the run's folder.
      fold: which part is left out, see `cross_validate`.
      folds: number of parts; 1 for the splits that the configuration gives.
      allow_change: keys in which the run may differ from before, see `resume_or_start`.
      command: what the user typed, for the record.
      tensorboard: whether the log is also written as event files, to `tensorboard/`.

    Raises:
      InputError: the configuration, data or folder cannot be used; nothing has been written.
      RunFailed: the loss is no longer finite, there is not enough memory, or nothing can be saved;
        the last good step is intact.
    """
    workdir, configuration = Path(workdir), read_configuration(config)
    if folds == 1 and checkpoint.saved_steps(workdir / "fold0"):
        raise InputError(f"{workdir}: holds a cross-validation; give another --workdir.")
    settings, names = configuration.train, configuration.class_names
    colours = class_colours(configuration.model.classes, configuration.class_colours)
    with agreed() as same:
        if tensorboard:
            check_tensorboard()
        splits, state, balance, record = _prepared(
            configuration, workdir, fold, folds, allow_change, command
        )
        values = record.to_json()
        same["settings"] = values["config"]
        same["images"] = [values[part] for part in ("data", "splits", "class_weights")]
        same["parameters"] = state
    start = int(state.step)
    if start == settings.steps:
        return Run(workdir, start, start, settings.steps)

    validation, examples = list(splits["validation"]), names_of(splits["train"])
    weights = weight_maps(validation, balance, configuration.weight_map)
    steps = train(
        splits.pop("train"),
        configuration,
        state=state,
        class_weight=balance,
        steps_at_once=_steps_at_once(),
    )
    del splits  # memory that no step needs
    events = EventFiles(workdir / "tensorboard") if tensorboard and writes() else None
    log, compiled = RunLog(workdir / "log.jsonl", start, writes=writes()), None
    signals = Largest()
    with (
        StopRequest() as stop,
        contextlib.closing(events) if events else contextlib.nullcontext(),
        checkpoint.Saver(workdir) as saver,
        Pictures() as pictures,
        tqdm(
            desc="Training",
            unit="step",
            initial=start,
            total=settings.steps,
            mininterval=1,
            disable=not writes(),
        ) as bar,
        _out_of_memory_explained(configuration),
    ):
        for progress in steps:
            step, is_first = progress.step, progress.steps.numbers[0] == start + 1
            is_time = log.add(progress.steps)
            due = step % settings.validate_every == 0 or step == settings.steps
            stop_signal = signals.of_call_before(stop.signal)
            wait = due or bool(stop_signal) or is_first
            if not (wait or is_time):
                continue

            saver.raise_error()
            failed = log.fetch(wait=wait)
            if failed:
                saver.wait()
                drawn = draw(training_key(settings), failed["step"], len(examples), settings)
                raise record_failure(workdir, failed, log.rows, drawn, examples, settings.seed)
            bar.set_postfix(loss=f"{log.rows[-1]['loss']:.3f}", refresh=False)
            bar.update(step - bar.n)
            if is_first:
                compiled = step, log.seconds
            elif compiled:
                per_step = (log.seconds - compiled[1]) / (step - compiled[0])
                _warn_if_slow(per_step * (settings.steps - step))
                compiled = None

            scores = None
            if due:
                row = log.rows[-1]
                found = validate(progress.model(), validation, weights, names, row)
                scores = found.scores
                log.write([{"step": step, "seconds": row["seconds"], "validation": scores}])
                shown = validation[:_EXAMPLES_SHOWN], found.probabilities[:_EXAMPLES_SHOWN]
                if writes():
                    rows = list(log.rows)
                    pictures.draw(partial(_draw, workdir, *shown, names, colours, rows, events))
                if warning := collapse(validation, found.probabilities, names):
                    logger.warning("Step %d: %s", step, warning)
            if (due or stop_signal) and writes():
                saver.save(progress.state, replace(record, step=step, validation=scores))
            if stop_signal:
                break
        saver.wait()
    return Run(workdir, start, step, settings.steps, largest(stop_signal or stop.signal))


def _prepared(
    configuration: Configuration,
    workdir: Path,
    fold: int,
    folds: int,
    allow_change: Collection[str],
    command: str | None,
) -> tuple[dict[str, Examples], TrainState, np.ndarray, Record]:
    """Each split as the network sees it, the state to continue from, class weights, the record."""
    network, settings = configuration.model, configuration.train
    stored, splits = read_run(configuration.data, network.classes, fold=fold, folds=folds)
    if allow_change or not checkpoint.saved_steps(workdir):  # else it has been told
        for doubt in duplicates(stored) if fold else doubts(stored, configuration):
            logger.warning("Warning: %s", doubt)
    digests = {n: d for examples in stored.values() for n, d in digests_of(examples).items()}
    images = dict(pair for examples in stored.values() for pair in image_digests(examples))
    channels = splits["train"][0].channels
    optimiser = create_optimiser(configuration.optimiser, steps=settings.steps)
    state, started_from = first_state(
        workdir,
        initial_state(configuration, optimiser, channels),
        configuration,
        channels=channels,
        held_out={
            name: {digests[name], images[name]}
            for split in ("validation", "test")
            for name in names_of(splits[split])
        },
    )
    balance = balanced(pixels_of(splits["train"], network.classes)[:, :-1].sum(0))
    record = Record(
        network=network,
        channels=channels,
        scale=configuration.data.scale,
        training=Training(
            config=configuration,
            class_weights=balance.tolist(),
            splits={split: names_of(examples) for split, examples in splits.items()},
            data=digests,
            images=images,
            started_from=started_from,
            fold=fold,
            folds=folds,
            command=command,
            versions=versions(),
        ),
    )
    return splits, resume_or_start(workdir, state, record, allow_change), balance, record


def _steps_at_once() -> int:
    """One on a CPU, where more would be slower, and a request to stop would wait for them all."""
    return 1 if jax.default_backend() == "cpu" else 10


def _draw(
    workdir: Path,
    examples: Sequence[Example],
    probabilities: Sequence[np.ndarray],
    class_names: Sequence[str],
    colours: np.ndarray,
    log: list[dict[str, Any]],
    events: EventFiles | None,
) -> None:
    picture = workdir / "validation.png"
    save_examples(picture, examples, probabilities, class_names, colours)
    save_training_curves(workdir / "training.png", log)
    if events:
        events.add(log, picture)


@contextlib.contextmanager
def _out_of_memory_explained(configuration: Configuration) -> Iterator[None]:
    """Turns the device's error into one line with what was tried and what to try."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        network, settings = configuration.model, configuration.train
        side, batch_size = settings.tile_side, settings.batch_size
        smaller = valid_input_sides(side * 3 // 4, network.depth)[0]
        remedy = ""
        if batch_size > 1:
            remedy = f"--config.train.batch_size={batch_size // 2}, or "
        elif smaller < side:
            remedy = f"--config.train.tile_side={smaller}, or "
        raise RunFailed(
            f"Out of memory with {batch_size} tile(s) of {side}x{side} pixels at a width of "
            f"{network.width}; try {remedy}a smaller --config.model.width."
        ) from error


def _warn_if_slow(seconds: float) -> None:
    if jax.default_backend() == "cpu" and seconds > _PATIENCE_HOURS * 3600:
        logger.warning(
            "On this CPU the run will take about %.0f hours; --config=em_small trains a "
            "small network in less than one hour.",
            seconds / 3600,
        )
