"""Runs what README and docs tell the user to type, on tiny made-up images: python -m docs.execute

Each page has a folder of its own. Prints a line for each command, and one for the Python of a page:
it ran, or why it was not run. The exit status is 1 if one of them failed. Ten minutes on two cores.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tifffile

from tests.test_ome_zarr import make_source
from unet_jax.data.synthetic_em import synthetic_em

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "--config.data.images=my/images --config.data.labels=my/masks"
TINY = {
    "model.width": 2,
    "model.depth": 2,
    "train.tile_side": 44,
    "train.steps": 4,
    "train.validate_every": 2,
    "optimiser.warmup_steps": 1,
}
# What a command needs that is not here.
NOT_RUN = {
    "make": "installs",
    "pip install": "installs",
    "python3 -m venv": "installs",
    "activate": "installs",
    "benchmarks": "takes hours",
    "srun": "needs Slurm",
    "SLURM": "needs Slurm",
    "SBATCH": "needs Slurm",
    "dask": "needs a cluster",
    "DASK": "needs a cluster",
    "--scheduler": "needs a cluster",
    "--distributed": "needs two shells",
    "config=em": "downloads",
    "config=dic_hela": "downloads",
    "config=phc_u373": "downloads",
    "runs/small": "downloads",
    "runs/hela": "downloads",
    "runs/painted": "is painted in a viewer",
}
PRELUDE = f"""
import numpy as np, tifffile, unet_jax
image, cells = (tifffile.imread(f"my/{{kind}}/0.tif") for kind in ("images", "masks"))
shipped = unet_jax.named_config
def named_config(name):
    config = shipped(name)
    config.update_from_flattened_dict({TINY!r} | {{"data.mask_rule": "instances"}})
    return config
unet_jax.named_config = named_config
"""


def commands(page):
    """The lines of the page's blocks that are typed into a shell, joined where they go on."""
    blocks = re.findall(r"(?:^    .*\n)+", re.sub(r"```.*?```", "", page, flags=re.S), re.M)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        command = " ".join(line.split("  #")[0].split())
        if re.match(r"(unet-jax|python3?|pip|make|srun|dask|export|#SBATCH|\.) ", command):
            if not re.match(r"unet-jax \w+: ", command):  # what a program has printed
                yield command
                if command.endswith(" --preview"):  # the page says to repeat it without
                    yield command.removesuffix(" --preview")


def tiny(command):
    """The same command on tiny images, as the only one that has been given."""
    command = command.replace(" ...", f" {FOLDERS} --config.data.mask_rule=instances")
    if command.startswith("unet-jax train"):
        if "--config=" not in command:
            command = command.replace("train", "train --config=folder", 1)
        if "--workdir" not in command:
            command += " --workdir=runs/other_run"
        fixed = ("model.width", "model.depth", "train.tile_side") if "start_from" in command else ()
        command += "".join(
            f" --config.{key}={value}" for key, value in TINY.items() if key not in fixed
        )
        if "config=demo" in command:
            command += " --config.data.height=60 --config.data.width=60"
    if command.startswith(("unet-jax eval", "unet-jax export")) and "--overwrite" not in command:
        command += " --overwrite"
    return command


def prepare(folder):
    """Images and masks under the names that the pages use."""
    for kind in ("my", "other"):
        for name in ("images", "masks"):
            (folder / kind / name).mkdir(parents=True)
        for number in range(8):
            image, cells = synthetic_em(number, height=60, width=60)
            tifffile.imwrite(folder / kind / "images" / f"{number}.tif", image)
            tifffile.imwrite(folder / kind / "masks" / f"{number}.tif", cells.astype("uint16"))
    for name in ("new", "new_images"):
        shutil.copytree(folder / "my" / "images", folder / "my" / name)
    shutil.copyfile(folder / "my" / "images" / "0.tif", folder / "my" / "a.tif")
    shutil.copyfile(folder / "my" / "images" / "0.tif", folder / "my" / "new" / "a.tif")
    make_source(folder / "in.ome.zarr", names="zyx", dtype="uint8")
    run = Run(folder)
    for name, seed in (("runs/mine", 0), ("runs/other", 1)):
        run(shlex.split(tiny(f"unet-jax train ... --workdir={name} --config.train.seed={seed}")))
    run(shlex.split(tiny("unet-jax train ... --workdir=runs/five --folds=2")))


def execute(text, run):
    """What is to be run of a page, in order, with how it ended, or why it was not run."""
    for command in commands(text):
        reason = next((why for what, why in NOT_RUN.items() if what in command), None)
        if reason:
            yield command, reason
            continue
        shutil.rmtree(run.folder / "out.ome.zarr", ignore_errors=True)  # one way or the other
        yield command, run(shlex.split(tiny(command)))
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    if code:
        code = re.sub(r"steps=\d+", "steps=101", code)  # more than the warm-up
        shutil.rmtree(run.folder / "out.ome.zarr", ignore_errors=True)
        yield "Python", run([sys.executable, "-W", "ignore", "-c", PRELUDE + code])


class Run:
    """Runs a command in a folder: "ran", or its last line of errors."""

    def __init__(self, folder):
        """Commands are those of the environment that this script runs in."""
        self.folder = folder
        self.failed = 0

    def __call__(self, command):
        """Of `unet-jax` or Python."""
        if command[0] == "unet-jax":
            command = [sys.executable, "-m", "unet_jax", *command[1:]]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if done.returncode == 0:
            return "ran"
        self.failed += 1
        return f"FAILED: {done.stderr.strip().splitlines()[-1]}"


def main():
    """Runs all pages, or those named, and exits with 1 if something failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        usual = Path(scratch, "usual")
        prepare(usual)
        for page in PAGES:
            if len(sys.argv) > 1 and page.name not in sys.argv:
                continue
            text = page.read_text(encoding="utf-8")
            folder = Path(scratch, page.stem)
            shutil.copytree(usual, folder)
            for trained in set(re.findall(r"--workdir=(\S+)", text)):
                shutil.rmtree(folder / trained, ignore_errors=True)
            run = Run(folder)
            print(page.relative_to(ROOT))
            for command, outcome in execute(text, run):
                print(f"  {outcome:<24} {command}", flush=True)
            failed += run.failed
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
