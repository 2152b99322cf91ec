"""Segments images with a trained U-Net; the results open in Fiji, with the pixel size kept.

    unet-jax predict --checkpoint=runs/mine --images=my/images --output=results
    unet-jax predict --checkpoint=runs/mine --images='data/*.tif' --write=cells --write=overlay

For each image file, it writes the probability of each class, the most probable class, a number for
each cell, and a picture of the cells over the image. If it was stopped, run the same command again
to continue. More examples:

    --averaging=symmetries        average over 8 turned and mirrored views, takes 8 times as long
    --step=latest                 the last step instead of the best
    --overwrite                   replace existing results
    --write=table                 a CSV table of the cells: area, shape, brightness ...
    --write=rois                  the outlines of the cells for the ROI Manager of ImageJ (Fiji)
    --write=geojson               the same for QuPath, with the measurements
    --write=uncertainty           how certain the network is; with --averaging=symmetries
    --rank                        which images to annotate next; with --averaging=symmetries
    --write=challenge             the file that the ISBI 2012 challenge takes

A volume in OME-Zarr, of any size, is written as another one (docs/large.md):

    unet-jax predict --checkpoint=runs/mine --images=in.ome.zarr --output=out.ome.zarr --workers=4
    --scheduler=tcp://host:8786   use the workers of a Dask cluster
    --part=3/40                   only part 3 of parts 0 to 39; finish with a call without --part
"""

import contextlib
import re

from absl import flags

import unet_jax
from unet_jax.command_line import Outcome
from unet_jax.errors import InputError

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "The --workdir of a training run, such as runs/mine; or nuclei or membranes, which come with "
    "unet_jax.",
)
_IMAGES = flags.DEFINE_string(
    "images", None, "A file, a folder, or a pattern in quotes such as 'data/*.tif'."
)
_OUTPUT = flags.DEFINE_string(
    "output", "results", "Folder to write to; for a volume, the OME-Zarr, such as out.ome.zarr."
)
_WRITE = flags.DEFINE_multi_enum(
    "write",
    ["probabilities", "classes", "cells", "overlay"],
    [
        *("probabilities", "classes", "cells", "overlay"),
        *("table", "rois", "geojson", "uncertainty", "challenge"),
    ],
    "What to write; give the flag once for each: probabilities (of each class), classes (the most "
    "probable one), cells (a number for each), overlay (a picture), table (measurements of the "
    "cells), rois (outlines for ImageJ), geojson (outlines for QuPath), uncertainty (entropy and "
    "spread of several views or networks), challenge (the probability of cell as the ISBI 2012 "
    "challenge takes it). For a volume: classes and cells by default; probabilities and table on "
    "request.",
)
_STEP = flags.DEFINE_string(
    "step", "best", "best (by validation), latest, or a step's number such as 4000."
)
_AVERAGING = flags.DEFINE_enum(
    "averaging",
    "none",
    ["none", "rotations", "symmetries"],
    "The views whose results are averaged; takes 7 or 8 times as long.",
)
_RANK = flags.DEFINE_bool(
    "rank", False, "Write a page that shows which images, and which parts, to annotate next."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace existing results.")
_WORKERS = flags.DEFINE_integer(
    "workers", None, "For a volume: number of processes that share the work.", lower_bound=1
)
_SCHEDULER = flags.DEFINE_string(
    "scheduler", None, "For a volume: the address of a Dask cluster, such as tcp://host:8786."
)
_PART = flags.DEFINE_string(
    "part", None, "For a volume: which part to predict, such as 3/40 of the parts 0 to 39."
)
_BLOCK_SIDE = flags.DEFINE_integer(
    "block_side",
    None,
    "For a volume: side of a block in pixels; a smaller one needs less memory.",
    lower_bound=1,
)
flags.mark_flags_as_required(["checkpoint", "images"])
for _name in ("checkpoint", "images", "output"):
    flags.register_validator(_name, lambda path: path != "", "it must name a file or folder.")


def main() -> Outcome:
    """Does what the flags say."""
    if _OUTPUT.value.rstrip("/").endswith(".zarr"):
        return _predict_volume()
    for flag in (_WORKERS, _SCHEDULER, _PART, _BLOCK_SIDE):
        if flag.value is not None:
            raise InputError(
                f"--{flag.name} is only for volumes, with an --output such as out.ome.zarr."
            )
    predictions = unet_jax.predict_files(
        _CHECKPOINT.value,
        images=_IMAGES.value,
        output=_OUTPUT.value,
        kinds=_WRITE.value,
        step=_STEP.value,
        averaging=_AVERAGING.value,
        overwrite=_OVERWRITE.value,
        rank=_RANK.value,
    )
    return Outcome(str(predictions), predictions.problems)


def _predict_volume():
    if _OVERWRITE.value:
        raise InputError("--overwrite does not replace a volume; give another --output.")
    if _RANK.value:
        raise InputError("--rank ranks image files, not the images of a volume.")
    if _WORKERS.value and _SCHEDULER.value:
        raise InputError("Give only one of --workers and --scheduler.")
    part = None
    if _PART.value is not None:
        if not re.fullmatch(r"\d+/\d+", _PART.value):
            raise InputError(f"--part: expected a part such as 3/40, not {_PART.value!r}.")
        index, count = _PART.value.split("/")
        part = int(index), int(count)
    model = unet_jax.load(_CHECKPOINT.value, _STEP.value)
    with _client() as client:
        prediction = unet_jax.predict_volume(
            model,
            _IMAGES.value,
            _OUTPUT.value,
            write=_WRITE.value if _WRITE.present else ("classes", "cells"),
            averaging=_AVERAGING.value,
            settings=unet_jax.cell_settings(_CHECKPOINT.value),
            block_side=_BLOCK_SIDE.value,
            client=client,
            part=part,
        )
    return Outcome(str(prediction), prediction.problems)


def _client():
    """A context with the client of a cluster, if one is requested, or None."""
    if not (_WORKERS.value or _SCHEDULER.value):
        return contextlib.nullcontext()
    try:
        from unet_jax.volumes.cluster import local_workers, workers_of
    except ModuleNotFoundError as error:
        raise InputError(
            f"--workers and --scheduler need Dask ({error}): pip install 'unet-jax[cluster]'"
        ) from error
    return local_workers(_WORKERS.value) if _WORKERS.value else workers_of(_SCHEDULER.value)
