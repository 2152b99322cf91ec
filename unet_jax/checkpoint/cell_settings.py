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


def read_settings(workdir: str | Path) -> tuple[InstanceSettings, bool]:
    """The settings that `eval.py --tune` has chosen for a run, or the defaults, and if it has.

    The networks of the package come with their settings.

    Raises:
      InputError: the file is damaged.
    """
    file = run_folder(workdir) / SETTINGS
    try:
        record = json.loads(read_small(file))
        values = {name: record[name] for name in as_dict(InstanceSettings())}
        return read(InstanceSettings, values, SETTINGS), True
    except FileNotFoundError:
        return InstanceSettings(), False
    except UNREADABLE as error:
        raise InputError(f"{file}: is damaged ({one_line(error)}); run --tune again.") from None
