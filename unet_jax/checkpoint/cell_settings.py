"""How the single cells of a run are found: what `eval.py --tune` has chosen."""

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
    """What `eval.py --tune` has chosen for a run, or else the defaults; and whether it has.

    Those of a network of the package come with it.

    Raises:
      InputError: what is there is damaged.
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
