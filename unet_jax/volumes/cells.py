"""The single cells of a plane that is larger than the memory: `find_cells`, block by block.

Whatever the blocks are, the cells and their numbers are those that `find_cells` finds in the whole
plane. There are three steps, none of which holds more than a block or small tables:

1. `find_pieces`, for each block: the basins in it, see `basins`, which are the pieces of cells.
2. `number_pieces`, once for each plane: which of them form one cell, also where blocks meet.
3. `grow_cells`, for each block: its cells, grown as far as the border allows.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import sparse

from unet_jax.basins import REACH, Passes, basins, highest, passes_between
from unet_jax.instances import InstanceSettings, fill_holes, grown, number_cells

#: The row and the column of a block among the blocks of its plane.
Index = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A rectangle of a plane, from `top` and `left` up to, but without, `bottom` and `right`."""

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
        """Its position in an array of the other, which contains it."""
        return (
            slice(self.top - other.top, self.bottom - other.top),
            slice(self.left - other.left, self.right - other.left),
        )


@dataclass(frozen=True)
class Grid:
    """A plane and the blocks it is cut into, all square except where the plane ends.

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
        """A block with `halo` pixels around it, as far as the plane extends."""
        top, left = index[0] * self.side, index[1] * self.side
        end = self.side + halo
        return Part(top - halo, left - halo, top + end, left + end).common(self.plane)


@dataclass(frozen=True)
class Pieces:
    """What must be known about the n pieces of cells in a block to number the cells.

    Attributes:
      sizes: int64 [n], their pixels.
      first: int64 [n], their first pixels, counted in the plane row by row.
      summits: float64 [n], see `basins`.
      exits: int64 [n, 2], row and column in the plane of the pixel of another block through which
        a piece leads to its summit; -1 if it has its own.
      between: int64 [N, 2], pieces of this block that touch, counted from 0.
      passes: float64 [N], the highest pass of each such pair.
      top: float64 [2, W], the labels in the first row of the block, and the heights there.
      bottom: float64 [2, W], in the last row.
      left: float64 [2, H], in the first column.
      right: float64 [2, H], in the last column.
    """

    sizes: np.ndarray
    first: np.ndarray
    summits: np.ndarray
    exits: np.ndarray
    between: np.ndarray
    passes: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class Numbers:
    """The numbers of the cells of a plane.

    Attributes:
      tables: uint32 [n + 1] for each block, the cells that its labels 0 ... n stand for, 0 = none.
      count: the number of cells, which are numbered from 1.
    """

    tables: Mapping[Index, np.ndarray]
    count: int


def part_for_pieces(grid: Grid, index: Index, settings: InstanceSettings) -> Part:
    """The part of the plane that `find_pieces` must see."""
    # Holes are judged as in the plane as far as basins reach from the block: one that is cut by the
    # end of the part has more than `largest_hole` pixels on its way there.
    return grid.block(index, settings.largest_hole + (REACH if settings.neck_ratio else 0))


def part_for_growth(grid: Grid, index: Index, settings: InstanceSettings) -> Part:
    """The part of the plane that `grow_cells` must see."""
    # All cells that a pixel may belong to. Which of several equally near ones it is, is the same
    # in any part: SciPy takes the pixel in the first column, and of these in the first row.
    return grid.block(index, math.floor(settings.border))


def find_pieces(
    background: np.ndarray, grid: Grid, index: Index, settings: InstanceSettings
) -> tuple[np.ndarray, Pieces]:
    """The pieces of cells in a block, before they are grown.

    Args:
      background: bool, for `part_for_pieces`, where `probability <= settings.threshold`.
      grid: of the plane.
      index: of the block.
      settings: as for `find_cells`.

    Returns:
      uint32 of the block, its pieces as labels 1 ... n; and what `number_pieces` must know of them.

    Raises:
      ValueError: background has the wrong shape.
    """
    part, block = part_for_pieces(grid, index, settings), grid.block(index)
    _check_shape(background, part)
    mask = fill_holes(background, settings)
    found = basins(mask, block.within(part), neck_ratio=settings.neck_ratio)
    labels, exits = found.labels, found.exits
    # A label is larger than all before it where it is met first.
    first = np.flatnonzero(np.diff(np.maximum.accumulate(labels.ravel()), prepend=0))
    rows, columns = np.unravel_index(first, labels.shape)

    def edge(line):
        return np.stack([labels[line], found.height[line]])

    return labels.astype(np.uint32), Pieces(
        sizes=found.sizes,
        first=(block.top + rows.astype(np.int64)) * grid.width + block.left + columns,
        summits=found.summits,
        exits=np.where(exits < 0, -1, exits + [part.top, part.left]),
        between=np.stack([found.between.one, found.between.other], -1),
        passes=found.between.height,
        top=edge(np.s_[0]),
        bottom=edge(np.s_[-1]),
        left=edge(np.s_[:, 0]),
        right=edge(np.s_[:, -1]),
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
    counts = [pieces[index].sizes.size for index in blocks]
    start = dict(zip(blocks, np.cumsum([0, *counts]).tolist(), strict=False))
    basin, count = _basins(pieces, start, sum(counts), grid)
    every = [pieces[index] for index in blocks]
    sizes = np.zeros(count, np.int64)
    np.add.at(sizes, basin, np.concatenate([some.sizes for some in every]))
    summits = np.zeros(count)
    np.maximum.at(summits, basin, np.concatenate([some.summits for some in every]))
    between = []
    for one, other, height in _passes(pieces, start):
        pair = basin[one], basin[other]
        apart = pair[0] != pair[1]
        pair = np.minimum(*pair)[apart], np.maximum(*pair)[apart]
        between.append(Passes(*pair, height[apart]))
    numbers = number_cells(summits, sizes, highest(between), settings)
    tables = {
        index: np.append(0, numbers[basin[start[index] :][:n]]).astype(np.uint32)
        for index, n in zip(blocks, counts, strict=True)
    }
    return Numbers(tables, int(numbers.max(initial=0)))


def grow_cells(
    labels: np.ndarray,
    tables: Mapping[Index, np.ndarray],
    grid: Grid,
    index: Index,
    settings: InstanceSettings,
) -> np.ndarray:
    """The cells of a block.

    Args:
      labels: uint32, for `part_for_growth`, each block's from `find_pieces`.
      tables: of the blocks in this part, see `Numbers`.
      grid: of the plane.
      index: of the block.
      settings: as for `find_cells`.

    Returns:
      uint32 of the block: 0 = background, n = cell n of the plane.

    Raises:
      ValueError: labels have the wrong shape.
    """
    part, block = part_for_growth(grid, index, settings), grid.block(index)
    _check_shape(labels, part)
    cells = np.zeros(part.shape, np.uint32)
    for other in grid.blocks_in(part):
        shown = grid.block(other).common(part).within(part)
        cells[shown] = tables[other][labels[shown]]
    return grown(cells, settings)[block.within(part)]


def _basins(
    pieces: Mapping[Index, Pieces], start: Mapping[Index, int], total: int, grid: Grid
) -> tuple[np.ndarray, int]:
    """Int [total], the basin of the plane that each piece belongs to, and the number of basins.

    The pieces of a block are counted from its `start`, basins by their first pixels.
    """
    to = np.arange(total)
    for row, column in start:
        here = grid.block((row, column))
        exits = pieces[row, column].exits
        for index, edge, line, beside in (
            ((row - 1, column), "bottom", exits[:, 0] == here.top - 1, exits[:, 1] - here.left),
            ((row + 1, column), "top", exits[:, 0] == here.bottom, exits[:, 1] - here.left),
            ((row, column - 1), "right", exits[:, 1] == here.left - 1, exits[:, 0] - here.top),
            ((row, column + 1), "left", exits[:, 1] == here.right, exits[:, 0] - here.top),
        ):
            leads = np.flatnonzero(line & (exits[:, 0] >= 0))
            if leads.size:
                labels = getattr(pieces[index], edge)[0, beside[leads]].astype(np.int64)
                to[start[row, column] + leads] = start[index] + labels - 1
    graph = sparse.coo_matrix((np.ones(total, bool), (np.arange(total), to)), shape=(total, total))
    count, basin = sparse.csgraph.connected_components(graph, directed=False)
    first = np.full(count, grid.height * grid.width, np.int64)
    np.minimum.at(first, basin, np.concatenate([pieces[index].first for index in start]))
    return np.argsort(np.argsort(first))[basin], count


def _passes(pieces: Mapping[Index, Pieces], start: Mapping[Index, int]) -> Iterator[Passes]:
    """The passes between pieces, within blocks and across them, counted from a block's `start`."""

    def edge(index, name):
        labels, height = getattr(pieces[index], name)
        return np.where(labels > 0, labels + start[index], 0), height

    for row, column in start:
        here, below, beside = (row, column), (row + 1, column), (row, column + 1)
        one, other = (pieces[here].between + start[here]).T
        yield Passes(one, other, pieces[here].passes)
        if below in start:
            yield passes_between(*edge(here, "bottom"), *edge(below, "top"))
        if beside in start:
            yield passes_between(*edge(here, "right"), *edge(beside, "left"))


def _check_shape(array: np.ndarray, part: Part) -> None:
    if array.shape != part.shape:
        raise ValueError(f"Expected an array of shape {part.shape} for {part}, not {array.shape}.")
