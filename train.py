"""Trains a U-Net: python train.py --config=configs/em.py --workdir=runs/em.

Any value of the configuration can be given on the command line: --config.model.width=16. The same
command with the same --workdir goes on where a run stopped.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from unet_jax import command_line
from unet_jax.fit import fit

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Configuration, a Python file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, log and pictures.")
flags.mark_flags_as_required(["config", "workdir"])

if __name__ == "__main__":
    command_line.run(lambda: fit(_CONFIG.value, Path(_WORKDIR.value)))
