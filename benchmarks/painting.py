"""Strokes from which a network learns: the pixel error of the whole image as time passes.

Beside the network that it begins with, as it is, and a random forest on filters alone (what ilastik
does), on the same strokes: up to 200, 700 and 2,000 pixels on slices of the ISBI stack, begun with
`membranes`, and ten strokes on images of nuclei, begun with `nuclei`; neither has seen any of them.
Strokes are random walks within a class, of 40 pixels or, where there is no room, fewer; each of the
three draws takes other ones, on the stack also another slice. A second of two cores is two seconds
of the processor, whatever else runs; what has to be compiled has been compiled before. `largest
rise` is that of the error from one update to the next, the first from the network as it is. What is
done is kept in `runs/painting`, not repeated.
"""

import json
import subprocess
import time
from pathlib import Path

import numpy as np

from benchmarks.nuclei import read_nuclei
from benchmarks.peers import python_of
from benchmarks.side_by_side import rounded
from configs import em
from unet_jax import load
from unet_jax.configuration import read_configuration
from unet_jax.data.splits import read_splits
from unet_jax.example import IGNORED, separated
from unet_jax.live.learning import LiveTraining
from unet_jax.live.strokes import Painted

_LENGTH = 40  # pixels of a stroke
_SECONDS = (2, 10, 60, 300)
_DRAWS = 3
#: Images, and pixels of all strokes.
CASES = {
    **{
        f"isbi2012/{pixels}/{draw}": pixels for pixels in (200, 700, 2000) for draw in range(_DRAWS)
    },
    **{f"dsb2018_{n}/400/{draw}": 400 for n in range(3) for draw in range(_DRAWS)},
}


def rows(quick, cases=None):
    """One row for each image, number of strokes and draw."""
    place = Path("runs", "painting_quick" if quick else "painting")
    for name in cases or CASES:
        file = place / f"{name.replace('/', '_')}.json"
        if not file.exists():
            place.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(_row(name, place, 5 if quick else _SECONDS[-1])))
        yield json.loads(file.read_text())


def _row(name, place, seconds):
    data, _, draw = name.split("/")
    example, network = _example(data, int(draw))
    labels = separated(example).labels
    rng = np.random.default_rng(int(draw))
    strokes = random_strokes(labels, CASES[name] // _LENGTH, rng)
    row = {
        "images": data,
        "image": example.name,
        "draw": int(draw),
        "pixels painted": int((strokes != IGNORED).sum()),
        "forest": rounded(_error(_forest(example.image, strokes, place), labels)),
    }
    live = LiveTraining(load(network))
    whole = tuple(slice(0, side) for side in labels.shape)

    def error():
        found = live.probabilities("", example.image, *whole).argmax(-1)
        return _error(found, labels)

    errors, times = [error()], [0.0]
    live.paint({"": Painted(example.image, strokes)})
    begun, not_counted = time.process_time(), 0.0
    while times[-1] < 2 * seconds:
        has_changed = live.work()
        times.append(time.process_time() - begun - not_counted)
        errors.append(error() if has_changed else errors[-1])
        not_counted = time.process_time() - begun - times[-1]
    row |= {f"{network} as it is": rounded(errors[0])}
    for after in _SECONDS:
        row[f"after {after} s"] = rounded(errors[np.searchsorted(times, 2 * after, "right") - 1])
    return row | {"largest rise": rounded(max(np.diff(errors).max(), 0)), "steps": live.steps}


def _example(data, draw):
    """The image, and the network to begin with."""
    if data == "isbi2012":
        configuration = read_configuration(em.get_config())
        return read_splits(configuration.data, 2)["test"][2 * draw], "membranes"
    images = sorted(read_nuclei("dsb2018"), key=lambda example: example.name)[-10:]
    return [e for e in images if len(np.unique(e.instances)) > 50][int(data[-1])], "nuclei"


def _error(found, labels):
    return float((found != labels).mean())


def random_strokes(labels, count, rng):
    """As many random walks, in turns within class 0 and 1; int32 [H, W], `IGNORED` elsewhere."""
    strokes = np.full(labels.shape, IGNORED, np.int32)
    for number in range(count):
        label = number % 2
        y, x = rng.choice(np.argwhere(labels == label)).astype(float)
        angle = rng.uniform(0, 2 * np.pi)
        for _ in range(_LENGTH):
            strokes[round(y), round(x)] = label
            # Straight on where that stays within the class, or turning as little as possible.
            for turn in (0, 0.4, -0.4, 0.8, -0.8, 1.2, -1.2):
                ahead = y + np.sin(angle + turn), x + np.cos(angle + turn)
                at = tuple(map(round, ahead))
                inside = all(0 <= a < side for a, side in zip(at, labels.shape, strict=True))
                if inside and labels[at] == label:
                    (y, x), angle = ahead, angle + turn
                    break
            else:
                break
    return strokes


def _forest(image, strokes, place):
    np.save(place / "image.npy", image)
    np.save(place / "strokes.npy", strokes)
    script = Path(__file__).parent / "peers" / "paint_forest.py"
    subprocess.run([python_of("forest"), script, place], check=True)
    return np.load(place / "found.npy")
