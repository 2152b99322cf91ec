"""How soon strokes show in the viewer, and how long it stands still while a network learns.

In napari, under a real display or a virtual one (`xvfb-run -a python -m benchmarks viewer`): on a
slice of the ISBI stack, strokes of 40 pixels, one every two seconds for 75 seconds. The panel has
been open for a few seconds. The first two strokes, one of each class, are painted the moment "Paint
and train" has been pressed, or when the viewer shows what the network says without them. `until
shown` are the seconds from there to a prediction that has learnt from them. The gaps are those
between the ticks of a timer of 5 ms: longer ones are a viewer that does not move.
"""

import time

import napari
import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from benchmarks.painting import random_strokes
from benchmarks.side_by_side import rounded
from configs import em
from unet_jax.configuration import read_configuration
from unet_jax.data.splits import read_splits
from unet_jax.example import IGNORED, separated
from unet_jax.viewer.panel import Panel

_CHOOSING = 5  # seconds, from the opening of an image to the button
_EVERY = 2  # seconds, between two strokes


def rows(quick):
    """Two rows for each network that learning begins with."""
    example = read_splits(read_configuration(em.get_config()).data, 2)["test"][0]
    viewer = napari.Viewer()
    viewer.window.resize(1400, 900)
    panel = Panel(viewer)
    viewer.window.add_dock_widget(panel, name="unet_jax")
    for network in ("membranes", "nuclei"):
        _trial(viewer, panel, example, network)  # compiles what the others find in the cache
        yield _trial(viewer, panel, example, network)
        yield _trial(viewer, panel, example, network, 10 if quick else 75)
    viewer.close()


def _trial(viewer, panel, example, network, seconds=0):
    """Painted at once, or with more strokes for so many seconds."""
    viewer.layers.clear()
    viewer.add_image(example.image, name="slice")
    panel._network.value = network
    _let_live(_CHOOSING)
    panel.paint()
    strokes = viewer.layers["slice strokes"]
    while seconds and _shown(viewer) is None:
        _let_live(0.1)
    before = _shown(viewer)
    began = time.perf_counter()
    for number in range(2):
        _paint(strokes, example, number)
    while _shown(viewer) is None or np.array_equal(_shown(viewer), before):
        _let_live(0.01)
    row = {"network": network, "painted": "later" if seconds else "at once"}
    row["until shown"] = rounded(time.perf_counter() - began)
    if seconds:
        gaps, updates = [], []
        ticked = time.perf_counter()

        def tick():
            nonlocal ticked
            ticked, last = time.perf_counter(), ticked
            gaps.append(ticked - last)

        timer = QTimer()
        timer.timeout.connect(tick)
        timer.start(5)
        viewer.layers["slice classes"].events.set_data.connect(updates.append)
        for number in range(2, 2 + seconds // _EVERY):
            _paint(strokes, example, number)
            _let_live(_EVERY)
        timer.stop()
        row |= {
            "updates": len(updates),
            "median gap": rounded(np.median(gaps)),
            "99th percentile": rounded(np.percentile(gaps, 99)),
            "longest gap": rounded(max(gaps)),
        }
    panel.stop()
    _let_live(1)
    return row


def _paint(layer, example, number):
    """A stroke, which begins where the one before has not been."""
    labels = separated(example).labels
    strokes = random_strokes(labels, number + 1, np.random.default_rng(0))
    at = np.nonzero((strokes != IGNORED) & (layer.data == 0))
    layer.data_setitem(at, strokes[at] + 1)


def _shown(viewer):
    """The probabilities in their layer, or None."""
    found = [layer for layer in viewer.layers if layer.name.startswith("slice probability")]
    return found[0].data.copy() if found else None


def _let_live(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        QApplication.processEvents()
        time.sleep(0.002)
