"""Scores a trained U-Net on images it has not seen: python eval.py --checkpoint=runs/em."""

from pathlib import Path

from absl import flags

from unet_jax import command_line
from unet_jax.evaluate import evaluate
from unet_jax.overlap_tile import AVERAGING

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The --workdir of a training run.")
_STEP = flags.DEFINE_string("step", "best", "best (by validation), latest, or a step's number.")
_AVERAGING = flags.DEFINE_enum("averaging", "none", AVERAGING, "Views whose results are averaged.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of images; default: the run's test split.")
_LABELS = flags.DEFINE_string("labels", None, "Folder of their masks, paired by stem.")
_MASK_RULE = flags.DEFINE_string(
    "mask_rule", None, "binary, classes or instances; default: as in training."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to; default: CHECKPOINT/evaluation.")
flags.mark_flag_as_required("checkpoint")


def _path(flag):
    return None if flag.value is None else Path(flag.value)


if __name__ == "__main__":
    command_line.run(
        lambda: evaluate(
            Path(_CHECKPOINT.value),
            step=_STEP.value,
            averaging=_AVERAGING.value,
            images=_path(_IMAGES),
            labels=_path(_LABELS),
            mask_rule=_MASK_RULE.value,
            out=_path(_OUT),
        )
    )
