"""Downloads of published archives that cannot fill the disk."""

from pathlib import Path

import pooch
from tqdm import tqdm

from unet_jax.errors import InputError, one_line


def download(address: str, file: Path, *, max_bytes: int) -> None:
    """Fetches a file by HTTP, with a progress bar.

    Args:
      address: of the file.
      file: where to put it, in an existing folder.
      max_bytes: more is refused as soon as it arrives, whatever the server announced.

    Raises:
      InputError: the server sent more.
      OSError: the download failed.
    """

    class Bounded(tqdm):
        def __bool__(self) -> bool:
            return True  # else pooch reports no progress of a download of unknown length

        def update(self, n: float | None = 1) -> bool | None:
            if file.stat().st_size > max_bytes:
                raise InputError(f"{address}: sends more than {max_bytes:,} bytes; not downloaded.")
            return super().update(n)

    try:
        # pooch replaces the total by what the server announces.
        with Bounded(total=max_bytes, unit="B", unit_scale=True) as progress:
            pooch.HTTPDownloader(progressbar=progress)(address, str(file), None)
    except InputError:
        raise
    except ValueError as error:  # such as a length that is no number
        raise OSError(f"the server's answer makes no sense: {one_line(error)}") from error
