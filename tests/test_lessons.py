"""What stands behind the napari plugin and needs no viewer."""

import dataclasses

import numpy as np
import pytest

import unet_jax
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.errors import InputError, RunFailed
from unet_jax.example import IGNORED
from unet_jax.viewer.lessons import Desk, Learnt, View, learn, start_process, strokes_of
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
        (np.zeros((4, 5, 3)), True, r"takes 1 channel\(s\), not 3; Layer > Split RGB"),
        (np.zeros((4, 5), complex), False, "holds complex128, expected real numbers"),
        (np.zeros((0, 5)), False, "has no planes of pixels"),
        (np.zeros(5), False, "has no planes of pixels"),
    ],
)
def test_layers_that_a_network_cannot_take(data, is_rgb, sentence):
    with pytest.raises(InputError, match=sentence):
        Planes("layer", data, is_rgb).check(unet_jax.load("membranes"))


def test_a_network_of_several_channels():
    model = dataclasses.replace(unet_jax.load("membranes"), channels=3)
    Planes("layer", np.zeros((4, 5, 3)), True).check(model)
    for data, is_rgb, own in ((np.zeros((4, 5, 4)), True, 4), (np.zeros((4, 5)), False, 1)):
        with pytest.raises(InputError, match=rf"takes 3 channel\(s\), not {own}\.$"):
            Planes("layer", data, is_rgb).check(model)


def test_a_plane_that_is_not_finite():
    with pytest.raises(InputError, match="layer, plane 1: holds NaN"):
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
    (error,) = segment(model, settings, Planes("huge", HugeWithoutValues(), False), [()], VIEW)
    assert isinstance(error, InputError) and str(error).startswith("huge: holds NaN")


def test_planes_that_cannot_be_segmented_do_not_end_it(stack):
    model, settings = unet_jax.load("membranes"), unet_jax.cell_settings("membranes")
    planes = np.stack([stack[0].astype(np.float32)] * 3)
    planes[0, 3, 3], planes[1, 3, 3] = np.nan, 1e20
    results = [*segment(model, settings, Planes("layer", planes, False), [(0,), (1,), (2,)], VIEW)]
    nan, marker, *_, found = results
    assert str(nan).startswith("layer, plane 0: holds NaN")
    assert str(marker).startswith("layer: holds a pixel of 1e+20")
    assert isinstance(found, Found) and found.plane == (2,)


def test_of_a_huge_plane_few_pixels_are_read():
    class Counted(Huge):
        read = 0

        def __getitem__(self, part):
            pixels = super().__getitem__(part)
            Counted.read += pixels.size
            return pixels

    model, settings = unet_jax.load("membranes"), unet_jax.cell_settings("membranes")
    assert len([*segment(model, settings, Planes("huge", Counted(), False), [()], VIEW)]) == 1
    assert Counted.read < 5e6


def strokes_on(stack):
    """A stroke of each class on the second plane."""
    labels = np.zeros(stack.shape[1:], np.uint8)
    labels[5, 5:25], labels[15, 5:25] = 1, 2
    return {(1,): labels}


def test_strokes_are_the_labels_of_classes_alone():
    labels = np.array([[0, 1, 2, 3, 255]], np.uint8)
    assert strokes_of(labels, 2).tolist() == [[IGNORED, 0, 1, IGNORED, IGNORED]]


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
    with pytest.raises(InputError, match="not 3"):
        next(learn("membranes", 2, rgb))


def test_a_plane_that_cannot_be_used_does_not_end_the_lessons(stack):
    planes = np.stack([stack[0], stack[1], stack[0]]).astype(np.float32)
    planes[2, 3, 3] = np.nan
    desk = Desk(Planes("layer", planes, False), View((0,), *VIEW), start_process())
    lessons = learn("membranes", 2, desk)
    assert next(lessons).view.plane == (0,)
    desk.view = View((2,), *VIEW)
    assert str(next(lessons)).startswith("layer, plane 2: holds NaN")
    desk.painted = strokes_on(stack)
    assert next(lessons).view.plane == (0,)  # the one that is still shown
    desk.view = View((1,), *VIEW)
    assert next(lessons).view.plane == (1,)
    desk.close()


def test_a_pixel_that_is_no_grey_value_is_named(stack):
    plane = stack[0].astype(np.float32)
    plane[3, 3] = 1e20
    desk = Desk(Planes("layer", plane, False), View((), *VIEW), start_process())
    with pytest.raises(InputError, match="layer: holds a pixel of"):
        next(learn("membranes", 2, desk))
