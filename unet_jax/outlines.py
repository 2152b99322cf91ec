"""The outlines of cells: polygons that follow the edges of pixels, with their holes."""

from typing import NamedTuple

import numpy as np

from unet_jax.compiled import compiled


class Polygon(NamedTuple):
    """A piece of a cell, connected by the sides of pixels.

    The corner (x, y) is the upper left corner of the pixel in row y and column x, so that a cell of
    one pixel has an area of 1. No ring touches itself or repeats its first corner at its end; two
    rings may touch at a corner.

    Attributes:
      outline: int32 [N, 2], the corners (x, y), clockwise as seen on screen.
      holes: int32 [N, 2] for each hole, counterclockwise.
    """

    outline: np.ndarray
    holes: list[np.ndarray]


def outlines(cells: np.ndarray) -> dict[int, list[Polygon]]:
    """The polygons of each cell, which contain exactly its pixels.

    Args:
      cells: int [H, W], the cell each pixel belongs to, 0 = none.

    Returns:
      The pieces of each cell, by its number; a cell that `find_cells` has found has one.
    """
    from skimage.measure import label  # slow to load

    if not cells.any():
        return {}
    pieces = label(cells, connectivity=1)
    corners, ends, starts = _trace(np.pad(pieces.astype(np.int32), 1))
    numbers, rings = cells[tuple(starts.T)], pieces[tuple(starts.T)]
    polygons: dict[int, list[Polygon]] = {int(number): [] for number in np.unique(numbers)}
    of_piece: dict[int, Polygon] = {}
    # A piece is met first at its outline.
    for ring, number, piece in zip(np.split(corners, ends[:-1]), numbers, rings, strict=True):
        outer, *pockets = sorted(_simple(ring), key=_area, reverse=True)
        if piece in of_piece:
            of_piece[piece].holes.extend([outer, *pockets])
        else:
            of_piece[piece] = Polygon(outer, pockets)
            polygons[int(number)].append(of_piece[piece])
    return polygons


@compiled
def _trace(pieces):
    """Corners of all rings, one after the other, where each ends, and a pixel inside of its piece.

    The walk goes along the sides of a piece's pixels, which lie to the right, and where two of
    these touch at a corner only, it stays with the same one.
    """
    rows, columns = pieces.shape  # with a margin of zeros
    down, right = (0, 1, 0, -1), (1, 0, -1, 0)  # along the top, the right, the bottom, the left
    is_walked = np.zeros(pieces.shape, np.bool_)  # along the top
    corners = [(0, 0)]
    ends = [0]
    starts = [(0, 0)]
    for row in range(1, rows - 1):
        for column in range(1, columns - 1):
            piece = pieces[row, column]
            if piece == 0 or pieces[row - 1, column] == piece or is_walked[row, column]:
                continue
            y, x, side = row, column, 0
            while not (side == 0 and is_walked[y, x]):
                if side == 0:
                    is_walked[y, x] = True
                left = (side + 3) % 4
                ahead, beside = y + down[side], x + right[side]
                # The pixel ahead, and the one to the left of it, across the side.
                outer, outside = ahead + down[left], beside + right[left]
                if pieces[ahead, beside] == piece and pieces[outer, outside] != piece:
                    y, x = ahead, beside
                    continue
                # The corner at the end of the side; the margin is not counted.
                corners.append((x - (side > 1), y - (side in (0, 3))))
                if pieces[ahead, beside] == piece:
                    y, x, side = outer, outside, left
                else:
                    side = (side + 1) % 4
            ends.append(len(corners) - 1)
            starts.append((row - 1, column - 1))
    return np.array(corners)[1:], np.array(ends)[1:], np.array(starts)[1:]


def _simple(ring):
    """The ring divided into ones that do not touch themselves."""
    corners = [*map(tuple, ring.tolist())]
    if len({*corners}) == len(corners):
        return [ring]
    parts: list[list[tuple[int, int]]] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}  # of each corner in the path
    for corner in corners:
        if corner in place:
            parts.append(path[place[corner] :])
            del path[place[corner] :]
            for passed in parts[-1]:
                del place[passed]
        place[corner] = len(path)
        path.append(corner)
    return [np.array(part, ring.dtype) for part in [*parts, path]]


def _area(ring):
    """Positive for rings that go clockwise."""
    (x, y), (next_x, next_y) = ring.T, np.roll(ring, -1, 0).T
    return (x * next_y - next_x * y).sum()
