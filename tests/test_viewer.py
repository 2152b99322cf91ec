"""The napari plugin, in a real viewer under a virtual display: make test-napari."""

import time

import numpy as np
import pytest

import unet_jax

napari = pytest.importorskip("napari", reason="napari is not installed: make test-napari")
pytestmark = pytest.mark.napari

from qtpy.QtWidgets import QApplication  # noqa: E402

from unet_jax.data.synthetic_em import synthetic_examples  # noqa: E402
from unet_jax.viewer.panel import Panel  # noqa: E402
from unet_jax.viewer.planes import in_view  # noqa: E402
from unet_jax.viewer.results import Results  # noqa: E402


@pytest.fixture
def pictures():
    return synthetic_examples(0, 2, height=128, width=128)


@pytest.fixture
def viewer(make_napari_viewer):
    return make_napari_viewer()


@pytest.fixture
def panel(viewer):
    panel = Panel(viewer)
    viewer.window.add_dock_widget(panel, name="unet_jax")
    yield panel
    panel.cancel()
    panel.stop()
    wait(lambda: not panel._worker and not panel._teacher)
    panel._end()


def wait(condition, seconds=120):
    """Lets the viewer live until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        QApplication.processEvents()
        time.sleep(0.01)


def said(panel):
    return panel._status.value


def save(panel, folder):
    panel.save(folder)
    wait(lambda: str(folder) in said(panel))


def paint(viewer, name, picture, plane=()):
    """Strokes of both classes along some rows, as by hand."""
    layer = viewer.layers[name]
    for row in range(10, 120, 12):
        for column in range(4, 124):
            label = int(picture.labels[row, column]) + 1
            layer.paint((*plane, row, column), label, refresh=False)
    layer.refresh()


def start_painting(panel, viewer, image, name="cells"):
    viewer.add_image(image, name=name)
    panel._network.value = "membranes"
    panel._names.value = "membrane, cell"
    panel.paint()


# 1. Segment


def test_segmentation_equals_that_of_the_library(panel, viewer, pictures):
    stack = np.stack([picture.image for picture in pictures])
    viewer.add_image(stack, name="cells")
    panel._network.value = "membranes"
    panel.segment()
    wait(lambda: not panel._worker)
    model = unet_jax.load("membranes")
    for number, picture in enumerate(pictures):
        expected = unet_jax.predict_tiled(model, picture.image)
        found = viewer.layers["cells probability of cell"].data[number]
        np.testing.assert_array_equal(found, expected[..., 1])
        classes = viewer.layers["cells classes"].data[number]
        np.testing.assert_array_equal(classes, expected.argmax(-1) + 1)
        cells = unet_jax.find_cells(1 - expected[..., 0], unet_jax.cell_settings("membranes"))
        np.testing.assert_array_equal(viewer.layers["cells cells"].data[number], cells)


def test_segmentation_can_be_cancelled(panel, viewer, pictures):
    viewer.add_image(np.stack([pictures[0].image] * 100), name="cells")
    panel.segment()
    wait(lambda: "cells cells" in viewer.layers)
    panel.cancel()
    wait(lambda: not panel._worker)
    cells = viewer.layers["cells cells"].data
    assert cells.any() and not cells[-1].any()
    assert said(panel) == "Cancelled; what has been segmented so far stays."


def test_planes_that_cannot_be_segmented_are_named_and_left_out(panel, viewer, pictures):
    stack = np.stack([picture.image for picture in pictures]).astype(np.float32)
    stack[0, 3, 3] = np.nan
    viewer.add_image(stack, name="cells")
    viewer.dims.set_current_step(0, 0)
    panel._network.value = "membranes"
    panel.segment()
    wait(lambda: "plane 0: holds NaN" in said(panel))
    wait(lambda: not panel._worker)
    assert viewer.layers["cells cells"].data[1].any()


def test_layers_that_find_no_memory_are_one_sentence(panel, viewer, pictures, monkeypatch):
    def no_memory(*_):
        raise MemoryError("Unable to allocate 9.31 GiB")

    monkeypatch.setattr(Results, "_layer", no_memory)
    viewer.add_image(pictures[0].image, name="cells")
    panel.segment()
    wait(lambda: said(panel) == "Unable to allocate 9.31 GiB")
    wait(lambda: not panel._worker)


def test_of_a_large_plane_only_what_is_in_view_is_segmented(panel, viewer, pictures):
    viewer.add_image(np.tile(pictures[0].image, (65, 65)), name="large")
    panel._network.value = "membranes"
    rows, columns = in_view(viewer.layers["large"])
    panel.segment()
    wait(lambda: not panel._worker)
    assert said(panel) == "large is large: only what is in view is segmented."
    classes = viewer.layers["large classes"].data
    seen = classes[rows, columns]
    assert {*np.unique(seen)} == {1, 2} and np.count_nonzero(classes) == seen.size < classes.size
    panel.paint()
    assert said(panel) == "large is too large to paint on; crop it first."


def test_nothing_is_shown_of_an_image_that_is_gone(viewer):
    results = Results(viewer, viewer.add_image(np.zeros((9, 9)), name="cells"), ("a", "b"))
    viewer.layers.clear()
    results.write((), slice(0, 9), slice(0, 9), np.ones((9, 9, 2), np.float32))
    assert results.write_cells((), np.zeros((9, 9), np.int32)) is None
    assert not viewer.layers


def test_corrected_cells_stay_when_the_image_is_segmented_again(viewer):
    results = Results(viewer, viewer.add_image(np.zeros((2, 9, 9)), name="a"), ("a", "b"))
    cells = np.zeros((9, 9), np.int32)
    cells[2:5, 2:5] = 1
    for plane in range(2):
        layer = results.write_cells((plane,), cells)
        assert layer is results.write_cells((plane,), cells)
    layer.paint((1, 7, 7), 2)
    results = Results(viewer, results.image, ("a", "b"))
    again = results.write_cells((0,), 2 * cells)  # not the plane that has been corrected
    assert results.write_cells((1,), 2 * cells) is again
    assert layer.name == "a cells corrected" and again.name == "a cells" and layer in viewer.layers
    assert layer.data[1, 7, 7] == 2 and layer.data[0].max() == 1
    assert (again.data == 2 * cells).all()


def test_a_class_more_has_a_colour(viewer):
    image = viewer.add_image(np.zeros((9, 9)), name="a")
    for names in ("ab", "abc"):
        shown = np.eye(len(names), dtype=np.float32)[np.full((9, 9), len(names) - 1)]
        Results(viewer, image, names).write((), slice(0, 9), slice(0, 9), shown)
        assert viewer.layers["a classes"].get_color(len(names))[3] == 1


# 2. Paint


def test_strokes_are_learnt_and_undone(panel, viewer, pictures):
    start_painting(panel, viewer, pictures[0].image)
    wait(lambda: "cells probability of cell" in viewer.layers)
    paint(viewer, "cells strokes", pictures[0])
    assert viewer.layers.selection.active is viewer.layers["cells strokes"]
    wait(lambda: panel._painting.learnt and panel._painting.learnt.entropy > 0)
    probability = viewer.layers["cells probability of cell"].data
    assert ((probability > 0.5) == pictures[0].labels).mean() > 0.8
    wait(lambda: not panel._painting.has_changed)
    viewer.layers["cells strokes"].undo()
    assert panel._painting.has_changed


def test_a_process_is_ready_before_painting_begins(panel, viewer, pictures):
    wait(lambda: panel._process)
    ready = panel._process
    start_painting(panel, viewer, pictures[0].image)
    assert panel._painting.desk.process is ready and ready.poll() is None
    panel.stop()
    wait(lambda: panel._process)  # for the next time
    assert ready.poll() is not None and panel._process is not ready
    panel._end()
    assert panel._process.poll() is not None


def test_strokes_of_all_planes_count(panel, viewer, pictures):
    stack = np.stack([picture.image for picture in pictures])
    start_painting(panel, viewer, stack)
    for plane, picture in enumerate(pictures):
        paint(viewer, "cells strokes", picture, (plane,))
    assert [*panel._painting.painted()] == [(0,), (1,)]
    viewer.dims.set_current_step(0, 1)
    wait(lambda: panel._painting.learnt and panel._painting.learnt.view.plane == (1,))
    assert viewer.layers["cells probability of cell"].data[1].any()


def test_what_is_scrolled_through_is_no_new_stroke(panel, viewer, pictures):
    stack = np.stack([picture.image for picture in pictures])
    start_painting(panel, viewer, stack)
    paint(viewer, "cells strokes", pictures[0], (0,))
    wait(lambda: panel._painting.desk.painted)
    seen = panel._painting.desk.painted
    viewer.dims.set_current_step(0, 1)
    assert panel._painting.has_changed
    wait(lambda: not panel._painting.has_changed)
    assert panel._painting.desk.painted is seen


def test_a_closed_panel_ends_its_training(panel, viewer, pictures):
    start_painting(panel, viewer, pictures[0].image)
    wait(lambda: panel._painting.learnt)
    viewer.window.remove_dock_widget("all")
    wait(lambda: not panel._teacher)


# 3. Correct


def test_corrected_cells_become_strokes(panel, viewer, pictures):
    start_painting(panel, viewer, pictures[0].image)
    cells = np.zeros((128, 128), np.int32)
    cells[10:30, 10:30], cells[10:30, 30:50] = 1, 2
    corrected = viewer.add_labels(cells, name="corrected")
    assert panel._cells.choices == (corrected,)  # and not the strokes
    panel._cells.value = corrected
    viewer.layers["cells strokes"].selected_label = 9  # not what is chosen in the panel
    panel.annotate()
    assert said(panel) == "The cells are strokes now."
    strokes = viewer.layers["cells strokes"].data
    assert strokes[20, 20] == 2 and strokes[20, 29] == 1 and strokes[60, 60] == 1
    viewer.layers["cells strokes"].undo()
    assert not strokes.any()


def test_corrected_cells_of_a_stack_are_undone_at_once(panel, viewer, pictures):
    start_painting(panel, viewer, np.stack([picture.image for picture in pictures]))
    cells = np.zeros((2, 128, 128), np.int32)
    cells[:, 10:30, 10:30] = 1
    panel._cells.value = viewer.add_labels(cells, name="corrected")
    panel.annotate()
    strokes = viewer.layers["cells strokes"]
    assert (strokes.data[:, 20, 20] == 2).all()
    strokes.undo()
    assert not strokes.data.any()
    viewer.layers.remove(strokes)
    panel.annotate()
    assert "The layer of strokes was removed" in said(panel)


# 4. Save, predict, measure


def test_saved_run_predicts_the_same_and_is_opened_again(panel, viewer, pictures, tmp_path):
    start_painting(panel, viewer, pictures[0].image)
    paint(viewer, "cells strokes", pictures[0])
    wait(lambda: panel._painting.learnt and panel._painting.learnt.entropy > 0)
    panel.stop()
    wait(lambda: not panel._teacher)
    save(panel, tmp_path / "run")
    assert said(panel).startswith("Saved in"), said(panel)
    assert panel._network.value == str(tmp_path / "run")
    panel._network.value = "learnt from strokes"
    panel.segment()
    wait(lambda: not panel._worker)
    found = viewer.layers["cells probability of cell"].data
    model = unet_jax.load(tmp_path / "run")
    np.testing.assert_array_equal(found, unet_jax.predict_tiled(model, pictures[0].image)[..., 1])

    panel._tell("")
    save(panel, tmp_path / "run")  # once more
    assert said(panel).startswith("Saved in"), said(panel)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    save(panel, tmp_path / "other")
    assert "is not empty" in said(panel)
    strokes = viewer.layers["cells strokes"].data.copy()
    viewer.layers.clear()
    panel.add_run(tmp_path / "run")
    wait(lambda: "cells strokes" in viewer.layers)
    np.testing.assert_array_equal(viewer.layers["cells"].data, pictures[0].image)
    np.testing.assert_array_equal(viewer.layers["cells strokes"].data, strokes)
    panel.paint()
    wait(lambda: panel._painting.learnt and panel._painting.learnt.entropy > 0)


def test_strokes_of_a_stack_count_again_when_it_is_opened(panel, viewer, pictures, tmp_path):
    start_painting(panel, viewer, np.stack([picture.image for picture in pictures]))
    for plane, picture in enumerate(pictures):
        paint(viewer, "cells strokes", picture, (plane,))
    wait(lambda: panel._painting.learnt and panel._painting.learnt.entropy > 0)
    panel.stop()
    wait(lambda: not panel._teacher)
    save(panel, tmp_path / "run")
    strokes = viewer.layers["cells strokes"].data.copy()
    viewer.layers.clear()
    panel.add_run(tmp_path / "run")
    wait(lambda: "run strokes" in viewer.layers)
    np.testing.assert_array_equal(viewer.layers["run strokes"].data, strokes)
    assert viewer.layers["run"].data.shape == (2, 128, 128)
    panel.paint()
    assert len(panel._painting.painted()) == 2


def test_nothing_is_saved_without_strokes(panel, viewer, pictures, tmp_path):
    start_painting(panel, viewer, pictures[0].image)
    wait(lambda: panel._painting.learnt)
    panel.save(tmp_path / "run")
    assert "nothing to save yet" in said(panel) and not (tmp_path / "run").exists()


def test_a_folder_is_segmented(panel, viewer, pictures, tmp_path):
    import tifffile

    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "1.tif", pictures[0].image)
    (tmp_path / "images" / "0.tif").write_bytes(b"no image")
    panel.segment_folder(tmp_path / "images")
    wait(lambda: not panel._worker)
    assert (tmp_path / "images_results" / "1_cells.tif").exists()
    assert "2 of 2 files" in said(panel) and "0.tif: " in said(panel)


def test_cells_are_measured(panel, viewer):
    cells = np.zeros((60, 60), np.int32)
    cells[10:20, 10:30] = 3
    panel._image.value = viewer.add_image(np.ones((60, 60)), name="image")
    panel._cells.value = viewer.add_labels(cells, name="cells")
    panel.measure()
    wait(lambda: "index" in viewer.layers["cells"].features)
    table = viewer.layers["cells"].features
    assert table["area_px2"].tolist() == [200] and table["index"].tolist() == [3]


# What cannot be done is said in one sentence


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((40, 40, 3), np.uint8), "takes 1 channel(s), not 3; Layer > Split RGB"),
        (np.full((40, 40), np.nan), "holds NaN"),
    ],
)
def test_images_that_the_network_cannot_take(panel, viewer, image, sentence):
    viewer.add_image(image, name="odd")
    panel.segment()
    wait(lambda: not panel._worker)
    assert sentence in said(panel)
    panel.paint()
    wait(lambda: not panel._teacher)
    assert sentence in said(panel)


def test_nothing_to_work_on(panel, viewer):
    for act in (panel.segment, panel.segment_all, panel.paint):
        act()
        assert "There is no image" in said(panel)
    panel.measure()
    assert said(panel) == "Choose an image and a layer of cells."
    panel.annotate()
    assert "First press Paint and train" in said(panel)
    panel.save("nowhere")
    assert "nothing to save yet" in said(panel)


def test_strokes_of_another_shape(panel, viewer):
    viewer.add_labels(np.zeros((3, 4), int), name="cells strokes")
    start_painting(panel, viewer, np.zeros((60, 60)))
    assert said(panel) == "cells strokes is 3x4, expected 60x60 like the image."
    viewer.layers.clear()
    viewer.add_points(name="cells strokes")
    start_painting(panel, viewer, np.zeros((60, 60)))
    assert "cells strokes is needed for strokes, but holds no labels" in said(panel)


def test_what_was_learnt_outlives_an_image_that_cannot_be_painted_on(
    panel, viewer, pictures, tmp_path
):
    start_painting(panel, viewer, pictures[0].image)
    paint(viewer, "cells strokes", pictures[0])
    wait(lambda: panel._painting.learnt)
    panel.stop()
    wait(lambda: not panel._teacher)
    panel._image.value = viewer.add_image(np.full((60, 60), np.nan), name="odd")
    panel.paint()
    wait(lambda: not panel._teacher)
    assert "holds NaN" in said(panel) and "learnt from strokes" in panel._network.choices
    save(panel, tmp_path / "run")
    assert said(panel).startswith("Saved in"), said(panel)


def test_strokes_of_one_class_alone(panel, viewer, pictures):
    start_painting(panel, viewer, np.stack([picture.image for picture in pictures]))
    viewer.layers["cells strokes"].paint((0, 10, 10), 2)
    wait(lambda: panel._painting.learnt and not panel._painting.has_changed)
    viewer.dims.set_current_step(0, 1)  # another view, for which it has to answer again
    wait(lambda: panel._painting.learnt.view.plane == (1,))
    assert panel._painting.learnt.steps == 0


def test_a_layer_removed_while_training(panel, viewer, pictures):
    start_painting(panel, viewer, pictures[0].image)
    paint(viewer, "cells strokes", pictures[0])
    wait(lambda: panel._painting.learnt and panel._painting.learnt.entropy > 0)
    viewer.layers.remove("cells")
    wait(lambda: not panel._teacher)
    assert "The training has ended, because cells was removed" in said(panel)
    assert viewer.layers["cells strokes"].data.any()


def test_the_manifest_is_valid():
    from npe2 import PluginManifest

    manifest = PluginManifest.from_distribution("unet-jax")
    assert [widget.display_name for widget in manifest.contributions.widgets] == ["unet_jax"]
    ((data, options, kind),) = manifest.contributions.sample_data[0].open()
    assert data.shape == (3, 512, 512) and kind == "image"
