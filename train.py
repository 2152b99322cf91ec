"""Trains a U-Net: python train.py --config=configs/em.py --workdir=runs/em.

Any value of the configuration can be given on the command line: --config.model.width=16. The same
command with the same --workdir goes on where a run stopped. --folds=5 trains five networks for a
cross-validation, each on four fifths of the training and validation images.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from unet_jax import command_line
from unet_jax.fit import cross_validate, fit

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Configuration, a Python file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, log and pictures.")
_FOLDS = flags.DEFINE_integer("folds", None, "Number of parts of a cross-validation, 2 or more.")
_ALLOW_CHANGE = flags.DEFINE_multi_string(
    "allow_change",
    [],
    "A key, such as config.augmentation.shift or data, in which the run that is in --workdir may "
    "go on differently; may be given several times.",
)
flags.mark_flags_as_required(["config", "workdir"])
flags.register_validator("workdir", lambda folder: folder != "", "it names no folder.")


def _train():
    workdir = Path(_WORKDIR.value)
    if _FOLDS.value is None:
        return fit(_CONFIG.value, workdir, allow_change=_ALLOW_CHANGE.value)
    return cross_validate(_CONFIG.value, workdir, _FOLDS.value, allow_change=_ALLOW_CHANGE.value)


if __name__ == "__main__":
    command_line.run(_train)
