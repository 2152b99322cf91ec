import numpy as np
import pytest
from scipy import ndimage, stats
from scipy.spatial.distance import cdist

from configs import dic_hela, em, folder
from unet_jax.data.findings import (
    cell_diameters,
    cell_widths,
    doubts,
    duplicates,
    finding,
    smallest_gap,
    table,
)
from unet_jax.data.folder import read_folder
from unet_jax.data.mask_fit import explained
from unet_jax.data.splits import read_splits
from unet_jax.example import IGNORED, Example, image_sha256
from unet_jax.sources import Isbi2012, read_data


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
    (doubt,) = doubts_about([*examples(), empty])
    assert "nothing but" in doubt


def one(given, made=None):
    (doubt,) = doubts_about(given, made)
    assert doubt.endswith((".", "?")) and "\n" not in doubt
    return doubt


def test_inverted_masks():
    wrong = changed(examples(), lambda labels: 1 - labels)
    assert one(wrong).startswith("8 of 8 masks (disc 0, disc 1, disc 2, ...): 'background' lies in")
    assert "as if the two were swapped" in one(wrong)
    assert one([*wrong[:1], *examples()[1:]]).startswith("1 of 8 masks (disc 0): 'background'")


def test_cells_with_holes_are_not_inverted():
    def with_holes(e):
        holes = np.random.default_rng(0).random(e.labels.shape) < 0.05
        return e._replace(labels=np.where(holes, 0, e.labels))

    assert doubts_about([with_holes(e) for e in examples()]) == []


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda a: np.roll(a, 3, 0), "moved 3 pixels up"),
        (lambda a: np.roll(a, (-1, 4), (0, 1)), "moved 1 pixel down and 4 pixels to the left"),
        (lambda a: a.T, "transposed"),
        (lambda a: np.rot90(a), "turned by -90 degrees"),
        (lambda a: a[::-1], "mirrored top to bottom"),
    ],
)
def test_masks_that_are_moved_or_turned(turn, words):
    wrong = changed(examples(shape=(90, 90)), turn)
    assert one(wrong) == (
        f"The masks would fit their images better if {words}; look at the outlines."
    )


def test_masks_of_other_images():
    right = examples()
    wrong = [a._replace(image=b.image) for a, b in zip(right, right[1:] + right[:1], strict=True)]
    assert one(wrong) == (
        "8 of 8 masks (disc 0, disc 1, disc 2, ...): masks of other images fit better, for disc 0 "
        "that of disc 1; check that the names of images and masks match."
    )
    swapped = [*wrong[:1], right[1]._replace(image=right[0].image), *right[2:]]
    assert one(swapped).startswith("2 of 8 masks (disc 0, disc 1): masks of other images fit")
    wrong = [a._replace(image=example(70 + i).image) for i, a in enumerate(right)]
    assert "belonged to other images" in one(wrong)


def test_a_mask_that_is_a_pixel_off_is_no_fault():
    assert doubts_about(changed(examples(), lambda labels: np.roll(labels, (1, -1), (0, 1)))) == []


def test_strokes_and_a_few_cells_prove_nothing():
    other = [example(50 + i) for i in range(8)]
    strokes = [
        a._replace(image=b.image, labels=np.where(np.eye(100, 120) > 0, a.labels, IGNORED))
        for a, b in zip(examples(), other, strict=True)
    ]
    few = [
        a._replace(image=b.image, labels=(a.instances == 1) * 1, instances=(a.instances == 1) * 1)
        for a, b in zip(examples(), other, strict=True)
    ]
    for thin in (strokes, few):
        assert not any("fit" in d or "unrelated" in d for d in doubts_about(thin))


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
    assert not any("fit" in doubt for doubt in doubts_about(noisy))
    masks = [e._replace(image=(e.instances * 10).astype(np.uint8)) for e in right]
    assert one(masks).startswith("8 of 8 images") and "are they masks, or empty?" in one(masks)
    blue = [e._replace(image=np.stack([0 * e.image, 0 * e.image, e.image], -1)) for e in right]
    assert doubts_about(blue) == doubts_about(right)
    empty = [right[0]._replace(image=np.zeros((100, 120), np.uint16)), *right[1:]]
    assert one(empty).startswith("1 of 8 images (disc 0)")
    same = right[0].image.astype(np.int32)  # without a 0
    same = right[0]._replace(labels=np.ones_like(same), instances=same)
    assert any(d.startswith("1 of 8 images (disc 0)") for d in doubts_about([same, *right[1:]]))


def test_masks_of_one_value_and_a_class_that_is_missing():
    right = examples()
    full = changed(right[:1], np.ones_like)[0]
    numbered = [e._replace(labels=e.labels * 0 + 1, instances=e.instances + 1) for e in right]
    assert not any("were swapped" in doubt for doubt in doubts_about(numbered))
    assert "1 of 8 masks (disc 0): they hold nothing but 'cell'" in one([full, *right[1:]])
    several = config()
    several.model.classes, several.class_names = 3, ("background", "cell", "nucleolus")
    assert one(right, several) == (
        "Class 2, 'nucleolus', is in no training mask; it will never be found."
    )
    ignored = right[0]._replace(labels=np.full((100, 120), IGNORED, np.int32))
    assert doubts_about([ignored, *right[1:]]) == []


def test_cells_larger_than_what_the_network_sees():
    large = examples(radius=14)
    assert one(large).startswith("The median width of a cell is 27 pixels, but the network sees on")
    scale = float(one(large).rstrip(".").split("=")[1])
    assert scale == pytest.approx(0.4 * 20 / 27, abs=0.02)
    assert doubts_about(large, config(**{"data.scale": scale})) == []


def test_long_thin_cells_are_not_made_smaller():
    right = examples()
    rods = np.zeros((100, 120), np.int32)
    for number in range(12):
        rods[5 + 8 * number : 11 + 8 * number, 5:115] = number + 1
    image = np.where(rods > 0, 200, 30).astype(np.uint8)
    thin = Example("rods", image, np.int32(rods > 0), rods)
    assert cell_diameters(rods).min() > 28  # as of a circle, more than the network sees
    assert not any("scale" in doubt for doubt in doubts_about([thin, *right]))


def test_the_width_of_cells():
    cells = np.zeros((40, 60), np.int32)
    cells[5:10, 5:50] = 3
    cells[10:19, 5:50] = 8  # touches the other one
    cells[25, 30] = 9
    np.testing.assert_array_equal(cell_widths(cells), [5, 9, 1])
    np.testing.assert_array_equal(cell_widths(cells * 2 * 10**8), [5, 9, 1])
    assert cell_widths(0 * cells).size == 0
    np.testing.assert_array_equal(cell_widths(0 * cells + 4), [40])


def test_few_images():
    few = examples(2, shape=(50, 60))
    assert one(few).startswith(
        "There are only 2 training image(s), with as many pixels as 15.0 tiles"
    )
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
    zone = rng.integers(0, 3, (30, 40))
    zones = np.stack([zone == z for z in range(3)]).astype(np.float32)
    grey = rng.normal(0, 1, (2, 30, 40)) + 0.7 * zone * [[[1]], [[0.2]]]
    grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
    between, within = 2, zone.size - 3
    f = [stats.f_oneway(*(g[zone == z] for z in range(3))).statistic for g in grey]
    shares = [f * between / (f * between + within) for f in f]
    assert explained(grey, zones) == pytest.approx(np.mean(shares))
    assert explained(zones[:1] * 0, zones) == 0


def test_the_table_has_a_column_for_each_split():
    train = [example(0), example(1, shape=(60, 200))]
    train[0].labels[:20] = IGNORED
    touching = example(2)
    touching.instances[touching.instances == 0] = 99
    stored = {
        "train": train,
        "validation": [touching],
        "test": [example(3)._replace(instances=np.zeros((100, 120), int))],
    }
    findings = {split: [finding(e, 2) for e in part] for split, part in stored.items()}
    text = table(findings, stored, ("background", "cell"))
    rows = {line[:28].strip(): line[28:].split("   ") for line in text.splitlines()}
    rows = {
        title: [cell.strip() for cell in cells if cell.strip()] for title, cells in rows.items()
    }
    assert rows[""] == ["train", "validation", "test"]
    assert rows["images"] == ["2", "1", "1"]
    assert rows["height x width, pixels"] == ["100 x 120 to 60 x 200"] + ["100 x 120"] * 2
    assert rows["pixel type"] == ["uint8"] * 3
    assert rows["ignored pixels"] == ["10.0 %", "0.0 %", "0.0 %"]
    shares = [float(rows[f"share of {name}"][0][:-2]) for name in ("background", "cell")]
    assert sum(shares) == pytest.approx(100)
    cells = sum(e.instances.max() for e in train)
    assert rows["cells"] == [f"{cells}", "13", "0"]
    assert rows["cell diameter, median"][::2] == ["12", "-"]
    assert rows["smallest gap between cells"][1:] == ["0; cells touch in 1", "-"]


def test_of_many_examples_some_are_looked_at():
    many = [example()] * 3000
    many[1501] = example()._replace(labels=np.full((100, 120), 2, np.int32))
    several = config()
    several.model.classes, several.class_names = 3, ("background", "cell", "nucleolus")
    assert doubts({"train": many}, several) == []  # the rare class is there, if not in the sample
    inverted = changed(many[:1], lambda labels: 1 - labels) * 3000
    (doubt,) = doubts({"train": inverted}, config())
    looked_at = int(doubt.split(" of ")[0])
    assert 500 < looked_at < 50 * 512**2 / (100 * 120)


def test_pictures_in_two_splits_are_named():
    first, second, third = examples(3)
    shifted = second._replace(name="again", labels=np.roll(second.labels, 1, 0))
    stored = {"train": [first, second, second], "validation": [third], "test": [shifted]}
    assert duplicates(stored) == [
        "again (test) is the same picture as disc 1 (train): a network cannot be tested on images"
        " that it has seen; leave out one of each pair."
    ]
    assert doubts(stored, config())[-1:] == duplicates(stored)
    four = {"train": examples(4), "validation": examples(2), "test": examples(4)[2:]}
    (line,) = duplicates(four)
    assert line.count("is the same picture as") == 3 and ", and 1 more: " in line
    (line,) = duplicates({"train": [first], "validation": [first], "test": [first]})
    assert line.count("as disc 0 (train)") == 2
    wide = first._replace(image=first.image.astype(np.uint16))
    assert duplicates({"train": [first], "test": [wide]}) == []
    assert image_sha256(first.image) == image_sha256(first.image.copy(order="F"))
    assert image_sha256(first.image) != image_sha256(first.image.T)


def phase_contrast(seed, side=None):
    """A made-up set of 3 to 6 images, whose cells are no brighter than what is around them.

    Dark with a bright halo, a halo alone, or nothing but texture; round or long, apart or touching;
    on uneven light, with dirt and noise.
    """
    rng = np.random.default_rng(seed)
    side = side or int(rng.choice([128, 192, 256, 384]))
    look = ("dark", "halo", "flat")[seed % 3]
    shape = side, int(side * rng.choice([1, 1.25]))
    width = rng.uniform(7, min(40, side / 5))  # of a cell, pixels
    length = min(width * rng.choice([1, 1.3, 2, 5]), side / 2)
    gap, density = int(rng.choice([-1, 2, 4, 8])), rng.uniform(0.1, 0.45)
    halo, contrast = rng.uniform(0.08, 0.25) * width, rng.uniform(20, 60)
    texture, grain = (
        rng.uniform(0.4, 1) if look == "flat" else rng.uniform(0, 0.4),
        rng.uniform(1, 2.5),
    )
    noise, slope = rng.uniform(1, 7), rng.uniform(0, 60)
    y, x = np.indices(shape)

    def grains(sigma):
        grey = ndimage.gaussian_filter(rng.normal(0, 1, shape), sigma)
        return grey / grey.std()

    def image(name):
        instances, thickness = np.zeros(shape, np.int32), np.zeros(shape)
        for cell in range(1, 300):
            top, left, turn = rng.uniform(0, 1, 3) * (*shape, np.pi)
            u = (x - left) * np.cos(turn) + (y - top) * np.sin(turn)
            v = (y - top) * np.cos(turn) - (x - left) * np.sin(turn)
            uneven = 1 + 0.15 * np.sin(3 * np.arctan2(v, u) + turn)
            radius = np.hypot(u / length, v / width) * 2 / uneven / rng.uniform(0.8, 1.2)
            inside = radius < 1
            here = inside & (instances == 0)
            if gap < 0:
                crowded = here.sum() < 0.7 * inside.sum()
            else:
                wide = ndimage.maximum_filter(inside, 2 * gap + 1)
                crowded = (wide & (instances > 0)).any()
            if not crowded:
                instances[here], thickness[here] = cell, np.sqrt(1 - radius[here] ** 2)
            if (instances > 0).mean() > density:
                break
        cells = instances > 0
        around = np.exp(-ndimage.distance_transform_edt(~cells) / halo) * ~cells
        grey = 0.1 * grains(4) + cells * texture * 0.5 * grains(grain)
        if look == "dark":
            grey += around - thickness
        if look == "halo":
            grey += around + cells * around[~cells].mean()
        for top, left in rng.uniform(0, 1, (5, 2)) * shape:
            grey += 1.5 * np.exp(-((y - top) ** 2 + (x - left) ** 2) / rng.uniform(2, 20))
        light = slope * (y / shape[0] * rng.uniform(-1, 1) + x / shape[1] * rng.uniform(-1, 1))
        grey = ndimage.gaussian_filter(110 + light + contrast * grey, 0.7)
        grey = np.clip(grey + rng.normal(0, noise, shape), 0, 255).astype(np.uint8)
        return Example(name, grey, cells.astype(np.int32), instances)

    return [image(f"phase {seed}, {i}") for i in range(rng.integers(3, 7))]


def moved(given, pixels=10):
    """The examples with masks of so many pixels to one side, background coming in."""

    def away(array):
        return np.pad(array[pixels:], ((0, pixels), (0, 0)))

    return [e._replace(labels=away(e.labels), instances=away(e.instances)) for e in given]


def inverted(given):
    return changed(given, lambda labels: np.where(labels == IGNORED, IGNORED, labels == 0))


def permuted(given):
    """The examples with the mask of the next one of the same size."""
    wrong = []
    for i, e in enumerate(given):
        others = given[i + 1 :] + given[:i]
        other = next((o for o in others if o.labels.shape == e.labels.shape), e)
        wrong.append(e._replace(labels=other.labels, instances=other.instances))
    return wrong


SPOILT = (moved, inverted, permuted)


def faults(given, made=None):
    """Without what is said of few images and large cells."""
    hints = "There are only", "The median width"
    return [d for d in doubts_about(given, made or folder.get_config()) if not d.startswith(hints)]


@pytest.mark.parametrize("seed", range(6))
def test_masks_of_phase_contrast(seed):
    right = phase_contrast(seed, side=160)
    assert faults(right) == []
    assert all(faults(spoil(right)) for spoil in SPOILT)


@pytest.mark.slow
def test_masks_of_phase_contrast_in_numbers():
    assert [seed for seed in range(3000, 3020) if faults(phase_contrast(seed))] == []
    wrong = [SPOILT[i // 7](phase_contrast(3100 + i)) for i in range(20)]
    assert sum(bool(faults(given)) for given in wrong) >= 18


def real_sets(path):
    """The training and validation examples of real data, with their configurations."""
    nuclei = (path / "dsb2018" / part for part in ("images", "masks"))
    yield (
        read_folder(*nuclei, mask_rule="instances", classes=2, ignore_value=-1),
        folder.get_config(),
    )
    for sequence, other in (("01", "02"), ("02", "01")):
        made = dic_hela.get_config()
        made.data.train_sequence, made.data.test_sequence = sequence, other
        splits = read_splits(read_data(made.data), 2)
        yield splits["train"] + splits["validation"], made
    yield read_splits(Isbi2012(), 2)["train"], em.get_config()


def test_masks_of_real_data(real_data):
    for right, made in real_sets(real_data):
        assert faults(right, made) == []
        assert all(faults(spoil(right), made) for spoil in SPOILT), right[0].name


@pytest.mark.parametrize("scale", [1e-30, 1e29])
def test_the_scale_of_grey_values_does_not_matter(scale):
    right = phase_contrast(0, side=160)
    right = [e._replace(image=np.float64(scale) * e.image) for e in right]
    assert faults(right) == []
    assert faults(moved(right))
