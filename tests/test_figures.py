import imagecodecs
import numpy as np

from unet_jax.example import IGNORED, Example
from unet_jax.figures import save_examples, save_training_curves


def pixels(file):
    return imagecodecs.png_decode(file.read_bytes())[..., :3]


def contains(picture, colour):
    return (picture == colour).all(-1).sum()


RED, BLUE, GREY = (0xD6, 0x27, 0x28), (0x1F, 0x77, 0xB4), (0x88, 0x88, 0x88)


def test_examples_show_splits_red_merges_blue_and_ignored_grey(tmp_path):
    labels = np.ones((40, 60), np.int32)
    labels[:, 30] = 0
    labels[:5, :5] = IGNORED
    cell = np.ones((40, 60), np.float32)

    def colours(cell, name):
        probabilities = np.stack([1 - cell, cell], axis=-1)
        example = Example(name, np.eye(40, 60), labels, labels)
        save_examples(tmp_path / name, [example, example], [probabilities] * 2)
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
    rows.append({"step": 129, "validation": {"loss": 0.1, "pixel_error": 0.2, "rand_error": 0.3}})
    save_training_curves(tmp_path / "b.png", rows)
    orange = (0xFF, 0x7F, 0x0E)  # the second line of each plot
    assert not contains(pixels(tmp_path / "a.png"), orange)
    assert contains(pixels(tmp_path / "b.png"), orange) > 20
