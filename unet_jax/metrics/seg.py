"""SEG: the segmentation measure of the Cell Tracking Challenge."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class SegScore(NamedTuple):
    """SEG of a sequence of frames.

    Attributes:
      value: the mean of `per_object`, in [0, 1]; the greater the better.
      per_object: for each reference object, by frame and then by id, its intersection over union
        with the result object that covers more than half of it, 0 if there is none.
    """

    value: float
    per_object: tuple[float, ...]


def seg(
    reference: np.ndarray | Sequence[np.ndarray], result: np.ndarray | Sequence[np.ndarray]
) -> SegScore:
    """Mean intersection over union of the reference objects of all frames.

    Result objects without a reference object cost nothing, as a frame may be annotated in part.

    Args:
      reference: frames of integer ids, [S, H, W] or a list of [H, W] that may differ in size;
        0 = no object. Frames without any object do not count.
      result: the same number of frames of the same sizes.

    Raises:
      ValueError: an argument is none of this, or there is no reference object; frames are counted
        from 0.
    """
    if len(reference) != len(result):
        raise ValueError(
            f"The reference has {len(reference)} frames, but the result has {len(result)}."
        )
    per_object = []
    for index, (true, found) in enumerate(zip(reference, result, strict=True)):
        true, found = np.asarray(true), np.asarray(found)
        _check(index, true, found)
        per_object += matches(true, found)[2].tolist()
    if not per_object:
        raise ValueError(f"No reference object in any of the {len(reference)} frames.")
    return SegScore(float(np.mean(per_object)), tuple(per_object))


def _check(index: int, true: np.ndarray, found: np.ndarray) -> None:
    for name, frame in (("reference", true), ("result", found)):
        if frame.ndim != 2:
            raise ValueError(
                f"Frame {index} of the {name} has shape {frame.shape}, expected [height, width]."
            )
        if frame.dtype.kind not in "ui":
            raise ValueError(
                f"Frame {index} of the {name} has dtype {frame.dtype}, expected integer ids."
            )
        if frame.size and frame.min() < 0:
            raise ValueError(
                f"Frame {index} of the {name} holds {frame.min()}, expected ids from 0 on."
            )
    if true.shape != found.shape:
        raise ValueError(
            f"Frame {index} of the reference has shape {true.shape}, but that of the result "
            f"{found.shape}."
        )


def matches(true: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The result object that covers more than half of each reference object of a frame.

    Args:
      true: integer ids, 0 = no object.
      found: the same of the result, of the same shape.

    Returns:
      [N] each: the ids of the reference objects, ascending; the id of the object that matches, 0 if
      there is none; their intersection over union, float64, 0 if there is none.
    """
    # Most pixels may be of no object: they would only be sorted.
    objects = (true > 0) | (found > 0)
    true, found = true[objects], found[objects]
    # Ids may be large: they are numbered anew, and pairs that overlap are counted, without a table.
    ids, true, true_sizes = np.unique(true, return_inverse=True, return_counts=True)
    found_ids, found, found_sizes = np.unique(found, return_inverse=True, return_counts=True)
    pairs, shared = np.unique(true * len(found_ids) + found, return_counts=True)
    true, found = np.divmod(pairs, len(found_ids))

    match = (found_ids[found] > 0) & (2 * shared > true_sizes[true])
    true, found, shared = true[match], found[match], shared[match]
    matched, overlaps = np.zeros(len(ids), found_ids.dtype), np.zeros(len(ids))
    matched[true] = found_ids[found]
    overlaps[true] = shared / (true_sizes[true] + found_sizes[found] - shared)
    return ids[ids > 0], matched[ids > 0], overlaps[ids > 0]
