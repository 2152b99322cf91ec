"""Which mask belongs to which image of a folder, judging by their names."""

import logging
import os
import re
from collections import Counter
from pathlib import Path

from unet_jax.errors import InputError, Problems, listed
from unet_jax.files.names import (
    SUFFIXES,
    composed,
    example_stem,
    file_stem,
    has_image_suffix,
    is_zarr,
)

logger = logging.getLogger("unet_jax")

# What programs and people add to the name of an image, such as cell_img.tif and cell_masks.tif.
_MASK_ENDING = re.compile(
    r"[ _.-]+((cp|simple)[ _-])?(masks?|labels?|labell?ed|seg|segmentation|gt|annotations?)$",
    re.IGNORECASE,
)
_IMAGE_ENDING = re.compile(r"[ _.-]+(images?|img|raw)$", re.IGNORECASE)


def find_files(folder: str | os.PathLike, problems: Problems) -> dict[str, Path]:
    """The images of a folder by their stem, sorted; it is a problem if there are none."""
    folder = Path(folder)
    files: dict[str, Path] = {}
    with problems.collected():
        if folder.is_file() or is_zarr(folder):
            raise InputError(f"{folder}: is a file, expected the folder that contains it")
        if not folder.is_dir():
            raise InputError(f"{folder}: is not a folder, expected one with {', '.join(SUFFIXES)}")
        present = [path for path in folder.iterdir() if not path.name.startswith(".")]
        for path in sorted(present, key=lambda path: (example_stem(path), path.suffix)):
            if not has_image_suffix(path):
                continue
            stem = example_stem(path)
            with problems.collected():
                if stem in files:
                    other = files[stem].name
                    raise InputError(
                        f"{path}: {other} has the same name, expected only one of them"
                    )
            files[stem] = path
        others = sorted(
            path.name for path in present if not has_image_suffix(path) and path.is_file()
        )
        if files and others:
            logger.warning(
                "%s: %d file(s) are left out, because only %s are read: %s",
                *(folder, len(others), ", ".join(SUFFIXES), listed(others, 3)),
            )
        if not files:
            folders = [path.name for path in present if any(map(has_image_suffix, path.glob("*")))]
            if folders:
                raise InputError(
                    f"{folder}: holds no image itself, but its subfolder(s)"
                    f" {listed(sorted(folders), 3)} do; give one of these"
                )
            found = f"holds {listed(others, 3)}, but no image" if others else "holds no image"
            raise InputError(f"{folder}: {found}, expected {', '.join(SUFFIXES)}")
    return files


def find_pairs(
    images: str | os.PathLike, labels: str | os.PathLike, problems: Problems
) -> tuple[dict[str, Path], dict[str, Path]]:
    """The images of a folder by their stem, and their masks by the same stem."""
    image_files = find_files(images, problems)
    if os.path.realpath(images) != os.path.realpath(labels):
        mask_files = find_files(labels, problems)
    elif image_files:
        image_files, mask_files = _part(image_files)
        with problems.collected():
            if not (image_files and mask_files):
                raise InputError(
                    f"{images}: is given for both images and masks, but the names do not show which"
                    " are which; expected another folder for the masks, or x_mask.tif next to x.tif"
                )
    else:
        mask_files = {}
    if not (image_files and mask_files):
        return image_files, mask_files

    pairs, alone = _pair(image_files, mask_files, labels)
    masked = {_without_image_ending(image_files[stem]): stem for stem in pairs}
    for path in alone:
        stem = masked.get(_without_both_endings(path))
        with problems.collected():
            if stem is not None:
                raise InputError(
                    f"{path}: {image_files[stem].name} already has the mask {pairs[stem].name},"
                    " expected only one"
                )
    images_alone = [path for stem, path in image_files.items() if stem not in pairs]
    masks_alone = [path for path in alone if _without_both_endings(path) not in masked]
    with problems.collected():
        _refuse_alone(images_alone, image_files, f"a mask in {labels}")
    with problems.collected():
        _refuse_alone(masks_alone, mask_files, f"an image in {images}")
    return image_files, {s: pairs[s] for s in image_files if s in pairs} | {
        example_stem(path): path for path in alone
    }


def _part(files: dict[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The images of one folder and their masks, each by their stem: x.tif and x_mask.tif."""
    names = {stem: file_stem(path) for stem, path in files.items()}
    # Where there is x_seg_mask.tif, x_seg.tif is an image.
    masked = {_MASK_ENDING.sub("", n) for n in names.values() if _MASK_ENDING.search(n)}
    are_masks = {s for s, name in names.items() if _MASK_ENDING.search(name) and name not in masked}
    return (
        {stem: path for stem, path in files.items() if stem not in are_masks},
        {stem: path for stem, path in files.items() if stem in are_masks},
    )


def _pair(
    image_files: dict[str, Path], mask_files: dict[str, Path], labels: str | os.PathLike
) -> tuple[dict[str, Path], list[Path]]:
    """The masks by the stem of their image, exact names first, and the masks without an image."""
    pairs: dict[str, Path] = {}
    alone = list(mask_files.values())
    for of_image, of_mask in (
        (example_stem, example_stem),
        (file_stem, file_stem),
        (_without_image_ending, _without_both_endings),
    ):
        named = {of_mask(path): path for path in alone}
        found = {
            stem: named.pop(of_image(path))
            for stem, path in image_files.items()
            if stem not in pairs and of_image(path) in named
        }
        pairs |= found
        paired = set(found.values())
        alone = [path for path in alone if path not in paired]
    if found:
        stem, mask = next(iter(found.items()))
        logger.warning(
            "%s: %d mask(s) are paired by ignoring the ending of a name, such as %s with %s",
            *(labels, len(found), mask.name, image_files[stem].name),
        )
    return pairs, alone


def _refuse_alone(alone: list[Path], files: dict[str, Path], missing: str) -> None:
    """Refuses those of the files that have no partner, if there are any."""
    looks = Counter(composed(path.name) for path in files.values())
    names = [path.name if looks[composed(path.name)] == 1 else ascii(path.name) for path in alone]
    if names:
        raise InputError(
            f"{len(names)} file(s) without {missing}: {listed(names, 3)}; expected the same names"
            " in both"
        )


def _without_image_ending(path: Path) -> str:
    return _IMAGE_ENDING.sub("", file_stem(path))


def _without_both_endings(path: Path) -> str:
    """The name of a mask without its ending and that of its image, as in x_img_mask.tif."""
    return _IMAGE_ENDING.sub("", _MASK_ENDING.sub("", file_stem(path)))
