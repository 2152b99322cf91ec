"""A training run: from a configuration to checkpoints, a log and pictures in one folder."""

import json
import math
import shlex
import sys
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from unet_jax import checkpoint
from unet_jax.configuration import check_config
from unet_jax.data.arrays import batch_indices, take, training_arrays, weight_maps
from unet_jax.data.splits import read_splits, split_folds
from unet_jax.environment import versions
from unet_jax.errors import InputError, RunFailed
from unet_jax.example import IGNORED, Example, rescaled, separated
from unet_jax.figures import save_examples, save_training_curves
from unet_jax.loss import mean_over_pixels, weighted_cross_entropy
from unet_jax.model import Model
from unet_jax.network import UNet
from unet_jax.normalisation import PERCENTILES
from unet_jax.overlap_tile import predict_tiled
from unet_jax.run_log import RunLog
from unet_jax.scores import em_errors
from unet_jax.stop_request import StopRequest
from unet_jax.training import TrainState, create_optimiser, create_train_state, make_train_step
from unet_jax.weight_map import class_weights

# Metrics are fetched this many steps at a time.
_FETCH_EVERY = 10
_EXAMPLES_SHOWN = 3
_PATIENCE_HOURS = 3
_ADVICE = "Try a lower config.optimiser.peak_learning_rate."


def cross_validate(config: ConfigDict, workdir: Path, folds: int) -> int:
    """Trains one network for each of so many folds, in `fold0`, `fold1`, ... of `workdir`.

    A fold is a part of the training and validation splits, which are divided anew: its network is
    trained on the other parts and validated on it. The test split stays out of all of them.

    Returns and raises as `fit` does.
    """
    if folds < 2:
        raise InputError(f"--folds must be at least 2, not {folds}.")
    for fold in range(folds):
        print(f"Fold {fold} of 0 to {folds - 1}")
        status = fit(config, workdir / f"fold{fold}", fold=fold, folds=folds)
        if status:
            return status
    print(f"The mean over the folds: python eval.py --checkpoint={workdir} --split=validation")
    return 0


def fit(config: ConfigDict, workdir: Path, *, fold: int = 0, folds: int = 1) -> int:
    """Trains as the configuration says, or goes on exactly where a run in `workdir` stopped.

    Writes `checkpoints/`, `log.jsonl`, `training.png` and `validation.png`.

    Args:
      config: see `configs/em.py`.
      workdir: the run's folder.
      fold: which part is left out, see `cross_validate`.
      folds: number of parts; 1 for the splits that the configuration gives.

    Returns:
      The exit status: 0 when the run is finished, 128 + the signal's number when SIGINT or SIGTERM
      stopped it after saving.

    Raises:
      InputError: a configuration, data or folder that cannot be used; nothing has been written.
      RunFailed: the loss is no longer finite.
    """
    check_config(config)
    settings = config.train
    network = UNet(**config.model)
    splits = read_splits(config.data, network.classes)
    if folds > 1:
        splits |= split_folds(splits["train"] + splits["validation"], fold, folds)
    channels = _channels(splits)
    for split in ("train", "validation"):
        if all((e.labels == IGNORED).all() for e in splits[split]):
            raise InputError(f"All pixels of the {split} split are ignored.")
    scale = config.data.get("scale", 1.0)
    splits = {
        split: [separated(rescaled(e, scale)) for e in examples]
        for split, examples in splits.items()
    }
    class_weight = class_weights([e.labels for e in splits["train"]], network.classes)
    optimiser, learning_rate = create_optimiser(steps=settings.steps, **config.optimiser)
    initial_key, training_key = jax.random.split(jax.random.key(settings.seed))
    state = create_train_state(initial_key, network, optimiser, channels)
    description = {
        "model": config.model.to_dict(),
        "channels": channels,
        "scale": scale,
        "percentiles": PERCENTILES,
        "class_names": config.class_names,
        "class_weights": class_weight.tolist(),
        "splits": {split: [e.name for e in examples] for split, examples in splits.items()},
        "fold": fold,
        "folds": folds,
        "config": config.to_dict(),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
    }
    description = json.loads(json.dumps(description))  # as it will be read: tuples become lists
    state = _resume_or_start(workdir, state, description)
    start = int(state.step)
    if start == settings.steps:
        print(f"This run is finished. Evaluate it: python eval.py --checkpoint={workdir}")
        return 0

    weights = {
        split: weight_maps(splits[split], class_weight, **config.weight_map)
        for split in ("train", "validation")
    }
    dataset = training_arrays(splits["train"], weights["train"])
    train_step = make_train_step(
        network, optimiser, tile_side=settings.tile_side, augmentation=config.augmentation.to_dict()
    )

    learning_rate = jax.jit(learning_rate)  # else a dozen small computations at each step
    log = RunLog(workdir / "log.jsonl", start)
    began = time.perf_counter() - (log.rows[-1]["seconds"] if log.rows else 0)
    pending = []
    with StopRequest() as stop, _progress_bar(start, settings.steps) as progress:
        for step in range(start + 1, settings.steps + 1):
            indices = batch_indices(
                step - 1, len(splits["train"]), settings.batch_size, settings.seed
            )
            key = jax.random.fold_in(training_key, step)
            state, metrics = train_step(state, take(dataset, indices), key)
            metrics |= {"learning_rate": learning_rate(step - 1)}
            pending.append({"step": step} | metrics)
            validate = step % settings.validate_every == 0 or step == settings.steps
            stop_signal = stop.signal  # looked at once: it may come at any time
            wait = validate or stop_signal or step == start + 1
            if not wait and len(pending) <= _FETCH_EVERY:
                continue

            seconds = time.perf_counter() - began
            # Without need the device does not wait for the host: it is busy with the newest step.
            ready, pending = (pending, []) if wait else (pending[:-1], pending[-1:])
            rows = _training_rows(ready, seconds)
            log.write(rows)
            _check_finite(rows, workdir)
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
                scores = _validate(
                    model, splits["validation"], weights["validation"], workdir / "validation.png"
                )
                log.write([{"step": step, "seconds": round(seconds, 1), "validation": scores}])
                save_training_curves(workdir / "training.png", log.rows)
            if validate or stop_signal:
                saved = description | {"step": step, "validation": scores}
                checkpoint.save(workdir, state, saved)
            if stop_signal and step < settings.steps:
                progress.close()
                print(f"Stopped and saved after step {step}. The same command goes on from there.")
                return 128 + stop_signal
    print(f"Finished: {workdir}. Evaluate it: python eval.py --checkpoint={workdir}")
    return 0


def _channels(splits: dict[str, list[Example]]) -> int:
    # The readers see to it that all examples agree.
    image = splits["train"][0].image
    return 1 if image.ndim == 2 else image.shape[-1]


def _resume_or_start(workdir: Path, state: TrainState, description: dict) -> TrainState:
    """The latest state of the same run in `workdir`, or `state` with the folder made."""
    steps = checkpoint.saved_steps(workdir)
    if steps:
        saved = checkpoint.describe(workdir, steps[-1])
        for key in ("config", "channels", "fold", "folds", "splits"):
            _check_same(workdir, key, saved[key], description[key])
        state = checkpoint.restore(workdir, steps[-1], state)
        print(f"Going on after step {steps[-1]}.")
        return state
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "log.jsonl").touch()
    except OSError as error:
        raise InputError(f"{workdir}: cannot be written to ({error.strerror}).") from None
    return state


def _check_same(workdir, key, saved, present):
    if isinstance(saved, dict) and isinstance(present, dict) and saved.keys() == present.keys():
        for name in saved:
            _check_same(workdir, f"{key}.{name}", saved[name], present[name])
    elif saved != present:
        raise InputError(
            f"{workdir} holds a run with {key} = {saved}, not {present}; give another --workdir."
        )


def _validate(model, examples, weights, picture: Path) -> dict[str, float]:
    """Loss and errors on the validation split, and a picture of its first examples."""
    probabilities = [predict_tiled(model, e.image) for e in examples]
    if not all(np.isfinite(p).all() for p in probabilities):
        raise RunFailed("The network's output is no longer finite. " + _ADVICE)
    parts = [
        # The soft-max of these logits are the probabilities.
        weighted_cross_entropy(np.log(np.maximum(p, np.finfo(p.dtype).tiny)), e.labels, w)
        for p, e, w in zip(probabilities, examples, weights, strict=True)
    ]
    errors = em_errors(examples, [1 - p[..., 0] for p in probabilities])
    shown = slice(_EXAMPLES_SHOWN)
    save_examples(picture, examples[shown], probabilities[shown])
    loss = mean_over_pixels(*np.array(parts).T)
    return {"loss": float(loss)} | {name: error["value"] for name, error in errors.items()}


def _progress_bar(start: int, steps: int) -> tqdm:
    return tqdm(total=steps, initial=start, desc="Training", unit="step", mininterval=1)


def _training_rows(metrics: list[dict], seconds: float) -> list[dict[str, float]]:
    """The log's rows of some steps; waits until the device has done them."""
    return [
        {"step": values.pop("step"), "seconds": round(seconds, 1)}
        | {name: float(value) for name, value in values.items()}
        for values in jax.device_get(metrics)
    ]


def _check_finite(rows: list[dict], workdir: Path) -> None:
    for row in rows:
        if not math.isfinite(row["loss"] + row["gradient_norm"]):
            steps = checkpoint.saved_steps(workdir)
            kept = f"step {steps[-1]} is the last one saved" if steps else "no step was saved"
            raise RunFailed(
                f"Step {row['step']}: the loss is {row['loss']}, the norm of its gradient "
                f"{row['gradient_norm']}, at a learning rate of "
                f"{row['learning_rate']:.2g}; {kept}. {_ADVICE}"
            )


def _warn_if_slow(progress: tqdm, seconds: float) -> None:
    if jax.default_backend() == "cpu" and seconds > _PATIENCE_HOURS * 3600:
        progress.write(
            f"On this CPU the run will take about {seconds / 3600:.0f} hours; "
            "configs/em_small.py trains a small network in less than one."
        )
