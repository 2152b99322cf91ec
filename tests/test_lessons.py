"""What stands behind the napari plugin and needs no viewer."""

import dataclasses

import numpy as np
import pytest

import unet_jax
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.errors import InputError, RunFailed
from unet_jax.example import IGNORED
from unet_jax.viewer.lessons import Desk, Learnt, View, learn, start_process
from unet_jax.viewer.planes import Planes
from unet_jax.viewer.segmentation import Found, segment

VIEW = slice(0, 70), slice(0, 60)


@pytest.fixture(scope="module")
def stack():
    """Made-up micrographs, uint8 [2, 70, 60]."""
    return np.stack([example.image for example in synthetic_examples(0, 2, height=70, width=60)])


@pytest.mark.parametrize(
    ("data", "is_rgb", "sentence"),
    [
        (np.zeros((4, 5, 3)), True, "is an RGB image, but this network takes 1 channel"),
        (np.zeros((4, 5), complex), False, "holds complex128, expected real numbers"),
        (np.zeros((0, 5)), False, "has no planes of pixels"),
        (np.zeros(5), False, "has no planes of pixels"),
    ],
)
def test_layers_that_a_network_cannot_take(data, is_rgb, sentence):
    with pytest.raises(InputError, match=sentence):
        Planes("layer", data, is_rgb).check(channels=1)


def test_a_plane_that_is_not_finite():
    with pytest.raises(InputError, match="holds NaN"):
        Planes("layer", np.full((2, 4, 5), np.nan), False).read((1,))


def test_planes_of_rgb_and_of_stacks():
    rgb = Planes("layer", np.zeros((2, 4, 5, 3)), True)
    assert rgb.shape == (2, 4, 5) and rgb.read((1,)).shape == (4, 5, 3)
    stack = Planes("layer", np.zeros((2, 3, 4, 5)), False)
    assert [*stack.indices()][:4] == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_segmentation_is_that_of_the_library_and_begins_in_view(stack):
    model, settings = unet_jax.load("membranes"), unet_jax.cell_settings("membranes")
    image = np.tile(stack[0], (10, 1))
    view = slice(600, 700), slice(0, 60)
    results = [*segment(model, settings, Planes("layer", image, False), [()], view)]
    *parts, found = results
    assert isinstance(found, Found) and len(parts) > 1
    assert parts[0].rows.stop > 600 > parts[-1].rows.start
    expected = unet_jax.predict_tiled(model, image)
    for part in parts:
        np.testing.assert_array_equal(part.probabilities, expected[part.rows, part.columns])
    cells = unet_jax.find_cells(1 - expected[..., 0], settings)
    np.testing.assert_array_equal(found.cells, cells)


class Huge:
    """50,000 x 50,000 pixels that are never all in memory."""

    shape, dtype = (50_000, 50_000), np.dtype(np.uint8)

    def __getitem__(self, part):
        rows, columns = (
            np.arange(*line.indices(side)) for line, side in zip(part, self.shape, strict=True)
        )
        return ((rows[:, None] // 8 + columns // 8) % 256).astype(np.uint8)


def test_of_a_huge_plane_what_is_in_view_is_segmented():
    model, settings = unet_jax.load("membranes"), unet_jax.cell_settings("membranes")
    view = slice(30_000, 30_100), slice(100, 250)
    (part,) = segment(model, settings, Planes("huge", Huge(), False), [()], view)
    assert part.probabilities.shape == (100, 150, 2)


class HugeWithoutValues(Huge):
    dtype = np.dtype(np.float32)

    def __getitem__(self, part):
        return np.full(super().__getitem__(part).shape, np.nan, np.float32)


def test_a_huge_plane_without_values_is_refused():
    model, settings = unet_jax.load("membranes"), unet_jax.cell_settings("membranes")
    with pytest.raises(InputError, match="huge: holds NaN"):
        next(segment(model, settings, Planes("huge", HugeWithoutValues(), False), [()], VIEW))


def strokes_on(stack):
    """A stroke of each class on the second plane."""
    strokes = np.full(stack.shape[1:], IGNORED, np.int32)
    strokes[5, 5:25], strokes[15, 5:25] = 0, 1
    return {(1,): strokes}


def test_a_process_learns_until_the_desk_is_closed(stack):
    desk = Desk(Planes("layer", stack, False), View((0,), *VIEW), start_process())
    lessons = learn("membranes", 2, desk)
    first = next(lessons)
    expected = unet_jax.predict_tiled(unet_jax.load("membranes"), stack[0])
    np.testing.assert_allclose(first.probabilities, expected, atol=1e-5)
    desk.painted, desk.view = strokes_on(stack), View((1,), *VIEW)
    second = next(lessons)
    assert isinstance(second, Learnt) and second.view == desk.view
    expected = unet_jax.predict_tiled(second.model, stack[1])
    np.testing.assert_allclose(second.probabilities, expected, atol=1e-5)
    desk.close()
    assert not any(lessons)
    assert desk.process.returncode < 0


def test_a_process_that_ends_by_itself_is_reported(stack):
    desk = Desk(Planes("layer", stack, False), View((0,), *VIEW), start_process())
    lessons = learn("membranes", 2, desk)
    next(lessons)
    desk.process.stdin.write(b"no pickle")
    with pytest.raises(RunFailed, match="stopped unexpectedly"):
        list(lessons)


def test_what_the_process_refuses_is_said_here(stack):
    model = dataclasses.replace(unet_jax.load("membranes"), scale=0.5)
    desk = Desk(Planes("layer", stack, False), View((0,), *VIEW), start_process())
    with pytest.raises(InputError, match="sees images at 0.5 times their resolution"):
        next(learn(model, 2, desk))


def test_what_cannot_be_learnt_from_is_refused(stack, tmp_path):
    desk = Desk(Planes("layer", stack, False), View((0,), *VIEW), start_process())
    with pytest.raises(InputError, match="no checkpoint"):
        next(learn(str(tmp_path), 2, desk))
    rgb = Desk(Planes("layer", np.zeros((9, 9, 3)), True), View((), *VIEW), start_process())
    with pytest.raises(InputError, match="is an RGB image"):
        next(learn("membranes", 2, rgb))
