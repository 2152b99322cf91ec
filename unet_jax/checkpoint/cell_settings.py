"""How the single cells of a run are found: the settings that `eval.py --tune` has chosen."""

import json
from pathlib import Path

from unet_jax.checked_settings import as_dict, read
from unet_jax.checkpoint.integrity import UNREADABLE
from unet_jax.errors import InputError, one_line
from unet_jax.files.untrusted import read_small
from unet_jax.instances import InstanceSettings
from unet_jax.pretrained import run_folder

#: Where it is kept, in the run's folder.
SETTINGS = "instances.json"


def cell_settings(workdir: str | Path) -> InstanceSettings:
    """The settings of `find_cells` that `eval --tune` has chosen for a run, or the defaults.

    Args:
      workdir: the folder of a training run, or a network of the package, which has its settings.

    Raises:
      InputError: the file is damaged.

    Examples:
      >>> cell_settings("nuclei").threshold
      0.5
    """
    file = run_folder(workdir) / SETTINGS
    try:
        record = json.loads(read_small(file))
        values = {name: record[name] for name in as_dict(InstanceSettings())}
        return read(InstanceSettings, values, SETTINGS)
    except FileNotFoundError:
        return InstanceSettings()
    except UNREADABLE as error:
        raise InputError(f"{file}: is damaged ({one_line(error)}); run --tune again.") from None


def is_tuned(workdir: str | Path) -> bool:
    """Whether `eval --tune` has chosen settings for a run."""
    return (run_folder(workdir) / SETTINGS).exists()
