"""A training run: from a configuration to checkpoints, a log and pictures in one folder."""

import contextlib
import itertools
import json
import logging
import shlex
import sys
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from unet_jax import checkpoint
from unet_jax.configuration import check_config, with_added_keys
from unet_jax.data.arrays import batch_indices, take, training_arrays, weight_maps
from unet_jax.data.findings import doubts, duplicates
from unet_jax.data.splits import read_run
from unet_jax.device import is_out_of_memory
from unet_jax.errors import InputError, RunFailed
from unet_jax.example import Example, image_sha256, is_sparse, sha256
from unet_jax.figures import save_examples, save_training_curves
from unet_jax.files.output import unlocking
from unet_jax.loss import mean_over_pixels, weighted_cross_entropy
from unet_jax.metrics.scores import class_scores, em_errors
from unet_jax.model import Model
from unet_jax.network import UNet, context, valid_input_sides
from unet_jax.normalisation import PERCENTILES
from unet_jax.optimiser import create_optimiser
from unet_jax.overlap_tile import predict_tiled
from unet_jax.provenance import versions
from unet_jax.run.guard import TOO_LARGE_STEPS, collapse, is_finite, record_failure
from unet_jax.run.log import RunLog
from unet_jax.run.resume import resume_or_start
from unet_jax.run.start_from import first_state
from unet_jax.run.stop import StopRequest
from unet_jax.train_step import create_train_state, make_train_step, tile_keys
from unet_jax.weight_map import class_weights

logger = logging.getLogger("unet_jax")

# Metrics are fetched this many steps at a time.
_FETCH_EVERY = 10
_EXAMPLES_SHOWN = 3
_PATIENCE_HOURS = 3


def cross_validate(
    config: ConfigDict, workdir: Path, folds: int, *, allow_change: Collection[str] = ()
) -> int:
    """Trains one network for each of so many folds, in `fold0`, `fold1`, ... of `workdir`.

    A fold is a part of the training and validation splits, which are divided anew: its network is
    trained on the other parts and validated on it. The test split stays out of all of them.

    Takes, returns and raises as `fit` does.
    """
    if folds < 2:
        raise InputError(f"--folds must be at least 2, not {folds}.")
    for fold in range(folds):
        print(f"Fold {fold} of 0 to {folds - 1}")
        status = fit(
            config, workdir / f"fold{fold}", fold=fold, folds=folds, allow_change=allow_change
        )
        if status:
            return status
    folder = shlex.quote(str(workdir))
    print(f"The mean over the folds: python eval.py --checkpoint={folder} --split=validation")
    return 0


@unlocking()
def fit(
    config: ConfigDict,
    workdir: Path,
    *,
    fold: int = 0,
    folds: int = 1,
    allow_change: Collection[str] = (),
) -> int:
    """Trains as the configuration says, or goes on exactly where a run in `workdir` stopped.

    Writes `checkpoints/`, `log.jsonl`, `training.png` and `validation.png`; `failure.json`, if a
    step is not finite.

    Args:
      config: see `configs/em.py`.
      workdir: the run's folder.
      fold: which part is left out, see `cross_validate`.
      folds: number of parts; 1 for the splits that the configuration gives.
      allow_change: keys in which the run may differ from what it was, see `resume`.

    Returns:
      The exit status: 0 when the run is finished, 128 + the signal's number when SIGINT or SIGTERM
      stopped it after saving.

    Raises:
      InputError: a configuration, data or folder that cannot be used; nothing has been written.
      RunFailed: the loss is no longer finite, the memory does not suffice, or nothing can be saved;
        the last good step is intact.
    """
    check_config(config)
    settings = config.train
    network = UNet(**config.model)
    stored, splits = read_run(config.data, network.classes, fold=fold, folds=folds)
    channels, scale = _channels(splits), config.data.get("scale", 1.0)
    if allow_change or not checkpoint.saved_steps(workdir):  # else it has been told
        for doubt in duplicates(stored) if fold else doubts(stored, config):
            logger.warning("Warning: %s", doubt)
    present = [e for examples in stored.values() for e in examples]
    digests = {e.name: sha256(e) for e in present}
    image_digests = {e.name: image_sha256(e.image) for e in present}
    del stored, present
    class_weight = class_weights([e.labels for e in splits["train"]], network.classes)
    optimiser, learning_rate = create_optimiser(steps=settings.steps, **config.optimiser)
    initial_key, training_key = jax.random.split(jax.random.key(settings.seed))
    state, started_from = first_state(
        workdir,
        create_train_state(initial_key, network, optimiser, channels),
        start_from=settings.start_from,
        freeze_contracting_path=settings.freeze_contracting_path,
        network=network,
        channels=channels,
        scale=scale,
        held_out={e.name: digests[e.name] for s in ("validation", "test") for e in splits[s]},
    )
    description = {
        "model": config.model.to_dict(),
        "channels": channels,
        "scale": scale,
        "percentiles": PERCENTILES,
        "class_names": config.class_names,
        "class_weights": class_weight.tolist(),
        "splits": {split: [e.name for e in examples] for split, examples in splits.items()},
        "data": digests,
        "images": image_digests,
        "started_from": started_from,
        "fold": fold,
        "folds": folds,
        "config": with_added_keys(config.to_dict()),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
    }
    description = json.loads(json.dumps(description))  # as it will be read: tuples become lists
    state = resume_or_start(workdir, state, description, allow_change)
    start = int(state.step)
    if start == settings.steps:
        folder = shlex.quote(str(workdir))
        print(f"This run is finished. Evaluate it: python eval.py --checkpoint={folder}")
        return 0

    weights = {
        split: weight_maps(splits[split], class_weight, **config.weight_map)
        for split in ("train", "validation")
    }
    examples_at = partial(
        take,
        training_arrays(splits["train"], weights["train"]),
        tile_side=settings.tile_side,
        context=context(network.depth),
        augmentation=config.augmentation.to_dict(),
    )
    train_step = make_train_step(
        network,
        optimiser,
        tile_side=settings.tile_side,
        augmentation=config.augmentation.to_dict(),
        freeze_contracting_path=settings.freeze_contracting_path,
    )
    names = [e.name for e in splits["train"]]
    validation, validation_weights = splits["validation"], weights["validation"]
    del splits, weights  # memory that no step needs

    def batch_of(step):
        """The examples of a step and its random key: pure functions of its number."""
        indices = batch_indices(step - 1, len(names), settings.batch_size, settings.seed)
        return indices, jax.random.fold_in(training_key, step)

    learning_rate = jax.jit(learning_rate)  # else a dozen small computations at each step
    log = RunLog(workdir / "log.jsonl", start)
    began = time.perf_counter() - (log.rows[-1]["seconds"] if log.rows else 0)
    pending = []
    with (
        StopRequest() as stop,
        checkpoint.Saver(workdir) as saver,
        _progress_bar(start, settings.steps) as progress,
        _out_of_memory_explained(network, settings),
    ):
        for step in range(start + 1, settings.steps + 1):
            indices, key = batch_of(step)
            state, metrics = train_step(
                state, examples_at(indices, tile_keys(key, len(indices))), key
            )
            metrics |= {"learning_rate": learning_rate(step - 1)}
            pending.append({"step": step} | metrics)
            validate = step % settings.validate_every == 0 or step == settings.steps
            stop_signal = stop.signal  # looked at once: it may come at any time
            wait = validate or stop_signal or step == start + 1
            if not wait and len(pending) <= _FETCH_EVERY:
                continue

            saver.raise_error()
            seconds = time.perf_counter() - began
            # Without need the device does not wait for the host: it is busy with the newest step.
            ready, pending = (pending, []) if wait else (pending[:-1], pending[-1:])
            rows = _training_rows(ready, seconds)
            finite = list(itertools.takewhile(is_finite, rows))
            log.write(finite)
            if len(finite) < len(rows):
                failed = rows[len(finite)]
                indices, key = batch_of(failed["step"])
                batch = {
                    "seed": settings.seed,
                    "examples": [names[i] for i in indices],
                    "key": jax.random.key_data(key).tolist(),
                }
                saver.wait()
                last_saved = max(checkpoint.saved_steps(workdir), default=None)
                raise record_failure(workdir, failed, log.rows, last_saved, batch)
            progress.set_postfix(loss=f"{rows[-1]['loss']:.3f}", refresh=False)
            progress.update(step - progress.n)
            if step == start + 1:
                compiled_after = seconds
            elif compiled_after is not None:
                per_step = (seconds - compiled_after) / (step - start - 1)
                _warn_if_slow(progress, per_step * (settings.steps - step))
                compiled_after = None

            scores = None
            if validate:
                params = jax.tree.map(lambda x: x[None], state.params)
                # Of scale 1: these examples are rescaled already.
                model = Model(network, params, channels, 1.0, PERCENTILES, description)
                probabilities = [predict_tiled(model, e.image) for e in validation]
                if not all(np.isfinite(p).all() for p in probabilities):
                    raise RunFailed(
                        f"Step {step}: the network's output is no longer finite, at a learning "
                        f"rate of {rows[-1]['learning_rate']:.2g}; {TOO_LARGE_STEPS}."
                    )
                scores = _validation_scores(
                    validation, probabilities, validation_weights, config.class_names
                )
                shown = slice(_EXAMPLES_SHOWN)
                picture = workdir / "validation.png"
                save_examples(picture, validation[shown], probabilities[shown], description)
                log.write([{"step": step, "seconds": round(seconds, 1), "validation": scores}])
                save_training_curves(workdir / "training.png", log.rows)
                warning = collapse(validation, probabilities, config.class_names)
                if warning:
                    progress.write(f"Step {step}: {warning}", file=sys.stderr)
            if validate or stop_signal:
                saver.save(state, description | {"step": step, "validation": scores})
            if stop_signal and step < settings.steps:
                saver.wait()
                progress.close()
                _tell(f"Stopped and saved after step {step}. The same command goes on from there.")
                return 128 + stop_signal
    folder = shlex.quote(str(workdir))
    _tell(f"Finished: {workdir}. Evaluate it: python eval.py --checkpoint={folder}")
    return 128 + stop.signal if stop.signal else 0  # asked to stop, no other fold is begun


def _tell(what: str) -> None:
    """Prints a last word; that nobody reads it any more, like `tee` after Ctrl-C, is no error."""
    with contextlib.suppress(OSError):
        print(what)


def _channels(splits: dict[str, list[Example]]) -> int:
    # The readers see to it that all examples agree.
    image = splits["train"][0].image
    return 1 if image.ndim == 2 else image.shape[-1]


@contextlib.contextmanager
def _out_of_memory_explained(network: UNet, settings: ConfigDict) -> Iterator[None]:
    """Turns the device's error into one line with what was tried and what to try."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        side, batch_size = settings.tile_side, settings.batch_size
        smaller = valid_input_sides(side * 3 // 4, network.depth)[0]
        remedy = f"batch_size={batch_size // 2}" if batch_size > 1 else f"tile_side={smaller}"
        raise RunFailed(
            f"Out of memory with {batch_size} tile(s) of {side}x{side} pixels at a width of "
            f"{network.width}; try --config.train.{remedy}, or a smaller --config.model.width."
        ) from error


def _validation_scores(examples, probabilities, weights, names) -> dict[str, float]:
    """Loss and errors on the validation split."""
    parts = [
        # The soft-max of these logits are the probabilities.
        weighted_cross_entropy(np.log(np.maximum(p, np.finfo(p.dtype).tiny)), e.labels, w)
        for p, e, w in zip(probabilities, examples, weights, strict=True)
    ]
    errors = em_errors(examples, [1 - p[..., 0] for p in probabilities])
    scores = {"loss": float(mean_over_pixels(*np.array(parts).T))}
    scores |= {name: error.value for name, error in errors.items()}
    sparse = is_sparse(examples)
    if sparse:
        scores.pop("rand_error", None)  # of cells, not of strokes
    if sparse or len(names) > 2 or not errors:
        scores["mean_iou"] = class_scores(examples, probabilities, names).mean_iou
    return scores


def _progress_bar(start: int, steps: int) -> tqdm:
    return tqdm(total=steps, initial=start, desc="Training", unit="step", mininterval=1)


def _training_rows(metrics: list[dict], seconds: float) -> list[dict[str, float]]:
    """The log's rows of some steps; waits until the device has done them."""
    return [
        {"step": values.pop("step"), "seconds": round(seconds, 1)}
        | {name: float(value) for name, value in values.items()}
        for values in jax.device_get(metrics)
    ]


def _warn_if_slow(progress: tqdm, seconds: float) -> None:
    if jax.default_backend() == "cpu" and seconds > _PATIENCE_HOURS * 3600:
        progress.write(
            f"On this CPU the run will take about {seconds / 3600:.0f} hours; "
            "configs/em_small.py trains a small network in less than one.",
            file=sys.stderr,
        )
