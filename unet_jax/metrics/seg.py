"""SEG: the segmentation measure of the Cell Tracking Challenge."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class SegScore(NamedTuple):
    """SEG of a sequence of frames.

    Attributes:
      value: the mean of `per_object`, in [0, 1]; higher is better.
      per_object: for each reference object, by frame and then by id, its intersection over union
        with the result object that covers more than half of it, 0 if there is none.
    """

    value: float
    per_object: tuple[float, ...]


def seg(
    reference: np.ndarray | Sequence[np.ndarray], result: np.ndarray | Sequence[np.ndarray]
) -> SegScore:
    """Mean intersection over union of the reference objects of all frames.

    Result objects without a reference object cost nothing, as a frame may be only partly annotated.

    Args:
      reference: frames of integer ids, [S, H, W] or a list of [H, W] that may differ in size;
        0 = no object. Frames without any object do not count.
      result: the same number of frames of the same sizes.

    Raises:
      ValueError: an argument is not as described, or there is no reference object; frames are
        counted from 0.

    Examples:
      >>> seg([np.array([[1, 1, 1, 1, 2]])], [np.array([[5, 5, 5, 0, 7]])]).value
      0.875
    """
    per_object = []
    for true, found in frames(reference, result):
        per_object += matches(true, found)[2].tolist()
    if not per_object:
        raise ValueError(f"No reference object in any of the {len(reference)} frames.")
    return SegScore(float(np.mean(per_object)), tuple(per_object))


def frames(
    reference: np.ndarray | Sequence[np.ndarray], result: np.ndarray | Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pairs of frames; ValueError unless both hold integer ids and match in shape."""
    if len(reference) != len(result):
        raise ValueError(
            f"The reference has {len(reference)} frames, but the result has {len(result)}."
        )
    for index, (true, found) in enumerate(zip(reference, result, strict=True)):
        true, found = np.asarray(true), np.asarray(found)
        _check(index, true, found)
        yield true, found


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
                f"Frame {index} of the {name} holds {frame.min()}, expected ids of 0 or more."
            )
    if true.shape != found.shape:
        raise ValueError(
            f"Frame {index} of the reference has shape {true.shape}, but that of the result "
            f"{found.shape}."
        )


class Overlaps(NamedTuple):
    """The pairs of a reference and a result object of one frame that share pixels.

    Attributes:
      true_ids: of the reference objects, ascending.
      found_ids: of the result objects, ascending.
      true: int [N], the reference object of each pair, by its place in `true_ids`.
      found: int [N], the result object of each pair, by its place in `found_ids`.
      overlap: float64 [N], intersection over union.
      covered: float64 [N], the share of the reference object.
      inside: float64 [N], the share of the result object.
    """

    true_ids: np.ndarray
    found_ids: np.ndarray
    true: np.ndarray
    found: np.ndarray
    overlap: np.ndarray
    covered: np.ndarray
    inside: np.ndarray


def overlapping(true: np.ndarray, found: np.ndarray) -> Overlaps:
    """The overlaps of a frame, integer ids, 0 = no object, and its result, of the same shape."""
    # Most pixels may be of no object: they would only be sorted.
    objects = (true > 0) | (found > 0)
    true, found = true[objects], found[objects]
    true_ids, true, true_sizes = _numbered(true)
    found_ids, found, found_sizes = _numbered(found)
    pairs, shared = np.unique(true * len(found_ids) + found, return_counts=True)
    true, found = np.divmod(pairs, len(found_ids))

    both = (true_ids[true] > 0) & (found_ids[found] > 0)
    true, found, shared = true[both], found[both], shared[both]
    union = true_sizes[true] + found_sizes[found] - shared
    covered = shared / true_sizes[true]
    # Where there are pixels of no object, these are the first of the ids.
    first = [int(len(ids) > 0 and ids[0] == 0) for ids in (true_ids, found_ids)]
    return Overlaps(
        true_ids[first[0] :],
        found_ids[first[1] :],
        true - first[0],
        found - first[1],
        shared / union,
        covered,
        shared / found_sizes[found],
    )


def _numbered(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ids that occur, ascending; for each pixel the place of its id among them; their sizes."""
    if ids.max(initial=0) > 2 * ids.size:  # a table would be large
        return np.unique(ids, return_inverse=True, return_counts=True)
    sizes = np.bincount(ids.astype(np.int64))
    occurring = sizes > 0
    places = np.cumsum(occurring) - 1
    return np.flatnonzero(occurring).astype(ids.dtype), places[ids], sizes[occurring]


def matches(true: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The result object that covers more than half of each reference object of a frame.

    Args:
      true: integer ids, 0 = no object.
      found: the same for the result, of the same shape.

    Returns:
      [N] each: the ids of the reference objects, ascending; the id of the object that matches, 0 if
      there is none; their intersection over union, float64, 0 if there is none.
    """
    pairs = overlapping(true, found)
    match = pairs.covered > 0.5
    ids, value = np.zeros(len(pairs.true_ids), pairs.found_ids.dtype), np.zeros(len(pairs.true_ids))
    ids[pairs.true[match]] = pairs.found_ids[pairs.found[match]]
    value[pairs.true[match]] = pairs.overlap[match]
    return pairs.true_ids, ids, value
