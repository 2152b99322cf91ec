import imagecodecs
import numpy as np
import pytest

from unet_jax.example import IGNORED, Example
from unet_jax.figures import (
    SEVERAL_COLOUR,
    UNMATCHED_COLOUR,
    cell_colours,
    class_colours,
    class_picture,
    save_examples,
    save_training_curves,
)
from unet_jax.model import Model
from unet_jax.network import UNet


def pixels(file):
    return imagecodecs.png_decode(file.read_bytes())[..., :3]


def contains(picture, colour):
    return (picture == colour).all(-1).sum()


COLOURS = SEVERAL_COLOUR, UNMATCHED_COLOUR
RED, BLUE, GREY = (0xD6, 0x27, 0x28), (0x1F, 0x77, 0xB4), (0x88, 0x88, 0x88)


def test_examples_show_splits_red_merges_blue_and_ignored_grey(tmp_path):
    labels = np.ones((40, 60), np.int32)
    labels[:, 30] = 0
    labels[:5, :5] = IGNORED
    cell = np.ones((40, 60), np.float32)

    def colours(cell, name):
        probabilities = np.stack([1 - cell, cell], axis=-1)
        example = Example(name, np.eye(40, 60), labels, labels)
        save_examples(
            tmp_path / name, [example] * 2, [probabilities] * 2, ["a", "b"], class_colours(2)
        )
        picture = pixels(tmp_path / name)
        assert picture.shape[0] > 400 and picture.shape[1] > 1000
        return [contains(picture, colour) for colour in (RED, BLUE, GREY)]

    merged = colours(cell, "merged.png")
    assert not merged[0] and merged[1] and merged[2]
    cell[:, 30], cell[20] = 0, 0
    split = colours(cell, "split.png")
    assert split[0] and not split[1] and split[2]


def test_training_curves_before_and_after_the_first_validation(tmp_path):
    rows = [{"step": s, "loss": 1 / s} for s in range(1, 130)]
    save_training_curves(tmp_path / "a.png", rows)
    several = {"loss": 0.1, "pixel_error": 0.2, "mean_iou": 0.6}  # of strokes in several classes
    strokes = [*rows, {"step": 129, "validation": several}]
    rows.append({"step": 129, "validation": {"loss": 0.1, "pixel_error": 0.2, "rand_error": 0.3}})
    save_training_curves(tmp_path / "b.png", rows)
    orange = (0xFF, 0x7F, 0x0E)  # the second line of each plot
    assert not contains(pixels(tmp_path / "a.png"), orange)
    assert contains(pixels(tmp_path / "b.png"), orange) > 20
    save_training_curves(tmp_path / "c.png", strokes)
    assert contains(pixels(tmp_path / "c.png"), orange) > 20


def test_examples_of_several_classes_are_in_their_colours(tmp_path):
    chosen = ("#102030", "#00ff00", "#0000fe", "#ff00ff")
    labels = np.zeros((40, 60), np.int32)
    labels[10:20], labels[20:30], labels[30:] = 1, 2, IGNORED
    found = labels.clip(0)
    found[12:16] = 3
    probabilities = np.eye(4, dtype=np.float32)[found]
    example = Example("x", np.eye(40, 60), labels, labels)
    names = [f"_${i}$" for i in range(4)]  # neither hidden nor a formula
    colours = class_colours(4, chosen)
    save_examples(tmp_path / "a.png", [example], [probabilities], names, colours)
    picture = pixels(tmp_path / "a.png")
    legend = [(16, 32, 48), (0, 255, 0), (0, 0, 254), (255, 0, 255)]
    *columns, last = np.array_split(picture, 4, axis=1)
    drawn = [[contains(column, colour) for colour in legend] for column in columns]
    assert drawn[1][2] > 1000 and not drawn[0][2], "truth"
    assert drawn[2][3] > 1000 and drawn[1][3] < drawn[2][3], "the class found"
    assert contains(columns[1], GREY) > 1000 and contains(last, GREY) > 1000
    assert contains(last, RED) > 1000 and not contains(last, BLUE)


@pytest.mark.parametrize("classes", [2, 3, 30])
def test_usual_colours_differ_and_begin_with_black(classes):
    for chosen in ((), Model(UNet(classes=classes), params={}, channels=1).class_colours):
        colours = class_colours(classes, chosen)
        assert colours.shape == (classes, 3) and colours.dtype == np.uint8
        assert not colours[0].any() and len(np.unique(colours, axis=0)) == classes
    np.testing.assert_array_equal(class_colours(2), [[0, 0, 0], [255] * 3])


def test_chosen_colours():
    colours = class_colours(3, ["black", "#ff8000", "white"])
    np.testing.assert_array_equal(colours, [[0, 0, 0], [255, 128, 0], [255, 255, 255]])
    labels = np.array([[1, IGNORED]])
    np.testing.assert_array_equal(class_picture(labels, colours), [[[255, 128, 0], GREY]])


def test_found_cells_have_the_colour_of_the_cell_that_they_cover_by_more_than_half():
    true = np.array([[1] * 6, [3] * 6, [4] * 6, [7] * 3 + [0] * 3])
    found = np.array([[2] * 4 + [5, 0], [6] * 3 + [0] * 3, [9] * 6, [9] * 3 + [10] * 3])
    true_colours, found_colours = cell_colours(true, found)
    assert [c for c in range(8) if true_colours[c].any()] == [1, 3, 4, 7]
    assert len(np.unique(true_colours[[1, 3, 4, 7]], axis=0)) == 4
    np.testing.assert_array_equal(found_colours[2], true_colours[1])
    chosen = np.array([class_colours(2, ["k", colour])[1] for colour in COLOURS])
    np.testing.assert_array_equal(found_colours[9], chosen[0])  # it covers 4 and 7
    np.testing.assert_array_equal(found_colours[[5, 6, 10]], chosen[[1, 1, 1]])  # 6 covers half
