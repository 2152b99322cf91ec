import dataclasses
from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from unet_jax.instances import InstanceSettings, find_cells, nearest_cells
from unet_jax.volumes.cells import (
    Grid,
    Part,
    Pieces,
    find_pieces,
    grow_cells,
    number_pieces,
    part_for_growth,
    part_for_pieces,
)

NOTHING_ELSE = InstanceSettings(
    threshold=0.5, largest_hole=0, neck_ratio=0.0, smallest_cell=0, border=0.0
)


def picture(*rows):
    """1 where cell is."""
    return np.array([[1.0 if c == "#" else 0.0 for c in row] for row in rows])


def cells_by_block(probability, settings, side):
    """What `find_cells` returns, and how many cells it is said to be."""
    grid = Grid(*probability.shape, side)
    blocks = grid.blocks_in(grid.plane)
    background = probability <= settings.threshold
    labels = np.full(probability.shape, 99, np.uint32)
    pieces = {}
    for index in blocks:
        seen = background[part_for_pieces(grid, index, settings).within(grid.plane)]
        found = find_pieces(seen, grid, index, settings)
        labels[grid.block(index).within(grid.plane)], pieces[index] = found
    numbers = number_pieces(pieces, grid, settings)
    cells = np.full(probability.shape, 99, np.uint32)
    for index in blocks:
        part = part_for_growth(grid, index, settings)
        near = {other: numbers.tables[other] for other in grid.blocks_in(part)}
        cells[grid.block(index).within(grid.plane)] = grow_cells(
            labels[part.within(grid.plane)],
            near,
            grid,
            index,
            settings,
        )
    return cells, numbers.count


def assert_as_in_the_plane(probability, settings, sides):
    whole = find_cells(probability, settings)
    for side in sides:
        cells, count = cells_by_block(probability, settings, side)
        np.testing.assert_array_equal(cells, whole, err_msg=f"{settings}, blocks of {side}")
        assert cells.dtype == np.uint32 and count == whole.max()
    return whole


@pytest.mark.parametrize("seed", range(10))
def test_cells_and_numbers_are_those_of_the_whole_plane(seed):
    rng = np.random.default_rng(seed)
    most = 0
    for _ in range(20):
        grey = ndimage.gaussian_filter(
            rng.normal(size=rng.integers(20, 64, 2)), rng.uniform(0.5, 3)
        )
        grey = (grey - grey.min()) / (grey.max() - grey.min())
        settings = InstanceSettings(
            threshold=float(rng.choice([0.3, 0.4, 0.5, 0.6])),
            largest_hole=int(rng.choice([0, 1, 5, 20])),
            neck_ratio=float(rng.choice([0.0, 0.5, 0.75, 0.9, 1.0])),
            smallest_cell=int(rng.choice([0, 1, 6, 30])),
            border=float(rng.choice([0.0, 0.7, 1.0, 3.0, 8.0])),
        )
        most = max(most, assert_as_in_the_plane(grey, settings, (7, 13, 31)).max())
    assert most > 10


@pytest.mark.parametrize("seed", range(4))
def test_cells_of_planes_larger_than_what_a_block_sees(seed):
    """Cells of many sizes, some larger than anything is called narrow, and their clusters."""
    rng = np.random.default_rng(seed)
    grey = np.zeros((300, 260))
    rows, columns = np.indices(grey.shape)
    for radius in (90, *rng.uniform(3, 30, 40)):
        y, x = rng.uniform(0, 300), rng.uniform(0, 260)
        grey[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = 1
    grey *= 0.5 + 0.5 * rng.random(grey.shape)  # holes too
    settings = InstanceSettings(
        threshold=0.52,
        neck_ratio=rng.uniform(0.6, 0.95),
        smallest_cell=9,
        largest_hole=8,
        border=2.0,
    )
    found = assert_as_in_the_plane(grey, settings, (64, 97, 150)).max()
    assert found > find_cells(grey, dataclasses.replace(settings, neck_ratio=0.0)).max()


def test_plateaus_and_ties_are_taken_alike_in_blocks():
    """Equal squares in a lattice, with equal bridges; and a plane without any background."""
    lattice = np.kron(np.eye(2)[[0, 1, 0, 1]][:, [0, 1, 0, 1]], np.ones((30, 30)))
    lattice[14:16] = 1
    for neck in (0.2, 0.75, 1.0):
        settings = dataclasses.replace(NOTHING_ELSE, neck_ratio=neck)
        assert_as_in_the_plane(lattice, settings, (17, 30, 64))
        assert assert_as_in_the_plane(np.ones((70, 130)), settings, (19, 64)).max() == 1


def test_blocks_may_be_smaller_than_what_they_must_see():
    rng = np.random.default_rng(0)
    grey = ndimage.gaussian_filter(rng.normal(size=(24, 31)), 1.2)
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    settings = InstanceSettings(largest_hole=20, neck_ratio=0.8, smallest_cell=2, border=6.0)
    assert assert_as_in_the_plane(grey, settings, (1, 3, 5)).max() > 3


def test_cells_equally_near_are_taken_alike_in_blocks():
    cores = np.zeros((41, 41))
    cores[::4, ::4] = 1  # between four of them each, and between two
    cores[2::8, 2::8] = 1
    settings = dataclasses.replace(NOTHING_ELSE, border=3.0)
    assert assert_as_in_the_plane(cores, settings, (5, 9, 11, 64)).max() > 100


@pytest.mark.parametrize("seed", range(3))
def test_of_equally_near_cells_the_first_column_counts_then_the_first_row(seed):
    """No matter what else is in the array: so a block finds the same as the plane."""
    rng = np.random.default_rng(seed)
    cores = np.where(rng.random((19, 23)) < 0.06, np.arange(1, 19 * 23 + 1).reshape(19, 23), 0)
    rows, columns = np.nonzero(cores)
    order = np.lexsort((rows, columns))
    cells, distances = nearest_cells(cores)
    ties = 0
    for row, column in np.ndindex(cores.shape):
        squares = (rows[order] - row) ** 2 + (columns[order] - column) ** 2
        nearest = order[squares.argmin()]  # the first of the smallest
        assert cells[row, column] == cores[rows[nearest], columns[nearest]]
        assert distances[row, column] == np.sqrt(squares.min())
        ties += (squares == squares.min()).sum() > 1
    assert ties > 30


def test_the_pieces_of_a_block():
    probability = picture(
        *("........", "..#..#..", "..##.##.", "....#.#.", "..#.####", "..##....", "...##.#.")
    )
    grid = Grid(7, 8, 4)
    background = probability <= 0.5
    labels, pieces = find_pieces(background[:, 4:][:4], grid, (0, 1), NOTHING_ELSE)
    np.testing.assert_array_equal(labels, [[0] * 4, [0, 1, 0, 0], [0, 1, 1, 0], [2, 0, 1, 0]])
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(pieces.sizes, [4, 1])
    np.testing.assert_array_equal(pieces.first, [8 + 5, 3 * 8 + 4])
    for edge, expected in (
        (pieces.top, [0, 0, 0, 0]),
        (pieces.bottom, [2, 0, 1, 0]),
        (pieces.left, [0, 0, 0, 2]),
        (pieces.right, [0, 0, 0, 0]),
    ):
        np.testing.assert_array_equal(edge, [expected, [0] * 4])
    assert not pieces.passes.size and (pieces.exits == -1).all()


def test_a_block_of_background_has_no_pieces():
    grid = Grid(4, 8, 4)
    labels, pieces = find_pieces(np.ones((4, 4), bool), grid, (0, 0), NOTHING_ELSE)
    assert not labels.any() and not pieces.sizes.size and not pieces.first.size
    probability = picture("....##..", "....##..", ".......#", ".......#")
    assert assert_as_in_the_plane(probability, NOTHING_ELSE, [4]).max() == 2
    assert assert_as_in_the_plane(0 * probability, NOTHING_ELSE, [4]).max() == 0


def pieces_of(labels, sizes, first):
    labels = np.array(labels, np.uint32)
    edges = [
        np.stack([edge, 0.0 * edge])
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    ]
    n = len(sizes)
    return Pieces(
        np.array(sizes, np.int64),
        np.array(first, np.int64),
        np.zeros(n),
        np.full((n, 2), -1),
        np.zeros((0, 2), np.int64),
        np.zeros(0),
        *edges,
    )


def test_pieces_that_touch_where_blocks_meet_are_numbered_by_their_first_pixel():
    # 1 1 | 0 3   The left cell goes around by the lower blocks; across corners nothing touches.
    # 0 0 | 0 3
    # ----+----
    # 2 0 | 0 3
    # 0 4 | 3 3
    pieces = {
        (0, 0): pieces_of([[1, 1], [0, 0]], [2], [0]),
        (0, 1): pieces_of([[0, 1], [0, 1]], [2], [3]),
        (1, 0): pieces_of([[1, 0], [0, 2]], [1, 1], [8, 13]),
        (1, 1): pieces_of([[0, 1], [1, 1]], [3], [11]),
    }
    numbers = number_pieces(pieces, Grid(4, 4, 2), NOTHING_ELSE)
    tables = {(0, 0): [0, 1], (0, 1): [0, 2], (1, 0): [0, 3, 2], (1, 1): [0, 2]}
    assert numbers.count == 3
    for index, table in tables.items():
        np.testing.assert_array_equal(numbers.tables[index], table)
    # The cell of 6 pixels in three blocks is kept, those of 2 and 1 are not.
    numbers = number_pieces(
        pieces, Grid(4, 4, 2), dataclasses.replace(NOTHING_ELSE, smallest_cell=6)
    )
    tables = {(0, 0): [0, 0], (0, 1): [0, 1], (1, 0): [0, 0, 1], (1, 1): [0, 1]}
    assert numbers.count == 1
    for index, table in tables.items():
        np.testing.assert_array_equal(numbers.tables[index], table)


def test_first_pixels_and_numbers_in_a_plane_of_ten_thousand_million_pixels():
    grid = Grid(100_000, 100_000, 50_000)
    labels, pieces = find_pieces(
        np.zeros((8, 8), bool), Grid(100_000, 100_000, 8), (12_499, 3), NOTHING_ELSE
    )
    assert pieces.first.dtype == np.int64 and pieces.first == [99_992 * 100_000 + 24]
    nothing = np.zeros((2, 2), int)
    ends = {
        (0, 0): pieces_of(nothing, [], []),
        (0, 1): pieces_of(nothing, [5], [50_000]),
        (1, 0): pieces_of(nothing, [2**33], [99_990 * 100_000]),
        (1, 1): pieces_of(nothing, [5], [60_000 * 100_000]),
    }
    settings = dataclasses.replace(NOTHING_ELSE, smallest_cell=5)
    numbers = number_pieces(ends, grid, settings)
    found = {index: table.tolist() for index, table in numbers.tables.items()}
    assert found == {(0, 0): [0], (0, 1): [0, 1], (1, 0): [0, 3], (1, 1): [0, 2]}


def test_cells_grow_from_one_block_into_another():
    settings = dataclasses.replace(NOTHING_ELSE, border=2.0)
    grid = Grid(1, 12, 4)
    numbers = number_pieces(
        {
            (0, 0): pieces_of([[0, 0, 0, 1]], [1], [3]),
            (0, 1): pieces_of([[0, 0, 0, 0]], [], []),
            (0, 2): pieces_of([[1, 0, 2, 0]], [1, 1], [8, 10]),
        },
        grid,
        settings,
    )
    assert part_for_growth(grid, (0, 1), settings) == Part(0, 2, 1, 10)
    labels = np.array([[0, 1, 0, 0, 0, 0, 1, 0]], np.uint32)
    cells = grow_cells(labels, numbers.tables, grid, (0, 1), settings)
    np.testing.assert_array_equal(cells, [[1, 1, 2, 2]])


@pytest.mark.parametrize("turned", range(4))
@pytest.mark.parametrize("step", [(0, 1), (1, 1)])
def test_holes_that_reach_over_blocks_are_filled_by_their_size_in_the_plane(step, turned):
    """Straight and diagonal ones, at every distance from where blocks meet."""
    for size, before, neck in product((5, 6), range(8), (0.0, 0.7)):
        probability = np.ones((21, 21))
        line = np.arange(size)
        probability[4 + step[0] * (before + line), 3 + before + line] = 0
        hole = np.rot90(probability == 0, turned)
        probability[20] = 0  # so that there is background
        settings = dataclasses.replace(NOTHING_ELSE, largest_hole=5, neck_ratio=neck)
        cells = assert_as_in_the_plane(np.rot90(probability, turned), settings, [7])
        if neck == 0:
            assert (cells[hole] > 0).all() == (size == 5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (9, 12)])
def test_a_plane_that_is_all_cell_and_one_that_has_holes_only(shape):
    size = shape[0] * shape[1]
    for neck, border, smallest in product((0.0, 0.5, 1.0), (0.0, 2.5), (0, size, size + 1)):
        settings = InstanceSettings(neck_ratio=neck, smallest_cell=smallest, border=border)
        cells = assert_as_in_the_plane(np.ones(shape), settings, (3, 7, 64))
        assert cells.max() == (smallest <= size)
        holes = np.ones(shape)
        holes[-1, -1] = 0
        for largest in (0, 1):
            settings = dataclasses.replace(settings, largest_hole=largest, smallest_cell=1)
            assert_as_in_the_plane(holes, settings, (3, 7, 64))


def test_an_array_of_the_wrong_part_is_refused():
    grid = Grid(20, 30, 8)
    settings = InstanceSettings(largest_hole=4, border=2.0)
    assert part_for_pieces(grid, (0, 1), settings) == Part(0, 4, 12, 20)
    with pytest.raises(ValueError, match=r"shape \(12, 16\) for Part.*, not \(8, 8\)"):
        find_pieces(np.zeros((8, 8), bool), grid, (0, 1), settings)
    assert part_for_growth(grid, (2, 3), settings) == Part(14, 22, 20, 30)
    numbers = number_pieces({(0, 0): pieces_of([[0]], [], [])}, Grid(1, 1, 1), settings)
    with pytest.raises(ValueError, match=r"shape \(6, 8\) for Part.*, not \(8, 8\)"):
        grow_cells(np.zeros((8, 8), np.uint32), numbers.tables, grid, (2, 3), settings)
