"""Segments images with a trained U-Net; the results open in Fiji, with the pixel size kept.

    python predict.py --checkpoint=runs/mine --images=my/images --output=results
    python predict.py --checkpoint=runs/mine --images='data/*.tif' --write=cells --write=overlay

For each image file: the probability of each class, the most probable class, a number for each cell,
and a picture of the cells over the image. The same command goes on where it was stopped. More
examples:

    --averaging=symmetries        average over 8 turned and mirrored views, 8 times as long
    --step=latest                 the last step instead of the best
    --overwrite                   replace results that are there
    --write=challenge             the file that the ISBI 2012 challenge takes
"""

from absl import flags

from unet_jax import command_line
from unet_jax.overlap_tile import AVERAGING
from unet_jax.prediction.predict_files import predict_files
from unet_jax.prediction.results import KINDS, USUAL_KINDS

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "The --workdir of a training run, such as runs/mine."
)
_IMAGES = flags.DEFINE_string(
    "images", None, "A file, a folder, or a pattern in quotes such as 'data/*.tif'."
)
_OUTPUT = flags.DEFINE_string("output", "results", "Folder to write to.")
_WRITE = flags.DEFINE_multi_enum(
    "write",
    [*USUAL_KINDS],
    KINDS,
    "What to write, given once for each: probabilities (of each class), classes (the most probable "
    "one), cells (a number for each), overlay (a picture), challenge (the probability of cell as "
    "the ISBI 2012 challenge takes it).",
)
_STEP = flags.DEFINE_string(
    "step", "best", "best (by validation), latest, or a step's number such as 4000."
)
_AVERAGING = flags.DEFINE_enum(
    "averaging", "none", AVERAGING, "Views whose results are averaged; takes 7 or 8 times as long."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results that are there.")
flags.mark_flags_as_required(["checkpoint", "images"])
for _name in ("checkpoint", "images", "output"):
    flags.register_validator(_name, lambda path: path != "", "it names no file or folder.")


def _predict():
    predictions = predict_files(
        _CHECKPOINT.value,
        images=_IMAGES.value,
        output=_OUTPUT.value,
        kinds=_WRITE.value,
        step=_STEP.value,
        averaging=_AVERAGING.value,
        overwrite=_OVERWRITE.value,
    )
    return command_line.Outcome(str(predictions), predictions.problems)


if __name__ == "__main__":
    command_line.run(_predict)
