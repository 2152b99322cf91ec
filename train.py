"""Trains a U-Net: python train.py --config=configs/em.py --workdir=runs/em.

Any value of the configuration can be given on the command line: --config.model.width=16. The same
command with the same --workdir goes on where a run stopped. --folds=5 trains five networks for a
cross-validation, each on four fifths of the training and validation images. --preview trains
nothing, but writes what the network would see and a table of what was found in the data, to be
looked at first: preview.png and preview.txt in --workdir.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from unet_jax import command_line
from unet_jax.errors import InputError
from unet_jax.fit import cross_validate, fit
from unet_jax.preview import preview

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Configuration, a Python file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, log and pictures.")
_FOLDS = flags.DEFINE_integer("folds", None, "Number of parts of a cross-validation, 2 or more.")
_PREVIEW = flags.DEFINE_bool(
    "preview", False, "Train nothing, show the data: preview.png and preview.txt in --workdir."
)
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
    if _PREVIEW.value:
        if _FOLDS.value is not None:
            raise InputError(
                "--preview shows the same data for all folds; give it without --folds."
            )
        return preview(_CONFIG.value, workdir)
    if _FOLDS.value is None:
        return fit(_CONFIG.value, workdir, allow_change=_ALLOW_CHANGE.value)
    return cross_validate(_CONFIG.value, workdir, _FOLDS.value, allow_change=_ALLOW_CHANGE.value)


if __name__ == "__main__":
    command_line.run(_train)
