"""The images that `nuclei` is trained on: python -m benchmarks.nuclei_images

Those of `dsb2018_fluorescence` in UNET_JAX_DATA but for what `dsb2018` holds as well, which is the
test: by the first 12 letters of the name, and by what is seen. They are rather sharp and bright,
and their nuclei lie apart; so each of the smaller ones comes with two that are made of it: blurred
and noisy, and with its nuclei packed against one another, some of them a tenth as bright as others.

What is made of one image, and images of one field, such as the slices through an embryo, become the
pages of a file, which the split keeps on one side.
"""

from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage as ndi
from scipy.sparse.csgraph import connected_components

from benchmarks.nuclei import read_nuclei
from unet_jax import Example

_FOLDER = Path("runs", "nuclei_images")
# Images of one field correlate with 0.5 to 1, other ones with up to 0.5.
_SAME_FIELD = 0.5
_BLOCK = 6  # pixels, averaged
_SMALL = 400**2  # pixels


def main():
    """Writes `images` and `masks`."""
    test, all_ = read_nuclei("dsb2018"), read_nuclei("dsb2018_fluorescence")
    letters = {example.name[:12] for example in test}
    named = [example for example in all_ if example.name[:12] not in letters]
    tested = [_thumbnail(example) for example in test]
    new = [e for e in named if not any(_is_same(_thumbnail(e), other) for other in tested)]
    thumbnails = [_thumbnail(example) for example in new]
    same = np.array([[_is_same(a, b) for b in thumbnails] for a in thumbnails])
    count, group = connected_components(same)
    for kind in ("images", "masks"):
        (_FOLDER / kind).mkdir(parents=True)
    for number in range(count):
        pages = [new[index] for index in np.flatnonzero(group == number)]
        if pages[0].labels.size <= _SMALL:
            pages += [noisy(page) for page in pages] + [
                packed(page) for page in pages if _inner(page.instances).any()
            ]
        for kind, arrays in (
            ("images", [_grey(page) for page in pages]),
            ("masks", [page.instances.astype(np.uint16) for page in pages]),
        ):
            file = _FOLDER / kind / f"{pages[0].name}.tif"
            tifffile.imwrite(file, np.stack(arrays), photometric="minisblack")
    print(
        f"{len(all_)} images, {len(all_) - len(named)} of them in the test by name, "
        f"{len(named) - len(new)} more by what is seen; {len(new)} are left, of {count} fields."
    )


def noisy(example):
    """The same image, blurred by up to 3 pixels, and noisier."""
    rng = np.random.default_rng([*example.name.encode()])
    image = ndi.gaussian_filter(_grey(example).astype(np.float32), rng.choice([0, 1, 2, 3]))
    cell = example.labels > 0
    contrast = abs(image[cell].mean() - image[~cell].mean())
    noise = contrast / np.exp(rng.uniform(np.log(1.5), np.log(8)))
    return example._replace(image=_eight_bits(image + rng.normal(0, noise, image.shape)))


def packed(example):
    """An image of the same size whose nuclei, those of the example, touch; 0.1 to 1 as bright."""
    rng = np.random.default_rng([*example.name.encode(), 1])
    grey, cells = _grey(example).astype(np.float32), example.instances
    dark = grey[cells == 0]
    level, noise = np.median(dark), max(1.5 * np.median(abs(dark - np.median(dark))), 0.2)
    instances, light = np.zeros_like(cells), np.zeros_like(grey)
    whole = ndi.find_objects(_inner(cells))
    parts = [(number, part) for number, part in enumerate(whole, 1) if part]
    for number in range(1, 1500):
        of, part = parts[rng.integers(len(parts))]
        mask, bright = cells[part] == of, (grey[part] - level).clip(0)
        turns = rng.integers(4)
        mask, bright = np.rot90(mask, turns), np.rot90(bright, turns)
        y, x = (rng.integers(1 - a, b) for a, b in zip(mask.shape, cells.shape, strict=True))
        here = np.s_[max(y, 0) : y + mask.shape[0], max(x, 0) : x + mask.shape[1]]
        height, width = instances[here].shape
        there = np.s_[max(-y, 0) :, max(-x, 0) :]
        mask, bright = (a[there][:height, :width] for a in (mask, bright))
        free = mask & (instances[here] == 0)
        if free.sum() < 0.75 * mask.sum() or free.sum() < 20:
            continue
        instances[here][free] = number
        light[here][free] = bright[free] * np.exp(rng.uniform(np.log(0.1), 0))
    image = level + ndi.gaussian_filter(light, 0.7) + rng.normal(0, noise, light.shape)
    labels = (instances > 0).astype(np.int32)
    return Example(example.name, _eight_bits(image), labels, instances)


def _inner(cells):
    """Those that are not cut by the image's border."""
    border = np.concatenate([cells[0], cells[-1], cells[:, 0], cells[:, -1]])
    return np.where(np.isin(cells, border), 0, cells)


def _eight_bits(image):
    """As the others are: what is dim would else be of few grey values."""
    low, high = image.min(), image.max()
    return np.uint8(np.round((image - low) * (255 / (high - low))))


def _grey(example):
    return example.image if example.image.ndim == 2 else example.image.max(-1)


def _thumbnail(example):
    height, width = (side // _BLOCK for side in example.labels.shape)
    cut = _grey(example)[: height * _BLOCK, : width * _BLOCK]
    mean = cut.reshape(height, _BLOCK, width, _BLOCK).mean((1, 3))
    return np.log1p(mean) - np.log1p(mean).mean()


def _is_same(thumbnail, other):
    if thumbnail.shape != other.shape:
        return False
    norm = np.sqrt((thumbnail**2).sum() * (other**2).sum())
    return bool((thumbnail * other).sum() >= _SAME_FIELD * norm > 0)


if __name__ == "__main__":
    main()
