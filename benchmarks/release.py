"""Makes a network of the package of a run: python -m benchmarks.release runs/nuclei nuclei

Of the best step the parameters alone, rounded to float16 numbers: what is left of the float32 files
is compressed to two thirds. With the settings that `eval.py --tune` has chosen, where it has.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np

from unet_jax import load, pretrained
from unet_jax.checkpoint import best_step
from unet_jax.checkpoint.arrays import write_arrays
from unet_jax.checkpoint.cell_settings import SETTINGS
from unet_jax.checkpoint.integrity import write_manifest
from unet_jax.checkpoint.steps import RECORD, step_folder


def release(run, name):
    """Replaces the network of this name; its card is not touched."""
    if name not in pretrained.NETWORKS:
        raise SystemExit(f"{name}: expected one of {', '.join(pretrained.NETWORKS)}.")
    network = Path(pretrained.__file__).parent / name
    model = load(run)
    folder = step_folder(network, best_step(run))
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    write_arrays(folder / "params", jax.tree.map(_rounded, model.params))
    # It names this machine's folder, and nobody reads it.
    (folder / "params" / "commit_success.txt").unlink()
    (folder / RECORD).write_text(json.dumps(model.record.to_json(), indent=1) + "\n")
    write_manifest(folder)
    (network / SETTINGS).unlink(missing_ok=True)
    if (run / SETTINGS).exists():
        shutil.copyfile(run / SETTINGS, network / SETTINGS)


def _rounded(member):
    return np.asarray(member[0]).astype(np.float16).astype(np.float32)


if __name__ == "__main__":
    release(Path(sys.argv[1]), sys.argv[2])
