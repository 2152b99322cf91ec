"""Whether masks fit their images, judging by what the images show inside and outside the cells."""

import numpy as np
from scipy import fft, ndimage

from unet_jax.errors import listed
from unet_jax.example import IGNORED, SPARSE, Example, annotated_share, separated

_NAME_SHOWN = 30  # characters
# As many examples are compared, on squares of that side.
_COMPARED = 10
_SIDE = 320
_MOVED = 12  # pixels, farthest
# Measured on masks of nuclei, DIC, electron microscopy and made-up phase contrast: within a pixel
# of their place the true ones explain 0.99 of what they do in the best place; 10 pixels off, 0.91.
_BETTER = 0.95
# In their right place they explain 5 times as much as turned ones at least; one cell in the middle
# of each image 1.5 times, so that nothing is said of it.
_CLEARLY = 3
# Moved or turned or not, they explain more than the masks of other images.
_OTHERS_BETTER = 1.5
# With a smaller share of the variance, or fewer cells, chance decides.
_EVIDENCE, _FEW_CELLS = 0.03, 10


def misfits(examples: list[Example]) -> list[str]:
    """Reports masks that would fit other images, or another place, better, or do not fit at all.

    Cells may be as bright as their surroundings, as in phase contrast: a mask fits if its zones,
    inside and outside, near an edge and far from it, differ in what `_features` sees.

    Args:
      examples: as they are stored; only some of them are examined.

    Returns:
      One sentence, or none.
    """
    step = max(1, min(min(e.labels.shape) for e in examples) // 512)
    telling = [e for e in examples if _tells(_middle(e.labels, step))]
    compared = telling[:: -(-len(telling) // _COMPARED) or 1]
    if not compared:
        return []
    features = [_features(_middle(e.image, step)) for e in compared]
    zones = [_zones(_middle(separated(e).labels, step)) for e in compared]
    moved = [_explained_when_moved(f, z) for f, z in zip(features, zones, strict=True)]
    turned = [
        {way: explained(f, t) for way, t in _turned(z).items()}
        for f, z in zip(features, zones, strict=True)
    ]
    own = [max(m.max(), *t.values()) for m, t in zip(moved, turned, strict=True)]
    mixed = _mixed_up(features, zones, own)
    if mixed:
        names = [e.name[:_NAME_SHOWN] for e in compared]
        image, mask = mixed[0]
        return [
            f"{len(mixed)} of {len(compared)} masks ({listed([names[i] for i, _ in mixed], 3)}): "
            f"masks of other images fit better, for {names[image]} that of {names[mask]}; check "
            "that the names of images and masks match."
        ]
    cells = [_middle(e.instances, step) for e in compared]
    if sum(len(np.unique(c[c > 0])) for c in cells) < _FEW_CELLS:
        return []
    by_way = {way: float(np.mean([t[way] for t in turned])) for way in turned[0]}
    return _misplaced(np.mean(moved, 0), by_way, step)


def _mixed_up(
    features: list[np.ndarray], zones: list[np.ndarray], own: list[float]
) -> list[tuple[int, int]]:
    """Images that another image's mask explains much better than their own, with that image."""
    whole = [z.any(0).all() for z in zones]  # no pixel is ignored: the same ones are compared
    mixed = []
    for i in range(len(zones)):
        others = {
            j: explained(features[i], zones[j])
            for j in range(len(zones))
            if j != i and whole[i] and whole[j] and zones[j].shape[1:] == zones[i].shape[1:]
        }
        other = max(others, key=lambda j: others[j], default=i)
        if others and others[other] > max(_OTHERS_BETTER * own[i], _EVIDENCE):
            mixed.append((i, other))
    return mixed


def _misplaced(moved: np.ndarray, turned: dict[str, float], step: int) -> list[str]:
    """Reports where masks would fit better, or that they fit nowhere.

    Args:
      moved: what they explain on the whole, see `_explained_when_moved`.
      turned: the same when they are turned.
      step: pixels of the image for each pixel that they are moved by.
    """
    # Who draws a mask may be a pixel off.
    here, best = moved[_MOVED - 1 : _MOVED + 2, _MOVED - 1 : _MOVED + 2].max(), moved.max()
    y, x = step * (np.argwhere(moved == best)[0] - _MOVED)
    fit = {_moved(y, x): best} | turned
    way = max(fit, key=lambda way: fit[way])
    others = np.mean([turned[w] for w in turned if w != way])
    if here < _BETTER * fit[way] and fit[way] > max(_CLEARLY * others, _EVIDENCE):
        return [f"The masks would fit their images better if {way}; look at the outlines."]
    in_place = here > _BETTER * best and here > 1.1 * np.median(moved)
    by_chance = np.array([*turned.values()])
    if here < by_chance.mean() + 2 * by_chance.std() and not in_place:
        return [
            "The masks are unrelated to what the images show, as if they belonged to other images; "
            "look at the outlines."
        ]
    return []


def explained(features: np.ndarray, zones: np.ndarray) -> float:
    """The share of the features' variance that lies between the zones, in [0, 1].

    Args:
      features: float32 [features, H, W], each of mean 0 and variance 1; shares are averaged.
      zones: float32 [zones, H, W], 1 where a pixel belongs to a zone; none = it does not count.
    """
    sums = np.tensordot(zones, features, ((1, 2), (1, 2)))
    return float(_between(sums, zones.sum((1, 2))[:, None]).mean())


def _tells(labels: np.ndarray) -> bool:
    """Whether a mask can be compared with its image: strokes may lie anywhere."""
    counted = labels[labels != IGNORED]
    return (
        min(labels.shape) >= 4 * _MOVED
        and annotated_share([labels]) >= SPARSE
        and counted.min() < counted.max()
    )


def _middle(array: np.ndarray, step: int) -> np.ndarray:
    """The square in the middle of [H, W, ...], every `step`-th pixel of it.

    If the whole array is turned, this square is turned within itself.
    """
    array = array[::step, ::step]
    side = min(*array.shape[:2], _SIDE)
    top, left = ((length - side) // 2 for length in array.shape[:2])
    return array[top : top + side, left : left + side]


def _features(image: np.ndarray) -> np.ndarray:
    """float32 [2, H, W]: how far a grey value is from those around it, and their roughness.

    Brighter counts like darker, because a cell under DIC has a bright side and a dark one. The
    values are ranks, with mean 0 and variance 1, so that no streak dominates.
    """
    grey = image.reshape(*image.shape[:2], -1).mean(-1, dtype=np.float64)
    # The square of 1e30 is no float32.
    grey = (grey / max(np.abs(grey).max(), np.finfo(np.float64).tiny)).astype(np.float32)
    around = ndimage.uniform_filter(grey, len(grey) // 4)
    difference = np.abs(ndimage.gaussian_filter(grey, 1) - around)
    rough = ndimage.gaussian_filter(np.square(grey - ndimage.gaussian_filter(grey, 2)), 2)
    features = []
    for values in (difference, rough):
        ranks = np.searchsorted(np.sort(values, None), values).astype(np.float32)
        features.append((ranks - ranks.mean()) / max(ranks.std(), 1))
    return np.stack(features)


def _zones(labels: np.ndarray) -> np.ndarray:
    """float32 [zones, H, W]: each class more than 6, up to 6 and up to 2 pixels from any other."""
    counted = labels != IGNORED
    zone = 3 * labels
    for width in (5, 13):
        highest = ndimage.maximum_filter(labels, width)  # IGNORED is below all classes
        lowest = ndimage.minimum_filter(np.where(counted, labels, labels.max()), width)
        zone = zone + (highest != lowest)
    return np.stack([counted & (zone == z) for z in np.unique(zone[counted])]).astype(np.float32)


def _between(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The share of the variance between zones [zones, ...], for features with variance 1."""
    total = np.maximum(counts.sum(0), 1)
    squares = np.square(sums) / np.maximum(counts, 1)
    return squares.sum(0) / total - np.square(sums.sum(0) / total)


def _explained_when_moved(features: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """float32 [2 * _MOVED + 1] * 2: `explained`, with the zones moved down and to the right."""
    inner = np.zeros_like(features[0])  # the same pixels for all of them
    inner[_MOVED:-_MOVED, _MOVED:-_MOVED] = 1
    spectra = fft.rfft2(zones)

    def sums(picture: np.ndarray) -> np.ndarray:
        found = fft.irfft2(spectra * np.conj(fft.rfft2(picture * inner)), picture.shape)
        return np.roll(found[:, ::-1, ::-1], (_MOVED + 1, _MOVED + 1), (1, 2))[
            :, : 2 * _MOVED + 1, : 2 * _MOVED + 1
        ]

    counts = sums(inner)
    return np.mean([_between(sums(feature), counts) for feature in features], 0)


def _turned(zones: np.ndarray) -> dict[str, np.ndarray]:
    """Squares [zones, H, W], turned in each way a mask may be, by the name of the way."""
    transposed = zones.swapaxes(1, 2)
    return {
        "turned by 180 degrees": zones[:, ::-1, ::-1],
        "mirrored top to bottom": zones[:, ::-1],
        "mirrored left to right": zones[:, :, ::-1],
        "transposed": transposed,
        "transposed and turned by 180 degrees": transposed[:, ::-1, ::-1],
        "turned by 90 degrees": transposed[:, ::-1],
        "turned by -90 degrees": transposed[:, :, ::-1],
    }


def _moved(y: int, x: int) -> str:
    """In words: moved by y pixels down and x pixels to the right."""
    steps = [
        f"{abs(n)} pixel{'s' if abs(n) > 1 else ''} {forwards if n > 0 else back}"
        for n, forwards, back in ((y, "down", "up"), (x, "to the right", "to the left"))
        if n
    ]
    return f"moved {' and '.join(steps)}"
