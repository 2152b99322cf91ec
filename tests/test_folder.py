import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_jax.data.folder import connected_cells, read_folder, read_images
from unet_jax.data.folder_split import split_by_stem
from unet_jax.errors import InputError
from unet_jax.example import IGNORED, Example
from unet_jax.files.names import stem_and_page

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
        " fit 'classes' with 3 classes"
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
    assert f"{labels / 'c.png'}: has 3 channels, expected one" in refusal(folders)


def test_folders_that_cannot_be_used(folders, tmp_path):
    images, labels = folders
    assert f"{images}: holds no image" in refusal(folders)
    (images / "a.jpg").write_bytes(b"")
    assert f"{images}: holds a.jpg, but no image, expected .tif" in refusal(folders)
    (images / "a.jpg").unlink()
    assert f"{tmp_path / 'none'}: is not a folder" in refusal((tmp_path / "none", labels))
    text = refusal(folders, mask_rule="Binary")
    assert "'Binary', expected one of binary, classes, instances" in text
    one_pair(folders, MASK)
    write(images / "a.png", IMAGE)
    assert "a.tif: a.png has the same name" in refusal(folders)


def test_a_file_or_folders_instead_of_a_folder(folders):
    images, labels = folders
    one_pair(folders, MASK)
    text = refusal((images / "a.tif", labels))
    assert text == f"{images / 'a.tif'}: is a file, expected the folder that contains it"
    (images / "b").mkdir()
    (images / "a.tif").rename(images / "b" / "a.TIF")
    assert refusal(folders).startswith(
        f"{images}: holds no image itself, but its subfolder(s) b do"
    )


def test_files_that_are_left_out_are_named(folders, caplog):
    one_pair(folders, MASK)
    for name in ("b.czi", "c.nd2", "d.jpg", "e.bmp", ".hidden"):
        (folders[0] / name).write_bytes(b"")
    assert len(read(folders)) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{folders[0]}: 4 file(s) are left out, because only .tif, .tiff, .png, .zarr are read:"
        " b.czi, c.nd2, d.jpg, ..."
    ]


COMPOSED, IN_TWO_PARTS = "Z\u00e4hler.tif", "Za\u0308hler.tif"


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.ome.tif", "a.tif"),
        ("a.tif", "a.OME.tiff"),
        ("a.ome.tif", "a.ome.tif"),
        (COMPOSED, IN_TWO_PARTS),
        (IN_TWO_PARTS, COMPOSED),
    ],
)
def test_one_name_in_several_spellings(folders, image, mask, caplog):
    write(folders[0] / image, IMAGE)
    write(folders[1] / mask, MASK)
    assert_example(*read(folders), Path(image).stem, IMAGE, MASK, INSTANCES)
    assert not caplog.records


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.tif", "a_mask.tif"),
        ("a.tif", "a_masks.png"),
        ("a.tif", "a_cp_masks.png"),
        ("a.tif", "a-Mask.tif"),
        ("a.tif", "a mask.tif"),
        ("a.tif", "a_seg.tif"),
        ("a.tif", "a_label.tif"),
        ("a.tif", "a_labels.tif"),
        ("a.tif", "a_Simple Segmentation.tif"),
        ("a.ome.tif", "a_masks.ome.tif"),
        ("a_img.png", "a_masks.png"),
        ("a_img.png", "a_img_masks.png"),
        ("a_seg.tif", "a_seg_mask.tif"),
    ],
)
def test_masks_are_found_by_the_ending_of_their_names(folders, image, mask, together, caplog):
    images, labels = folders
    if together:
        labels = images
    write(images / image, IMAGE)
    write(labels / mask, MASK)
    assert_example(*read((images, labels)), Path(image).stem, IMAGE, MASK, INSTANCES)
    assert [record.getMessage() for record in caplog.records] == [
        f"{labels}: 1 mask(s) are paired by ignoring the ending of a name, such as {mask} with"
        f" {image}"
    ]


def test_equal_names_come_before_endings(folders, caplog):
    images, labels = folders
    for name, value in (("a.tif", 0), ("a_mask.tif", 1)):
        write(images / name, IMAGE)
        write(labels / name, MASK * np.uint8(value))
    assert [example.labels.any() for example in read(folders)] == [False, True]
    assert not caplog.records
    write(labels / "a_seg.tif", MASK)
    assert (
        refusal(folders)
        == f"{labels / 'a_seg.tif'}: a.tif already has the mask a.tif, expected only one"
    )


def test_one_folder_without_masks_is_refused(folders):
    images, labels = folders
    one_pair(folders, MASK)
    link = images.with_name("link")
    link.symlink_to(images)
    for same in (images, link):
        assert "is given for both images and masks, but the names" in refusal((images, same))
    write(images / "b_mask.tif", MASK)
    with pytest.raises(InputError) as caught:
        read((images, images))
    assert [line.split("; ")[0] for line in caught.value.args] == [
        f"1 file(s) without a mask in {images}: a.tif",
        f"1 file(s) without an image in {images}: b_mask.tif",
    ]
    (images / "a.tif").unlink()
    assert "is given for both images and masks, but the names" in refusal((images, images))
    (images / "b_mask.tif").unlink()
    assert refusal((images, images)).startswith(f"{images}: holds no image, expected")


def test_names_that_look_the_same_are_told_apart(folders):
    images, labels = folders
    write(images / COMPOSED, IMAGE)
    write(images / IN_TWO_PARTS, IMAGE)
    write(labels / COMPOSED, MASK)
    assert f"1 file(s) without a mask in {labels}: 'Za\\u0308hler.tif';" in refusal(folders)


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
        ((0, 1, 2, 3, 255), {"mask_rule": "classes"}, "'classes' with 4 classes and ignore_value"),
        ((0, 1, 3), {"mask_rule": "classes", "classes": 3}, "values 0, 1, 3 do not fit"),
        (tuple(range(30)), {}, "values 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... do not fit"),
        (
            (0, -2),
            {"mask_rule": "instances"},
            "values -2, 0 do not fit mask_rule 'instances' with 2 classes; no rule fits all masks",
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


@pytest.mark.parametrize(
    ("values", "mask_rule", "minus_one", "ignore_value", "labels", "instances"),
    [
        # The background is -1: others count from there, whether or not there is a 0.
        ([-1, 3, 3, 9], "instances", "background", -1, [0, 1, 1, 1], [0, 4, 4, 10]),
        ([-1, 0, 0, 1], "instances", "background", -1, [0, 1, 1, 1], [0, 1, 1, 2]),
        ([-1, 0, 1, 1], "classes", "background", -1, [0, 1, 2, 2], [0, 1, 1, 1]),
        ([-1, 1, -1, 1], "binary", "background", -1, [0, 1, 0, 1], [0, 1, 0, 2]),
        ([-1, 0, 1, 1], "binary", "background", 0, [0, IGNORED, 1, 1], [0, 0, 1, 1]),
        ([-1, 0, 5, 255], "instances", "background", 255, [0, 1, 1, IGNORED], [0, 1, 6, 0]),
        # Masks without it are read as ever.
        ([0, 1, 1, 0], "binary", "background", -1, [0, 1, 1, 0], [0, 1, 1, 0]),
        ([-1, 0, 7, 7], "instances", "ignored", -1, [IGNORED, 0, 1, 1], [0, 0, 7, 7]),
        ([-1, 0, 1, 255], "binary", "ignored", 255, [IGNORED, 0, 1, IGNORED], [0, 0, 1, 0]),
        ([-1, 1, 2, 0], "classes", "ignored", 0, [IGNORED, 0, 1, IGNORED], [0, 0, 1, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_minus_one_is_the_background_or_ignored(
    folders, values, mask_rule, minus_one, ignore_value, labels, instances, dtype
):
    one_pair(folders, np.array([values], dtype), IMAGE[:1, :4])
    (example,) = read_folder(
        *folders, mask_rule=mask_rule, classes=3, ignore_value=ignore_value, minus_one=minus_one
    )
    assert_example(example, "a", IMAGE[:1, :4], [labels], [instances])


def test_minus_one_is_never_guessed(folders):
    one_pair(folders, -MASK.astype(np.int8))
    assert "set config.data.minus_one to say what -1 means" in refusal(folders)
    with pytest.raises(InputError, match="minus_one is 'no', expected 'background', 'ignored' or"):
        read_folder(*folders, mask_rule="binary", classes=2, ignore_value=-1, minus_one="no")


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


def test_numbers_too_large_for_tables_are_numbered_anew(folders):
    cells = np.array([[0, 7, 7, 2**31 - 1]], np.uint32)
    write(folders[0] / "a.tif", IMAGE[:1, :4])
    write(folders[1] / "a.tif", cells)
    (example,) = read(folders, mask_rule="instances")
    assert example.instances.tolist() == [[0, 1, 1, 2]]


def with_cells(name, has_cells):
    labels = MASK.astype(np.int32) * has_cells
    return Example(name, IMAGE, labels, INSTANCES * has_cells)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("cells", range(7))
def test_each_part_gets_a_file_with_cells(seed, cells):
    examples = [with_cells(f"{i}", i < cells) for i in range(6)]
    split = split_by_stem(examples, 0.3, 0.2, seed)
    found = [any(e.labels.any() for e in part) for part in split.values()]
    assert found == [cells > 0, cells > 1, cells > 2]
    assert [len(part) for part in split.values()] == [3, 2, 1]
    assert sorted(e.name for part in split.values() for e in part) == list("012345")


def test_a_split_with_cells_in_each_part_is_as_it_was():
    names = list("abcdef")
    order = [names[i] for i in np.random.default_rng(3).permutation(6)]
    examples = [with_cells(name, name in (order[0], order[4], order[5])) for name in names]
    split = names_of(split_by_stem(examples, 0.2, 0.2, seed=3))
    assert split == {"train": order[:4], "validation": order[4:5], "test": order[5:]}


def large(name, height, width, first=0):
    labels = np.zeros((height, width), np.int32)
    labels[first:, first:] = 1
    return Example(name, np.arange(height * width).reshape(height, width), labels, labels)


def test_one_image_is_cut_along_its_longer_side(caplog):
    example = large("c0", 300, 200)
    split = split_by_stem([example], 0.2, 0.1, seed=0)
    assert names_of(split) == {
        "train": ["c0 rows 0 to 207"],
        "validation": ["c0 rows 208 to 267"],
        "test": ["c0 rows 268 to 299"],
    }
    for field in ("image", "labels", "instances"):
        blocks = [getattr(part[0], field) for part in split.values()]
        np.testing.assert_array_equal(np.concatenate(blocks), getattr(example, field))
    assert [record.getMessage() for record in caplog.records] == [
        "1 annotated file(s) are too few to be divided, so each image is cut: c0 rows 0 to 207 for"
        " training, c0 rows 208 to 267 for validation, c0 rows 268 to 299 for the test"
    ]


def test_two_images_and_their_few_pages_are_cut_each():
    examples = [large("a", 100, 400), large("b page 0", 96, 96), large("b page 1", 96, 96)]
    assert names_of(split_by_stem(examples, 0.2, 0.1, seed=0)) == {
        "train": ["a columns 0 to 279", "b rows 0 to 31 page 0", "b rows 0 to 31 page 1"],
        "validation": ["a columns 280 to 359", "b rows 32 to 63 page 0", "b rows 32 to 63 page 1"],
        "test": ["a columns 360 to 399", "b rows 64 to 95 page 0", "b rows 64 to 95 page 1"],
    }
    assert stem_and_page("b rows 0 to 31 page 1") == ("b rows 0 to 31", 1)


def test_what_cannot_be_cut():
    with pytest.raises(InputError, match="a: 95 x 90 pixels are too few to be cut into training"):
        split_by_stem([large("a", 95, 90)], 0.1, 0.1, seed=0)
    split_by_stem([large("a", 96, 90)], 0.1, 0.1, seed=0)
    for split, start, end in (("train", 0, 35), ("validation", 36, 67), ("test", 68, 99)):
        stroked = large("a", 100, 90)
        stroked.labels[start : end + 1] = IGNORED
        text = f"Nothing is annotated in a rows {start} to {end}, the {split} split of 1 file"
        with pytest.raises(InputError, match=text):
            split_by_stem([stroked], 0.1, 0.1, seed=0)


def test_nothing_to_split():
    with pytest.raises(InputError, match=r"0 file\(s\) cannot be split"):
        split_by_stem([], 0.1, 0.1, seed=0)


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
    assert "R, G and B are equal and are read as one channel" in caplog.records[-1].getMessage()
    assert len(caplog.records) <= 2
    split = split_by_stem(examples, 0.2, 0.2, seed=0)
    assert [len(part) for part in split.values()] == [30, 10, 10]
