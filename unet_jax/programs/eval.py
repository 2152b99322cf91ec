"""Scores a trained U-Net on images it has not seen, and writes a report for a browser.

    unet-jax eval --checkpoint=runs/mine --tune
    unet-jax eval --checkpoint=runs/mine

The first command, run once, uses the validation images to choose how single cells are found in
the probabilities. More examples:

    --averaging=none --averaging=symmetries           what averaging over turned images gains
    --images=other/images --labels=other/masks        images other than those the run left out
    --split=validation                                cross-validation: each part by its network
    --step=latest                                     the last step instead of the best
    --overwrite                                       replace an existing report

To compare several runs on the same images, on one page:

    unet-jax eval --compare=runs/mine --compare=runs/other
"""

from pathlib import Path

from absl import flags

import unet_jax
from unet_jax.command_line import Outcome, command
from unet_jax.errors import InputError

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "The --workdir of a training run, such as runs/mine; or nuclei or membranes, which come with "
    "unet_jax.",
)
_COMPARE = flags.DEFINE_multi_string(
    "compare",
    [],
    "Give it twice or more, instead of --checkpoint: the runs to compare on the images that all of "
    "them left out.",
)
_STEP = flags.DEFINE_string(
    "step", "best", "best (by validation), latest, or a step's number such as 4000."
)
_AVERAGING = flags.DEFINE_multi_enum(
    "averaging",
    ["none"],
    ["none", "rotations", "symmetries"],
    "The views whose results are averaged; if given several times, the report compares them.",
)
_TUNE = flags.DEFINE_bool("tune", False, "Use the validation images to choose how cells are found.")
_SPLIT = flags.DEFINE_enum(
    "split",
    "held_out",
    ["held_out", "validation", "test"],
    "held_out: the test images of the run's configuration; validation: the images used to choose "
    "its step, and the left-out parts of a cross-validation; test: the ISBI 2012 challenge's own "
    "test stack.",
)
_IMAGES = flags.DEFINE_string(
    "images", None, "Folder of images to score instead of a split, such as my/images."
)
_LABELS = flags.DEFINE_string(
    "labels", None, "Folder of their masks under the same names, such as my/masks."
)
_MASK_RULE = flags.DEFINE_string(
    "mask_rule",
    None,
    "binary, classes or instances; default: as in training. With another rule than in training no "
    "number is ignored.",
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "Folder to write to; default: evaluation, or comparison, in the folder of the (first) run.",
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace an existing evaluation or comparison, or existing settings."
)
flags.register_multi_flags_validator(
    ["checkpoint", "compare"],
    lambda given: (given["checkpoint"] is None) == bool(given["compare"]),
    "give --checkpoint, or --compare for each of several runs.",
)
for _name in ("checkpoint", "images", "labels", "out"):
    flags.register_validator(_name, lambda path: path != "", "it must name a file or folder.")


def _path(flag):
    return None if flag.value is None else Path(flag.value)


def _options():
    """The options that evaluation and comparison share."""
    return {
        "step": _STEP.value,
        "split": _SPLIT.value,
        "images": _path(_IMAGES),
        "labels": _path(_LABELS),
        "mask_rule": _MASK_RULE.value,
        "out": _path(_OUT),
        "overwrite": _OVERWRITE.value,
    }


def main() -> Outcome:
    """Does what the flags say."""
    if _COMPARE.value:
        return _compare()
    workdir = Path(_CHECKPOINT.value)
    if _TUNE.value:
        for flag in (_SPLIT, _IMAGES, _LABELS, _MASK_RULE, _OUT):
            if flag.present:
                raise InputError(
                    f"--tune takes the validation images of the run; leave out --{flag.name}."
                )
        if len(_AVERAGING.value) > 1:
            raise InputError("--averaging can be given only once with --tune.")
        tuning = unet_jax.tune_instances(
            workdir, step=_STEP.value, averaging=_AVERAGING.value[0], overwrite=_OVERWRITE.value
        )
        return Outcome(str(tuning))
    evaluation = unet_jax.evaluate(
        workdir,
        averaging=_AVERAGING.value,
        **_options(),
        command=command(),
    )
    return Outcome(str(evaluation))


def _compare():
    if _TUNE.value:
        raise InputError("--tune works on a single run; use it with --checkpoint.")
    if len(_AVERAGING.value) > 1:
        raise InputError("--averaging can be given only once for a comparison.")
    comparison = unet_jax.compare(
        _COMPARE.value,
        averaging=_AVERAGING.value[0],
        **_options(),
    )
    return Outcome(str(comparison))
