import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_jax.data.folder import connected_cells, read_folder, read_images, split_by_stem
from unet_jax.errors import InputError
from unet_jax.example import IGNORED, Example

DATA = os.environ.get("UNET_JAX_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="UNET_JAX_DATA is not set, real data needed")

IMAGE = np.random.default_rng(0).integers(0, 255, (5, 6), np.uint8)
# Two cells that touch only at a corner.
MASK = np.zeros((5, 6), np.uint8)
MASK[0, :2] = MASK[1, 2:4] = 1
INSTANCES = np.zeros((5, 6), np.int32)
INSTANCES[0, :2], INSTANCES[1, 2:4] = 1, 2


@pytest.fixture
def folders(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    return images, labels


def write(path, pixels):
    if path.suffix.lower() == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels, photometric="minisblack")


def read(folders, mask_rule="binary", classes=2, ignore_value=-1, channels=None):
    return read_folder(
        *folders,
        mask_rule=mask_rule,
        classes=classes,
        ignore_value=ignore_value,
        channels=channels,
    )


def refusal(folders, **options):
    with pytest.raises(InputError) as caught:
        read(folders, **options)
    text = str(caught.value)
    assert text.splitlines() == [text]
    return text


def one_pair(folders, mask, image=IMAGE):
    write(folders[0] / "a.tif", image)
    write(folders[1] / "a.tif", mask)


def assert_example(example, name, image, labels, instances):
    assert example.name == name
    np.testing.assert_array_equal(example.image, image, strict=True)
    np.testing.assert_array_equal(example.labels, np.asarray(labels, np.int32), strict=True)
    np.testing.assert_array_equal(example.instances, np.asarray(instances, np.int32), strict=True)


def test_files_are_paired_by_stem_whatever_their_format(folders):
    images, labels = folders
    for name in ("b.PNG", "a.TIFF", "c.tif"):
        write(images / name, IMAGE)
    for name in ("a.png", "b.tif", "c.Png"):
        write(labels / name, MASK)
    for path in (images / ".hidden.tif", labels / "._a.png", labels / "notes.txt"):
        path.write_bytes(b"not an image")
    examples = read(folders)
    for example, name in zip(examples, "abc", strict=True):
        assert_example(example, name, IMAGE, MASK, INSTANCES)


def test_each_page_of_a_stack_is_an_example(folders):
    stack = np.stack([IMAGE, IMAGE + 1, IMAGE])
    one_pair(folders, np.stack([MASK, 0 * MASK, MASK]), stack)
    examples = read(folders)
    assert_example(examples[0], "a page 0", IMAGE, MASK, INSTANCES)
    assert_example(examples[1], "a page 1", IMAGE + 1, 0 * MASK, 0 * MASK)
    assert_example(examples[2], "a page 2", IMAGE, MASK, INSTANCES)


def test_binary_masks_of_255_are_read_with_a_notice(folders, caplog):
    one_pair(folders, MASK * np.uint8(255))
    assert_example(*read(folders), "a", IMAGE, MASK, INSTANCES)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folders[1]}: mask values 0 and 255 are read as classes 0 and 1"
    ]


@pytest.mark.parametrize("dtype", [bool, np.int16, np.uint16, np.float16, np.float32, np.float64])
def test_masks_of_any_dtype_with_whole_numbers(folders, dtype, caplog):
    one_pair(folders, MASK.astype(dtype))
    assert_example(*read(folders), "a", IMAGE, MASK, INSTANCES)
    assert not caplog.records


def test_touching_classes_are_one_cell(folders):
    mask = np.zeros((5, 6), np.uint8)
    mask[0, :3], mask[1, :3], mask[4, 5] = 1, 2, 1
    instances = np.zeros((5, 6), np.int32)
    instances[:2, :3], instances[4, 5] = 1, 2
    one_pair(folders, mask)
    assert_example(*read(folders, "classes", classes=3), "a", IMAGE, mask, instances)


def test_instance_masks_keep_their_numbers(folders):
    mask = np.zeros((5, 6), np.uint16)
    mask[0, :2], mask[0, 2:], mask[4, 0] = 7, 300, 7
    one_pair(folders, mask)
    assert_example(*read(folders, "instances"), "a", IMAGE, mask > 0, mask)


@pytest.mark.parametrize("mask_rule", ["binary", "classes", "instances"])
def test_strokes_are_no_cells(folders, mask_rule):
    mask = np.full((5, 6), 255, np.int32)
    mask[0], mask[2, :3] = 0, 1
    one_pair(folders, mask)
    (stroked,) = read(folders, mask_rule, ignore_value=255)
    np.testing.assert_array_equal(stroked.labels, np.where(mask == 255, IGNORED, mask))
    assert stroked.instances.any() == (mask_rule == "instances")


def test_classes_begin_at_1_where_0_is_ignored(folders):
    mask = np.zeros((5, 6), np.uint8)
    mask[0], mask[1], mask[2, :3] = 1, 2, 3
    one_pair(folders, mask)
    (stroked,) = read(folders, "classes", classes=3, ignore_value=0)
    np.testing.assert_array_equal(stroked.labels, mask.astype(np.int32) - 1)
    text = refusal(folders, mask_rule="classes", ignore_value=0)
    assert text.endswith(
        "values 1, 2, 3 do not fit mask_rule 'classes' with 2 classes; all masks"
        " fit 'classes' with 3 classes, or 'classes' with ignore_value 3"
    )
    for mask_rule in ("binary", "instances"):
        text = refusal(folders, mask_rule=mask_rule, ignore_value=0)
        assert f"the background under mask_rule '{mask_rule}'; expected another" in text


@pytest.mark.parametrize("mask_rule", ["binary", "classes", "instances"])
def test_ignored_pixels_have_no_class_and_no_cell(folders, mask_rule):
    mask = MASK.copy()
    mask[0, 1] = 255
    labels, instances = MASK.astype(np.int32), INSTANCES.copy()
    labels[0, 1], instances[0, 1] = IGNORED, 0
    if mask_rule == "instances":
        instances[1, 2:4] = 1
    one_pair(folders, mask)
    examples = read(folders, mask_rule, ignore_value=255)
    assert_example(*examples, "a", IMAGE, labels, instances)


def test_channels_of_images_and_masks(folders):
    images, labels = folders
    grey = np.repeat(IMAGE[..., None], 3, axis=-1)
    colour = grey + np.arange(3, dtype=np.uint8)
    write(images / "a.png", grey)
    write(labels / "a.png", np.repeat(MASK[..., None], 3, axis=-1))
    assert_example(*read(folders), "a", IMAGE, MASK, INSTANCES)
    assert_example(*read(folders, channels=3), "a", grey, MASK, INSTANCES)
    assert "a.png: has 3 channel(s), expected 2 that" in refusal(folders, channels=2)
    write(images / "b.png", colour)
    write(labels / "b.png", MASK)
    first, second = read(folders)
    assert_example(first, "a", grey, MASK, INSTANCES)
    assert_example(second, "b", colour, MASK, INSTANCES)
    write(images / "c.png", IMAGE)
    write(labels / "c.png", MASK)
    assert "c.png: has 1 channel(s), expected 3 as in a.png" in refusal(folders)
    write(images / "c.png", colour)
    write(labels / "c.png", colour)
    assert f"{labels / 'a.png'}: has 3 channels, expected one" in refusal(folders)


def test_folders_that_cannot_be_used(folders, tmp_path):
    images, labels = folders
    assert f"{images}: holds no image" in refusal(folders)
    (images / "a.jpg").write_bytes(b"")
    assert f"{images}: holds no image but a.jpg, expected .tif" in refusal(folders)
    (images / "a.jpg").unlink()
    assert f"{tmp_path / 'none'}: is not a folder" in refusal((tmp_path / "none", labels))
    text = refusal(folders, mask_rule="Binary")
    assert "'Binary', expected one of binary, classes, instances" in text
    one_pair(folders, MASK)
    write(images / "a.png", IMAGE)
    assert "a.tif: a.png has the same name" in refusal(folders)


def test_files_without_partner_are_named_up_to_three(folders):
    images, labels = folders
    one_pair(folders, MASK)
    for name in "bcdef":
        write(images / f"{name}.tif", IMAGE)
    assert f"5 file(s) without a mask in {labels}: b.tif, c.tif, d.tif, ...;" in refusal(folders)
    for name in "bcdefghi":
        write(labels / f"{name}.tif", MASK)
    text = refusal(folders)
    assert f"3 file(s) without an image in {images}: g.tif, h.tif, i.tif;" in text


@pytest.mark.parametrize("mask", [MASK[:4], np.stack([MASK, MASK])])
def test_mask_of_another_shape_or_page_count_is_refused(folders, mask):
    one_pair(folders, mask)
    pages = mask.shape if mask.ndim == 3 else (1, *mask.shape)
    text = refusal(folders)
    assert f"{folders[1] / 'a.tif'}: " in text and f"{pages}, expected (1, 5, 6)" in text


@pytest.mark.parametrize(
    ("values", "options", "says"),
    [
        (
            (0, 1, 2),
            {},
            "values 0, 1, 2 do not fit mask_rule 'binary' with 2 classes; all masks"
            " fit 'instances', or 'classes' with 3 classes, or 'binary' with ignore_value 2",
        ),
        (
            (0, 255),
            {"mask_rule": "classes"},
            "all masks fit 'binary', or 'instances', or 'classes' with ignore_value 255",
        ),
        ((0, 1, 2), {"classes": 3}, "fit 'classes', or 'instances'"),
        (
            (0, 1, 2, 3, 255),
            {"mask_rule": "classes"},
            "fit 'instances', or 'classes' with 4 classes and ignore_value 255",
        ),
        (
            (0, 1, 2),
            {"mask_rule": "classes"},
            "or 'classes' with ignore_value 0 if 0 means not annotated",
        ),
        ((1, 2) * 15, {}, "values 1, 2 do not fit mask_rule 'binary'"),
        ((0, 1, 3), {"mask_rule": "classes", "classes": 3}, "values 0, 1, 3 do not fit"),
        (tuple(range(30)), {}, "values 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... do not fit"),
        (
            (0, -1),
            {"mask_rule": "instances"},
            "values -1, 0 do not fit mask_rule 'instances' with 2 classes; all masks fit no rule",
        ),
    ],
)
def test_masks_that_break_their_rule_are_shown_with_the_rule_that_fits(
    folders, values, options, says
):
    mask = np.zeros((5, 6), np.int16)
    mask.flat[: len(values)] = values
    one_pair(folders, mask)
    text = refusal(folders, **options)
    assert text.startswith(f"{folders[1] / 'a.tif'}: mask values ") and says in text


def test_masks_that_break_the_rule_only_together(folders):
    for name, value in (("a", 1), ("b", 255)):
        write(folders[0] / f"{name}.tif", IMAGE)
        write(folders[1] / f"{name}.tif", MASK * np.uint8(value))
    assert refusal(folders).startswith(f"{folders[1]}: mask values 0, 1, 255 do not fit")


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (MASK * np.float32(0.5), "0 to 0.5"),
        (MASK * np.float32(2**31), "0 to 2.14748e+09"),
        (MASK * np.int64(-(2**31) - 1), "-2.14748e+09 to 0"),
        (MASK * np.uint64(2**63), "0 to 9.22337e+18"),
    ],
)
def test_masks_of_other_numbers_are_refused(folders, mask, found):
    one_pair(folders, mask)
    assert f"from {found}, expected whole numbers" in refusal(folders)


def test_read_images_of_a_folder_and_of_a_file(tmp_path):
    grey = np.repeat(IMAGE[..., None], 3, axis=-1)
    write(tmp_path / "b.png", grey)
    write(tmp_path / "a.tif", np.stack([IMAGE, IMAGE + 1]))
    named = read_images(tmp_path, 1)
    assert [name for name, _ in named] == ["a page 0", "a page 1", "b"]
    for (_, image), expected in zip(named, (IMAGE, IMAGE + 1, IMAGE), strict=True):
        np.testing.assert_array_equal(image, expected, strict=True)
    ((name, image),) = read_images(tmp_path / "b.png", 3)
    assert name == "b"
    np.testing.assert_array_equal(image, grey, strict=True)
    with pytest.raises(InputError, match=r"a.tif: has 1 channel\(s\), expected 3 that the network"):
        read_images(tmp_path, 3)
    with pytest.raises(InputError, match="not a folder"):
        read_images(tmp_path / "none", 1)


def test_connected_cells_of_several_classes():
    labels = np.array([[1, 2, 0, 3], [0, 0, 3, IGNORED], [1, IGNORED, 3, 3]])
    cells = connected_cells(labels)
    np.testing.assert_array_equal(cells, [[1, 1, 0, 2], [0, 0, 3, 0], [4, 0, 3, 3]])
    assert cells.dtype == np.int32


def named_examples(names):
    return [Example(name, IMAGE, MASK.astype(np.int32), INSTANCES) for name in names]


def names_of(split):
    return {part: [example.name for example in examples] for part, examples in split.items()}


def test_split_is_reproducible_and_independent_of_order():
    examples = named_examples([f"image{number}" for number in range(10)])
    split = names_of(split_by_stem(examples, 0.2, 0.3, seed=1))
    assert split == names_of(split_by_stem(examples[::-1], 0.2, 0.3, seed=1))
    assert split != names_of(split_by_stem(examples, 0.2, 0.3, seed=2))
    assert {part: len(names) for part, names in split.items()} == {
        "train": 5,
        "validation": 2,
        "test": 3,
    }
    assert sorted(sum(split.values(), [])) == [example.name for example in examples]


def test_split_keeps_the_pages_of_a_file_together_in_order():
    names = [f"{stem} page {page}" for stem in "abcdef" for page in range(11)]
    split = names_of(split_by_stem(named_examples(names), 0.1, 0.1, seed=0))
    assert sorted(sum(split.values(), [])) == sorted(names)
    parts = Counter()
    for part, found in split.items():
        stems = sorted({name[0] for name in found})
        assert {name for name in found} == {name for name in names if name[0] in stems}
        parts[part] = len(stems)
    assert parts == {"train": 4, "validation": 1, "test": 1}
    assert split["test"] == [f"{split['test'][0][0]} page {page}" for page in range(11)]


def test_split_of_one_stack_is_three_blocks():
    names = [f"stack page {page}" for page in range(12)]
    split = names_of(split_by_stem(named_examples(names[::-1]), 0.25, 0.1, seed=0))
    assert split == {"train": names[:8], "validation": names[8:11], "test": names[11:]}


@pytest.mark.parametrize(
    "names",
    [[], ["a", "b"], ["a page 0", "a page 1"], ["a page 0", "a page 1", "b page 0", "b page 1"]],
)
def test_too_little_to_split(names):
    with pytest.raises(InputError, match="cannot be split"):
        split_by_stem(named_examples(names), 0.1, 0.1, seed=0)


@needs_data
def test_nuclei_of_the_data_science_bowl(caplog):
    folder = Path(DATA) / "dsb2018"
    examples = read_folder(
        folder / "images", folder / "masks", mask_rule="instances", classes=2, ignore_value=-1
    )
    assert len(examples) == 50
    for example in examples:
        assert example.image.dtype == np.uint8 and example.image.shape == example.labels.shape
        mask = tifffile.imread(folder / "masks" / f"{example.name}.tif")
        np.testing.assert_array_equal(example.instances, mask)
        np.testing.assert_array_equal(example.labels, mask > 0)
        rgba = np.asarray(Image.open(folder / "images" / f"{example.name}.png"))
        np.testing.assert_array_equal(example.image, rgba[..., 0])
    # The notice of the alpha channel comes once in a process.
    assert "R, G and B are equal, read as one channel" in caplog.records[-1].getMessage()
    assert len(caplog.records) <= 2
    split = split_by_stem(examples, 0.2, 0.2, seed=0)
    assert [len(part) for part in split.values()] == [30, 10, 10]
