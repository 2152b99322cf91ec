"""Trains a U-Net on images and their masks, or continues where the same command was stopped.

    unet-jax train --config=demo --workdir=runs/demo
    unet-jax train --config=folder --workdir=runs/mine --config.data.mask_rule=binary \\
        --config.data.images=my/images --config.data.labels=my/masks

Any value of the configuration can be set like this; docs/configuration.md explains them all. With
the rest of the command as above:

    --preview                              look at the data first, without training
    --config.data.scale=0.5                half the resolution, for large cells
    --config.train.steps=10000             train longer; a finished run continues
    --config.train.start_from=nuclei       start from what another network has learnt: nuclei or
                                           membranes, which come with unet_jax, or a run's folder
    --folds=5                              a cross-validation: five networks
    --tensorboard                          event files, for tensorboard --logdir runs
    --distributed                          one of several processes, as srun starts them
    --distributed=node1:12345,2,0          the same without Slurm: the address of process 0, 2
                                           processes, this is process 0
"""

import shlex
from pathlib import Path

from absl import flags
from ml_collections import config_flags

import unet_jax
from unet_jax.command_line import Outcome, command
from unet_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    help_string="Configuration: one that comes with unet_jax, such as folder, em or em_small, or a "
    "Python file such as my/config.py.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, log and pictures, such as runs/mine."
)
_FOLDS = flags.DEFINE_integer("folds", None, "Number of parts of a cross-validation, such as 5.")
_PREVIEW = flags.DEFINE_bool(
    "preview", False, "Only show the data: preview.png and preview.txt in --workdir."
)
_ALLOW_CHANGE = flags.DEFINE_multi_string(
    "allow_change",
    [],
    "A key, such as config.augmentation.shift or data, that may change when the run in --workdir "
    "continues; may be given several times.",
)
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Also write the log as event files, to tensorboard/ in --workdir."
)
# Not a string flag, which has to be given a value.
_DISTRIBUTED = flags.DEFINE_flag(
    flags.Flag(
        flags.ArgumentParser(),
        flags.ArgumentSerializer(),
        "distributed",
        None,
        "This is one of several processes that train together, started by Slurm or Open MPI; or "
        "HOST:PORT,COUNT,INDEX: the address of process 0, how many there are, and which this is.",
        boolean=True,
    )
)
flags.mark_flags_as_required(["config", "workdir"])
flags.register_validator("workdir", lambda folder: folder != "", "it must name a folder.")


def main() -> Outcome:
    """Does what the flags say."""
    if _DISTRIBUTED.value in (None, "false"):
        return _run()
    if _PREVIEW.value:
        raise InputError("--preview runs in one process; use it without --distributed.")
    from unet_jax.run.processes import joined, writes  # loads JAX

    # Alone it has the value "true".
    with joined(_DISTRIBUTED.value.removeprefix("true")):
        outcome = _run()
        return outcome if writes() else outcome._replace(text="")


def _run():
    workdir = Path(_WORKDIR.value)
    options = {
        "allow_change": _ALLOW_CHANGE.value,
        "command": command(),
        "tensorboard": _TENSORBOARD.value,
    }
    if _PREVIEW.value:
        if _FOLDS.value is not None:
            raise InputError("--preview shows the same data for all folds; use it without --folds.")
        return Outcome(str(unet_jax.preview(_CONFIG.value, workdir)))
    if _FOLDS.value is None:
        run = unet_jax.fit(_CONFIG.value, workdir, **options)
        return Outcome(str(run), status=run.status)
    status = unet_jax.cross_validate(_CONFIG.value, workdir, _FOLDS.value, **options)[-1].status
    folder = shlex.quote(str(workdir))
    mean = f"For the mean over the folds: unet-jax eval --checkpoint={folder} --split=validation"
    return Outcome("" if status else mean, status=status)
