"""The images that `nuclei` is trained on: python -m benchmarks.nuclei_images

Those of `dsb2018_fluorescence` in UNET_JAX_DATA but for what `dsb2018` holds as well, which is the
test: by the first 12 letters of the name, and by what is seen. Images of one field, such as the
slices through an embryo, become the pages of a file, which the split keeps on one side.
"""

import os
from pathlib import Path

import numpy as np
import tifffile
from scipy.sparse.csgraph import connected_components

from unet_jax.data.folder import read_folder

_FOLDER = Path("runs", "nuclei_images")
# Images of one field correlate with 0.5 to 1, other ones with up to 0.5.
_SAME_FIELD = 0.5
_BLOCK = 6  # pixels, averaged


def main():
    """Writes `images` and `masks`."""
    data = Path(os.environ["UNET_JAX_DATA"])
    test, all_ = (_read(data / name) for name in ("dsb2018", "dsb2018_fluorescence"))
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
        for kind, arrays in (
            ("images", [_grey(page) for page in pages]),
            ("masks", [page.instances.astype(np.uint16) for page in pages]),
        ):
            tifffile.imwrite(_FOLDER / kind / f"{pages[0].name}.tif", np.stack(arrays))
    print(
        f"{len(all_)} images, {len(all_) - len(named)} of them in the test by name, "
        f"{len(named) - len(new)} more by what is seen; {len(new)} are left, of {count} fields."
    )


def _read(folder):
    return read_folder(
        folder / "images", folder / "masks", mask_rule="instances", classes=2, ignore_value=-1
    )


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
