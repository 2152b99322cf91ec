"""A tiny run as a process of its own, to be killed, starved and attacked."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = [
    "--config=configs/demo.py",
    "--config.model.width=2",
    "--config.model.depth=2",
    "--config.data.height=60",
    "--config.data.width=60",
    "--config.data.train=(0, 2)",
    "--config.data.validation=(2, 3)",
    "--config.data.test=(3, 5)",
    "--config.train.tile_side=44",
    "--config.optimiser.warmup_steps=1",
]


@pytest.fixture
def start():
    """Starts a program of the project; what still runs at the end of the test is killed."""
    processes = []

    def start(program, *arguments, **settings):
        process = subprocess.Popen(
            [sys.executable, program, *map(str, arguments)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start):
    """Runs a program of the project to its end: exit status, output, errors."""

    def run(program, *arguments, **settings):
        process = start(program, *arguments, **settings)
        output, errors = process.communicate(timeout=600)
        return process.returncode, output, errors

    return run


@pytest.fixture
def folder_data(tmp_path):
    """Options for a run on a folder of 5 images with 0/255 masks, `images` and `masks`."""
    import numpy as np
    import tifffile

    from unet_jax.data.synthetic_em import synthetic_em

    for i in range(5):
        picture, instances = synthetic_em(i, height=60, width=60)
        for name, array in (("images", picture), ("masks", (instances > 0) * np.uint8(255))):
            (tmp_path / name).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / name / f"{i}.tif", array)
    return [
        "--config=configs/folder.py",
        f"--config.data.images={tmp_path / 'images'}",
        f"--config.data.labels={tmp_path / 'masks'}",
        "--config.data.mask_rule=binary",
        *(option for option in TINY if "config.data" not in option and "configs" not in option),
    ]


def rows(workdir):
    """The log of a run without the times."""
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def peak_bytes():
    """The most memory used since `forget_peak`."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def forget_peak():
    with contextlib.suppress(PermissionError):  # then the peak only grows
        Path("/proc/self/clear_refs").write_text("5")
