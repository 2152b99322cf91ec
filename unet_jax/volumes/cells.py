"""The single cells of a plane that is larger than the memory: `find_cells`, block by block.

Whatever the blocks are, the cells and their numbers are those that `find_cells` finds in the whole
plane. In three steps, none of which holds more than a block or small tables:

1. `find_pieces`, of each block: the pieces of cells in it, before they are grown.
2. `number_pieces`, once a plane: pieces that touch where blocks meet are one cell.
3. `grow_cells`, of each block: its cells, grown as far as the border allows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import ndimage, sparse

from unet_jax.instances import InstanceSettings, erode, fill_holes, nearest_cells

#: The row and the column of a block among the blocks of its plane.
Index = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A rectangle of a plane: pixels from `top` and `left` on, to before `bottom` and `right`."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def common(self, other: "Part") -> "Part":
        """What both have in common, if they overlap."""
        return Part(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )

    def within(self, other: "Part") -> tuple[slice, slice]:
        """Where it lies in an array of the other, which contains it."""
        return (
            slice(self.top - other.top, self.bottom - other.top),
            slice(self.left - other.left, self.right - other.left),
        )


@dataclass(frozen=True)
class Grid:
    """A plane and the blocks it is cut into, all square but where the plane ends.

    Attributes:
      height: of the plane, in pixels.
      width: of the plane, in pixels.
      side: of a block, in pixels.
    """

    height: int
    width: int
    side: int

    @property
    def plane(self) -> Part:
        """All of it."""
        return Part(0, 0, self.height, self.width)

    def blocks_in(self, part: Part) -> list[Index]:
        """The blocks that overlap with a part of the plane, row by row."""
        rows = range(part.top // self.side, math.ceil(part.bottom / self.side))
        columns = range(part.left // self.side, math.ceil(part.right / self.side))
        return list(product(rows, columns))

    def block(self, index: Index, halo: int = 0) -> Part:
        """A block with so many pixels around it, as far as the plane goes."""
        top, left = index[0] * self.side, index[1] * self.side
        end = self.side + halo
        return Part(top - halo, left - halo, top + end, left + end).common(self.plane)


@dataclass(frozen=True)
class Pieces:
    """What has to be known of the pieces of cells in a block, n of them, to number the cells.

    Attributes:
      sizes: int64 [n], their pixels.
      first: int64 [n], their first pixels, counted in the plane row by row.
      top: uint32 [W], the labels in the first row of the block.
      bottom: uint32 [W], in the last row.
      left: uint32 [H], in the first column.
      right: uint32 [H], in the last column.
      background: whether there is any that is not a hole to be filled.
    """

    sizes: np.ndarray
    first: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray
    background: bool


@dataclass(frozen=True)
class Numbers:
    """The numbers of the cells of a plane.

    Attributes:
      tables: uint32 [n + 1] of each block, the cells that its labels 0 ... n stand for, 0 for none.
      count: of cells, which are numbered from 1 on.
      background: whether the plane has any.
    """

    tables: Mapping[Index, np.ndarray]
    count: int
    background: bool


def part_for_pieces(grid: Grid, index: Index, settings: InstanceSettings) -> Part:
    """What `find_pieces` must see."""
    # Holes are judged as in the plane as far as the neck reaches from the block: one that is cut
    # by the end of the part has more than `largest_hole` pixels on its way there.
    return grid.block(index, settings.largest_hole + math.floor(settings.neck))


def part_for_growth(grid: Grid, index: Index, settings: InstanceSettings) -> Part:
    """What `grow_cells` must see."""
    # All cells that a pixel may belong to. Which of several equally near ones it is, is the same
    # in any part: SciPy takes the pixel in the first column, and of these in the first row.
    return grid.block(index, math.floor(settings.neck + settings.border))


def find_pieces(
    background: np.ndarray, grid: Grid, index: Index, settings: InstanceSettings
) -> tuple[np.ndarray, Pieces]:
    """The pieces of cells in a block, before they are grown.

    Args:
      background: bool of `part_for_pieces`, where `probability <= settings.threshold`.
      grid: of the plane.
      index: of the block.
      settings: as for `find_cells`.

    Returns:
      uint32 of the block, its pieces as labels 1 ... n; and what `number_pieces` must know of them.

    Raises:
      ValueError: background of another shape.
    """
    part, block = part_for_pieces(grid, index, settings), grid.block(index)
    _check_shape(background, part)
    mask = fill_holes(background, settings)
    has_background = not mask.all()
    cores = erode(mask, settings) if has_background else mask  # it is too far away to erode
    labels, count = ndimage.label(cores[block.within(part)])
    labels = labels.astype(np.uint32)
    # A label is larger than all before it where it is met first.
    first = np.flatnonzero(np.diff(np.maximum.accumulate(labels.ravel()), prepend=np.uint32(0)))
    rows, columns = np.unravel_index(first, labels.shape)
    return labels, Pieces(
        sizes=np.bincount(labels.ravel(), minlength=count + 1)[1:],
        first=(block.top + rows.astype(np.int64)) * grid.width + block.left + columns,
        top=labels[0].copy(),
        bottom=labels[-1].copy(),
        left=labels[:, 0].copy(),
        right=labels[:, -1].copy(),
        background=has_background,
    )


def number_pieces(
    pieces: Mapping[Index, Pieces], grid: Grid, settings: InstanceSettings
) -> Numbers:
    """The numbers of the cells of a plane, in the order of their first pixels.

    Args:
      pieces: of all blocks of the plane.
      grid: of the plane.
      settings: as for `find_cells`.
    """
    blocks = grid.blocks_in(grid.plane)
    ends = np.cumsum([pieces[index].sizes.size for index in blocks]).tolist()
    start = dict(zip(blocks, [0, *ends], strict=False))
    count, cell = _joined(pieces, start, ends[-1])
    sizes = np.zeros(count, np.int64)
    np.add.at(sizes, cell, np.concatenate([pieces[index].sizes for index in blocks]))
    first = np.full(count, grid.height * grid.width, np.int64)
    np.minimum.at(first, cell, np.concatenate([pieces[index].first for index in blocks]))
    background = any(pieces[index].background for index in blocks)
    if not background:  # it is one cell
        corner = Part(0, 0, math.floor(settings.neck), math.floor(settings.neck) + 1)
        sizes -= _eroded_without_background(corner.common(grid.plane), settings).sum()
    order = np.argsort(first)
    kept = sizes[order] >= max(settings.smallest_cell, 1)
    numbers = np.zeros(count, np.uint32)
    numbers[order] = np.where(kept, np.cumsum(kept), 0)
    tables = {
        index: np.append(np.uint32(0), numbers[cell[start[index] :][: pieces[index].sizes.size]])
        for index in blocks
    }
    return Numbers(tables, int(kept.sum()), background)


def grow_cells(
    labels: np.ndarray,
    numbers: Numbers,
    grid: Grid,
    index: Index,
    settings: InstanceSettings,
) -> np.ndarray:
    """The cells of a block.

    Args:
      labels: uint32 of `part_for_growth`, each block's as from `find_pieces`.
      numbers: of the plane; no tables are needed but those of the blocks in this part.
      grid: of the plane.
      index: of the block.
      settings: as for `find_cells`.

    Returns:
      uint32 of the block: 0 = background, n = cell n of the plane.

    Raises:
      ValueError: labels of another shape.
    """
    part, block = part_for_growth(grid, index, settings), grid.block(index)
    _check_shape(labels, part)
    cores = np.zeros(part.shape, np.uint32)
    for other in grid.blocks_in(part):
        shown = grid.block(other).common(part).within(part)
        cores[shown] = numbers.tables[other][labels[shown]]
    if not numbers.background:
        cores[_eroded_without_background(part, settings)] = 0
    reach = settings.neck + settings.border
    if reach < 1 or not cores.any():
        return cores[block.within(part)]
    cells, distance = nearest_cells(cores)
    return np.where(distance <= reach, cells, 0)[block.within(part)]


def _joined(
    pieces: Mapping[Index, Pieces], start: Mapping[Index, int], total: int
) -> tuple[int, np.ndarray]:
    """How many cells there are, and int [total], which of them each piece belongs to.

    The pieces of a block are numbered from its `start` on.
    """
    pairs: list[np.ndarray] = [np.zeros((2, 0), np.int64)]

    def join(one, edge, other, other_edge):
        touching = np.stack([edge, other_edge]).astype(np.int64)
        touching = np.unique(touching[:, (touching > 0).all(axis=0)], axis=1)  # few of many pixels
        pairs.append(touching + [[start[one] - 1], [start[other] - 1]])

    for row, column in start:
        here, below, beside = (row, column), (row + 1, column), (row, column + 1)
        if below in start:
            join(here, pieces[here].bottom, below, pieces[below].top)
        if beside in start:
            join(here, pieces[here].right, beside, pieces[beside].left)
    ones, others = np.concatenate(pairs, axis=1)
    graph = sparse.coo_matrix((np.ones(ones.size, bool), (ones, others)), shape=(total, total))
    return sparse.csgraph.connected_components(graph, directed=False)


def _eroded_without_background(part: Part, settings: InstanceSettings) -> np.ndarray:
    """bool of a part: what `find_cells` erodes in a plane that is all cell.

    SciPy, asked for the distance to a background that does not exist, takes that to (-1, 0).
    """
    rows, columns = np.ogrid[part.top : part.bottom, part.left : part.right]
    return np.sqrt((rows + 1) ** 2 + columns**2) <= settings.neck


def _check_shape(array: np.ndarray, part: Part) -> None:
    if array.shape != part.shape:
        raise ValueError(f"Expected an array of shape {part.shape} for {part}, not {array.shape}.")
