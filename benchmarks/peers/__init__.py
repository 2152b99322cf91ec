"""What users would take instead: the same images, the same minutes of two cores, the same scores.

StarDist (cells only), nnU-Net v2 (its 2-D configuration) and a random forest on filtered images
(what ilastik does), each as its documentation advises and in an environment of its own, which is
made of `NAME.txt` in `runs/peers/environments` where it is not there; beside them this network,
from scratch and begun with one of the package's, and `nuclei` without any training. All have the
same training and validation images; the test scores each once. A minute of two cores is 120 seconds
of the processor's time, whatever else runs. Who gives probabilities has its cells found as ours
are, by settings tuned on the validation images; StarDist has its own way. What is done is kept in
`runs/peers`, not repeated.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np

from benchmarks.nuclei import read_nuclei
from benchmarks.recipes import of_nuclei, planned_steps, steps_in
from benchmarks.side_by_side import rounded
from configs import dic_hela, em_small
from unet_jax import cell_settings, find_cells, load, metrics, predict_tiled
from unet_jax.configuration import read_configuration
from unet_jax.data.splits import read_run
from unet_jax.evaluation.instance_tuning import tune
from unet_jax.example import IGNORED, separated
from unet_jax.metrics.scores import em_errors
from unet_jax.run.fit import fit

_PLACE = Path("runs", "peers")
#: By name: data, contestant, minutes of two cores.
CASES = {
    f"{data}/{contestant}/{minutes}": (data, contestant, minutes)
    for data, contestants in {
        "dsb2018_5": ("ours", "ours from nuclei"),
        "dsb2018_10": ("ours", "ours from nuclei", "stardist", "nnunet", "forest"),
        "dsb2018_40": ("ours", "ours from nuclei", "stardist", "nnunet", "forest"),
        "isbi2012": ("ours", "ours from membranes", "nnunet", "forest"),
        "hela": ("ours", "ours from nuclei", "stardist", "nnunet", "forest"),
    }.items()
    for contestant in contestants
    for minutes in (10, 40)
    if minutes == 10 or (data in ("dsb2018_40", "isbi2012") and contestant in ("ours", "nnunet"))
} | {"dsb2018_40/nuclei as it is/0": ("dsb2018_40", "nuclei as it is", 0)}


def rows(quick, cases=None):
    """One row for each contestant on each set of images."""
    for name in cases or CASES:
        data, contestant, minutes = CASES[name]
        place = _PLACE.with_name("peers_quick" if quick else "peers") / name
        config = _config(data)
        stored, _ = read_run(*_data_of(config))
        examples = {split: list(stored[split]) for split in ("train", "validation")}
        examples["test"] = _last_nuclei() if "dsb2018" in data else list(stored["test"])
        if quick:
            examples = {split: of_split[:2] for split, of_split in examples.items()}
        seconds = 20 if quick else 120 * minutes
        if not minutes:
            done = _as_it_is(place, examples["test"])
        elif contestant.startswith("ours"):
            start_from = contestant.removeprefix("ours").removeprefix(" from ")
            done = _ours(config, start_from, place, seconds, examples, quick)
        else:
            # The peers have no way to leave pixels out, so that such images are left out.
            for split in ("train", "validation"):
                examples[split] = [e for e in examples[split] if (e.labels != IGNORED).all()]
            done = _peer(contestant, place, seconds, examples)
        row = {"data": data, "contestant": contestant, "minutes": minutes} | done
        yield row | _scores(data, place, examples)


def _config(data):
    if data == "isbi2012":
        return em_small.get_config()
    if data == "hela":
        return dic_hela.get_config()
    # One more, which the split leaves out: the last ten are the test.
    config = of_nuclei(_PLACE / "data" / data, int(data.rpartition("_")[2]) + 1)
    config.data.test_fraction = 0.01
    return config


def _data_of(config):
    configuration = read_configuration(config)
    return configuration.data, configuration.model.classes


def _last_nuclei():
    """The last 10 of the 50 images, which no run is given."""
    return sorted(read_nuclei("dsb2018"), key=lambda example: example.name)[-10:]


def _ours(config, start_from, place, seconds, examples, quick):
    """Trains, predicts and says what was done."""
    if start_from:  # its width and depth
        config.model.width, config.model.depth, config.model.dropout_rate = 16, 4, 0.0
    steps = 4 if quick else planned_steps(place) or steps_in(seconds, config)
    config.train.steps, config.train.validate_every = steps, max(1, steps // 10)
    config.optimiser.warmup_steps = min(100, steps - 1)
    config.train.start_from = start_from
    fit(config, place)
    model = load(place)
    for split in ("validation", "test"):
        for number, example in enumerate(examples[split]):
            np.save(
                place / f"{split}_{number:03}_probability.npy",
                1 - predict_tiled(model, example.image)[..., 0],
            )
    return {"did": f"{steps} steps, of which {model.record.step} is the best"}


def _as_it_is(place, test):
    """Has the network `nuclei`, which was trained on none of these images, find the cells."""
    place.mkdir(parents=True, exist_ok=True)
    model, settings = load("nuclei"), cell_settings("nuclei")
    for number, example in enumerate(test):
        probability = 1 - predict_tiled(model, example.image)[..., 0]
        np.save(place / f"test_{number:03}_probability.npy", probability)
        np.save(place / f"test_{number:03}_found.npy", find_cells(probability, settings))
    return {"did": "no training"}


def _peer(contestant, place, seconds, examples):
    """Has it train and predict, and returns what it says of it."""
    said = place / "said.json"
    if not said.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for split, of_split in examples.items():
            for number, example in enumerate(of_split):
                arrays = {"image": example.image}
                if split != "test":
                    labels = separated(example).labels.astype(np.uint8)
                    arrays |= {"labels": labels, "cells": example.instances}
                for kind, array in arrays.items():
                    np.save(place / f"{split}_{number:03}_{kind}.npy", array)
        script = Path(__file__).with_name(f"train_{contestant}.py")
        command = [python_of(contestant), script, place, str(seconds)]
        folders = {f"nnUNet_{x}": str(place / x) for x in ("raw", "preprocessed", "results")}
        result = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | folders
        )
        said.write_text(result.stdout.splitlines()[-1])
    return json.loads(said.read_text())


def python_of(contestant):
    """That of the peer's environment."""
    environment = _PLACE / "environments" / contestant
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not (environment / "complete").exists():
        venv.create(environment, with_pip=True)
        requirements = Path(__file__).with_name(f"{contestant}.txt")
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
        (environment / "complete").touch()
    return python


def _scores(data, place, examples):
    """Of the test images; cells that are not there are found as the validation images tune it."""
    test = examples["test"]

    def read(split, kind):
        files = [place / f"{split}_{n:03}_{kind}.npy" for n in range(len(examples[split]))]
        return [np.load(file) for file in files if file.exists()]

    cells, probabilities = read("test", "found"), read("test", "probability")
    if data != "isbi2012" and not cells:
        settings = tune(examples["validation"], read("validation", "probability")).settings
        cells = [find_cells(probability, settings) for probability in probabilities]
    probabilities = probabilities or [np.float32(array > 0) for array in cells]
    scores = {}
    if cells:
        references = [example.instances for example in test]
        at_half, at_three_quarters = metrics.matching(references, cells, (0.5, 0.75))
        scores = {
            "seg": metrics.seg(references, cells).value,
            "ap_50": at_half.average_precision,
            "ap_75": at_three_quarters.average_precision,
            "f1_50": at_half.f1,
        }
    errors = em_errors(test, probabilities)
    scores |= {name: errors[name].value for name in ("pixel_error", "rand_error")}
    if data == "isbi2012":
        scores["v_rand"] = metrics.v_rand([e.labels for e in test], probabilities).value
    return {name: rounded(value) for name, value in scores.items()}
