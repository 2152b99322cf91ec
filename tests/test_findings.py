import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.spatial.distance import cdist

from configs import folder
from unet_jax.data.findings import doubts, explained, finding, smallest_gap, table
from unet_jax.example import IGNORED, Example


def example(seed=0, *, radius=6, shape=(100, 120)):
    """Bright discs, three pixels of background at least between them, on a darker background."""
    rng = np.random.default_rng(seed)
    instances = np.zeros(shape, np.int32)
    free = np.ones(shape, bool)
    disc = np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1]) <= radius
    for cell in range(1, 13):
        room = ndimage.binary_erosion(free, ndimage.iterate_structure(disc, 1))
        room[:radius], room[-radius:], room[:, :radius], room[:, -radius:] = 0, 0, 0, 0
        if not room.any():
            break
        y, x = rng.choice(np.argwhere(room))
        place = np.s_[y - radius : y + radius + 1, x - radius : x + radius + 1]
        instances[place][disc] = cell
        free = ndimage.distance_transform_edt(instances == 0) > 3
    labels = (instances > 0).astype(np.int32)
    image = ndimage.gaussian_filter(100.0 * labels, 1) + rng.normal(60, 5, shape)
    return Example(f"disc {seed}", image.astype(np.uint8), labels, instances)


def examples(count=8, **settings):
    return [example(seed, **settings) for seed in range(count)]


def changed(given, change):
    """The examples with other masks, made by `change`(labels); cells are connected components."""

    def new(e):
        labels = change(e.labels).astype(np.int32)
        return e._replace(labels=labels, instances=ndimage.label(labels > 0)[0].astype(np.int32))

    return [new(e) for e in given]


def config(**settings):
    made = folder.get_config()
    made.model.depth = 3
    made.train.tile_side = 60
    made.update_from_flattened_dict(settings)
    return made


def doubts_about(given, made=None):
    made = made or config()
    return doubts({"train": given}, made)


def test_nothing_is_wrong_with_good_data():
    assert doubts_about(examples()) == []
    assert doubts_about(examples(shape=(90, 90))) == []
    empty = example(8)._replace(labels=np.zeros((100, 120), np.int32))
    assert all("nothing but" in d for d in doubts_about([*examples(), empty]))


def one(given, made=None):
    (doubt,) = doubts_about(given, made)
    assert doubt.endswith((".", "?")) and "\n" not in doubt
    return doubt


def test_inverted_masks():
    wrong = changed(examples(), lambda labels: 1 - labels)
    assert one(wrong).startswith("8 of 8 masks (disc 0, disc 1, disc 2, ...): 'background' lies in")
    assert "wrong way round" in one(wrong)
    assert one([*wrong[:1], *examples()[1:]]).startswith("1 of 8 masks (disc 0): 'background'")


def test_cells_with_holes_are_not_inverted():
    def with_holes(e):
        holes = np.random.default_rng(0).random(e.labels.shape) < 0.05
        return e._replace(labels=np.where(holes, 0, e.labels))

    assert doubts_about([with_holes(e) for e in examples()]) == []


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda a: np.roll(a, 1, 0), "moved 1 pixel up"),
        (lambda a: np.roll(a, (-1, 2), (0, 1)), "moved 1 pixel down and 2 pixels to the left"),
        (lambda a: a.T, "transposed"),
        (lambda a: np.rot90(a), "turned by -90 degrees"),
        (lambda a: a[::-1], "mirrored top to bottom"),
    ],
)
def test_masks_that_are_moved_or_turned(turn, words):
    wrong = changed(examples(shape=(90, 90)), turn)
    assert one(wrong) == (
        f"The masks fit their images better when they are {words}; look at the outlines."
    )


def test_masks_of_other_images():
    right = examples()
    wrong = [a._replace(image=b.image) for a, b in zip(right, right[1:] + right[:1], strict=True)]
    assert "belonged to other images" in one(wrong)


def test_cells_that_touch_without_a_line_between_them():
    sheet = changed(examples(), lambda labels: np.where(labels, labels, np.eye(*labels.shape) == 0))
    assert "reaches all four sides" in " ".join(doubts_about(sheet))
    lines = np.zeros((100, 120), np.int32)
    lines[::20], lines[:, ::20] = 1, 1
    apart = changed(examples(), lambda labels: 1 - lines)
    assert "reaches all four sides" not in " ".join(doubts_about(apart))


def test_grey_values_as_masks_and_masks_as_images():
    right = examples()
    noisy = [e._replace(instances=e.image.astype(np.int32), labels=e.labels * 0 + 1) for e in right]
    assert any("from pixel to pixel" in doubt for doubt in doubts_about(noisy))
    masks = [e._replace(image=(e.instances * 10).astype(np.uint8)) for e in right]
    assert one(masks).startswith("8 of 8 images") and "are they masks, or empty?" in one(masks)
    empty = [right[0]._replace(image=np.zeros((100, 120), np.uint16)), *right[1:]]
    assert one(empty).startswith("1 of 8 images (disc 0)")


def test_masks_of_one_value_and_a_class_that_is_missing():
    right = examples()
    full = changed(right[:1], np.ones_like)[0]
    assert "1 of 8 masks (disc 0): they hold nothing but 'cell'" in one([full, *right[1:]])
    several = config()
    several.model.classes, several.class_names = 3, ("background", "cell", "nucleolus")
    assert one(right, several) == (
        "Class 2, 'nucleolus', is in no training mask; none will be found."
    )
    ignored = right[0]._replace(labels=np.full((100, 120), IGNORED, np.int32))
    assert doubts_about([ignored, *right[1:]]) == []


def test_cells_larger_than_what_the_network_sees():
    large = examples(radius=14)
    assert one(large).startswith("A cell of median size is 28 pixels wide, but the network sees no")
    scale = float(one(large).rstrip(".").split("=")[1])
    assert scale == pytest.approx(0.4 * 20 / 28, abs=0.02)
    assert doubts_about(large, config(**{"data.scale": scale})) == []


def test_few_images():
    few = examples(2, shape=(50, 60))
    assert one(few).startswith("There are only 2 training images, with the pixels of 15.0 tiles")
    assert doubts_about(examples(2)) == []


def test_the_smallest_gap_of_cells():
    cells = np.zeros((9, 12), np.int32)
    assert smallest_gap(cells) == np.inf
    cells[2:5, 2:4] = 7
    assert smallest_gap(cells) == np.inf
    cells[3:6, 7] = 2
    assert smallest_gap(cells) == 3
    cells[8, 8] = 5
    assert smallest_gap(cells) == pytest.approx(2, abs=0.5)
    cells[5, 3] = 9
    assert smallest_gap(cells) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_gap_is_the_distance_of_the_nearest_two_cells(seed):
    instances = example(seed).instances
    places = [np.argwhere(instances == cell) for cell in np.unique(instances[instances > 0])]
    nearest = min(cdist(a, b).min() for i, a in enumerate(places) for b in places[:i])
    assert smallest_gap(instances) == pytest.approx(nearest - 1, abs=0.8)


def test_explained_variance_is_that_of_an_analysis_of_variance():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 3, (30, 40))
    grey = rng.normal(0, 1, (30, 40)) + 0.7 * labels
    groups = [grey[labels == label] for label in range(3)]
    between, within = 2, sum(map(len, groups)) - 3
    f = stats.f_oneway(*groups).statistic
    assert explained(grey, labels) == pytest.approx(f * between / (f * between + within))
    assert explained(labels * 3.0, labels) == pytest.approx(1)
    assert explained(np.ones((3, 3)), np.eye(3, dtype=int)) == 0


def test_the_table_has_a_column_for_each_split():
    train = [example(0), example(1, shape=(60, 200))]
    train[0].labels[:20] = IGNORED
    touching = example(2)
    touching.instances[touching.instances == 0] = 99
    text = table(
        {
            "train": [finding(e, 2) for e in train],
            "validation": [finding(touching, 2)],
            "test": [finding(example(3)._replace(instances=np.zeros((100, 120), int)), 2)],
        },
        ("background", "cell"),
    )
    rows = {line[:28].strip(): line[28:].split("   ") for line in text.splitlines()}
    rows = {
        title: [cell.strip() for cell in cells if cell.strip()] for title, cells in rows.items()
    }
    assert rows[""] == ["train", "validation", "test"]
    assert rows["images"] == ["2", "1", "1"]
    assert rows["height x width, pixels"] == ["100 x 120 to 60 x 200"] + ["100 x 120"] * 2
    assert rows["numbers"] == ["uint8"] * 3
    assert rows["ignored pixels"] == ["10.0 %", "0.0 %", "0.0 %"]
    shares = [float(rows[f"share of {name}"][0][:-2]) for name in ("background", "cell")]
    assert sum(shares) == pytest.approx(100)
    cells = sum(e.instances.max() for e in train)
    assert rows["cells"] == [f"{cells}", "13", "0"]
    assert rows["cell diameter, median"][::2] == ["12", "-"]
    assert rows["smallest gap of two cells"][1:] == ["0, they touch in 1", "-"]
