"""What a report leads with: single cells, classes, or the metrics of the ISBI 2012 challenge."""

from typing import NamedTuple

from unet_jax.evaluation.scoring import Scores

#: Of single cells.
CELLS = ("seg", "ap_50", "ap", "f1", "panoptic_quality", "precision", "recall", "ap_75")
_EM_ORDER = ("rand_error", "warping_error", "warping_error_2016", "pixel_error", "v_rand", "v_info")


class Layout(NamedTuple):
    """What is shown, and how.

    Attributes:
      single_cells: whether the masks say which cell is which.
      cells_first: whether the report leads with SEG and colours cells.
      classes_first: whether it leads with IoU.
      metrics: to show, the most important one first, by which images are ranked.
      printed: those of them in the table that is printed, in its order.
    """

    single_cells: bool
    cells_first: bool
    classes_first: bool
    metrics: list[str]
    printed: list[str]


def layout(scores: Scores, *, classes: int, single_cells: bool, sparse: bool) -> Layout:
    """The layout of what is said of an evaluation.

    Args:
      scores: of all images together.
      classes: how many there are, background included.
      single_cells: whether the masks say which cell is which.
      sparse: whether only strokes are annotated, and no cells.
    """
    cells_first = single_cells and scores.seg is not None
    without_cells = scores.em["rand_error"] is None
    several = classes > 2
    classes_first = (sparse or without_cells or several) and not cells_first
    if sparse:
        metrics = ["mean_iou", "mean_dice", "pixel_error"]
    elif classes_first:
        others = (metric for metric in _EM_ORDER if metric != "pixel_error")
        metrics = ["mean_iou", "mean_dice", "pixel_error", *others, "seg"]
    else:
        metrics = [*CELLS, *_EM_ORDER] if cells_first else [*_EM_ORDER, "seg"]
    if sparse:
        printed = ["pixel_error", "mean_iou", "mean_dice"]
    elif cells_first:
        printed = [*CELLS[:5], "pixel_error", "rand_error", "mean_iou"]
    else:
        em = ["pixel_error", "rand_error", "warping_error", "v_rand", "v_info"]
        printed = [*em, "seg", "mean_iou", "mean_dice"]
    return Layout(single_cells, cells_first, classes_first, metrics, printed)
