"""The metrics of an evaluation by name: their titles and meanings."""

from typing import NamedTuple


class Metric(NamedTuple):
    """How a metric is presented.

    Attributes:
      title: in the report.
      short: its title in the printed table; "" if it is not printed.
      higher: whether higher values are better.
      meaning: its explanation in the report.
    """

    title: str
    short: str
    higher: bool
    meaning: str


#: In the order of what is printed.
METRICS = {
    "pixel_error": Metric("pixel error", "pixel", False, "1 − F-score of the cells' pixels"),
    "rand_error": Metric(
        "Rand error",
        "Rand",
        False,
        "1 − F-score of pairs of pixels: are those of one cell found in one piece?",
    ),
    "warping_error": Metric(
        "warping error",
        "warping",
        False,
        "share of pixels at which cells are split or merged, wherever exactly membranes run; "
        "setting of 2015. Membrane everywhere would score 0, so read it together with the others",
    ),
    "warping_error_2016": Metric(
        "warping error, 2016",
        "",
        False,
        "the same in the challenge's later setting: thresholds from 0.1 on, a radius of 10 pixels",
    ),
    "v_rand": Metric(
        "V_rand",
        "V_rand",
        True,
        "F-score of pairs of pixels after the membranes are thinned: their width does not matter",
    ),
    "v_info": Metric(
        "V_info",
        "V_info",
        True,
        "how much information true and found cells give about each other, after thinning",
    ),
    "seg": Metric(
        "SEG",
        "SEG",
        True,
        "mean over the annotated cells: intersection over union with the found cell that covers "
        "more than half of it, 0 if there is none",
    ),
    "ap_50": Metric(
        "AP at IoU 0.5",
        "AP50",
        True,
        "cells found / (cells found + false ones + missed ones), where a cell is found if its "
        "intersection over union with one of the result is at least 0.5",
    ),
    "ap_75": Metric("AP at IoU 0.75", "", True, "as AP at IoU 0.5, but with at least 0.75"),
    "ap": Metric("mean AP, IoU 0.5 to 0.95", "AP", True, "mean of the AP at 0.5, 0.55, ..., 0.95"),
    "f1": Metric("F1 at IoU 0.5", "F1", True, "harmonic mean of precision and recall"),
    "precision": Metric(
        "precision at IoU 0.5",
        "",
        True,
        "share of the cells in the result that match an annotated one",
    ),
    "recall": Metric("recall at IoU 0.5", "", True, "share of the annotated cells that are found"),
    "panoptic_quality": Metric(
        "panoptic quality",
        "PQ",
        True,
        "F1 at IoU 0.5 times the mean intersection over union of the cells found",
    ),
    "mean_iou": Metric(
        "mean IoU", "IoU", True, "mean of the IoU of all classes, see the last rows"
    ),
    "mean_dice": Metric(
        "mean Dice", "Dice", True, "mean of the Dice coefficients of all classes, see the last rows"
    ),
}
