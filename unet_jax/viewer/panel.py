"""The plugin's panel: it shows what its threads compute, and tells them what to do."""

import contextlib
import math
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import napari
import numpy as np
from magicgui.widgets import ComboBox, Container, Label, LineEdit, PushButton, Table
from napari.qt.threading import thread_worker
from napari.utils.notifications import show_warning
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog

from unet_jax import checkpoint
from unet_jax.checkpoint.cell_settings import cell_settings
from unet_jax.errors import InputError
from unet_jax.example import IGNORED, Example, separated
from unet_jax.instances import InstanceSettings
from unet_jax.live.saving import is_painted, open_painted, save_painted
from unet_jax.live.strokes import Painted
from unet_jax.measurements import measure
from unet_jax.model import Model
from unet_jax.prediction.image_list import image_files
from unet_jax.prediction.predict_files import predict_files
from unet_jax.pretrained import NETWORKS
from unet_jax.viewer.lessons import Desk, Learnt, View, learn, start_process, strokes_of
from unet_jax.viewer.planes import Index, Planes, in_view, shown_index
from unet_jax.viewer.results import Results, class_colours, kind_made_here, made_here, placed_like
from unet_jax.viewer.segmentation import Found, Predicted, segment

_PAINTED = "learnt from strokes"
# Errors that say in one sentence what to change.
_EXPECTED = (ValueError, RuntimeError, MemoryError, OSError)  # ours and JAX's among them
_MOST_PROBLEMS = 5  # of a folder, that are told
_MOST_WAITED = 10  # seconds, for a viewer that shows nothing any more
_LOOK_EVERY = 200  # milliseconds, at the strokes and at what is in view


@dataclass
class _Painting:
    """Painting on one image.

    Attributes:
      image: the image layer.
      strokes: the labels layer, in which 1 is the first class.
      desk: what the thread that learns looks at.
      results: where it is shown.
      names: of the classes.
      cells: how the network that it began with finds cells.
      has_changed: whether there may be new strokes since the last look.
      learnt: the latest network, if there is one.
      saved_in: the folders that it has been saved in.
    """

    image: Any
    strokes: Any
    desk: Desk
    results: Results
    names: list[str]
    cells: InstanceSettings
    has_changed: bool = True
    learnt: Learnt | None = None
    saved_in: set[Path] = field(default_factory=set)

    def painted(self) -> dict[Index, np.ndarray]:
        """The labels of each plane that has strokes, int [H, W]; 1 is the first class."""
        data, classes = np.asarray(self.strokes.data), len(self.names)
        return {
            index: data[index].copy()
            for index in np.ndindex(data.shape[:-2])
            if ((data[index] > 0) & (data[index] <= classes)).any()
        }


class Panel(Container):
    """Segment images, paint strokes from which a network learns, correct, measure and save."""

    def __init__(self, viewer: "napari.Viewer"):
        """Made by napari, which gives its viewer."""
        self._viewer = viewer
        self._runs: list[str] = []
        self._worker: Any = None  # that segments
        self._teacher: Any = None  # that learns from strokes
        self._process: subprocess.Popen | None = None  # that is ready for the next strokes
        self._painting: _Painting | None = None
        self._image = ComboBox(label="Image", choices=self._layers_of(napari.layers.Image))
        self._network = ComboBox(label="Network", choices=self._networks)
        self._names = LineEdit(label="Classes", value="background, cell")
        self._brush = ComboBox(label="Paint", choices=self._class_names)
        self._cells = ComboBox(label="Cells", choices=self._layers_of(napari.layers.Labels))
        self._status = Label(value="Choose an image and a network.")
        self._status.native.setWordWrap(True)
        super().__init__(
            widgets=[
                *(self._image, self._network),
                _row(_button("Add a run...", self._ask(self.add_run))),
                Label(value="1. Segment"),
                _row(_button("Segment", self.segment), _button("Cancel", self.cancel)),
                _row(
                    _button("All images", self.segment_all),
                    _button("A folder...", self._ask(self.segment_folder)),
                ),
                Label(value="2. Paint strokes to train the network"),
                self._names,
                _row(_button("Paint and train", self.paint), _button("Stop", self.stop)),
                self._brush,
                Label(value="3. Correct cells with the viewer's own tools"),
                self._cells,
                _row(_button("Use as annotation", self.annotate)),
                Label(value="4. Measure and save"),
                _row(
                    _button("Measure cells", self.measure),
                    _button("Save as a run...", self._ask(self.save)),
                ),
                self._status,
            ]
        )
        self._names.changed.connect(self._brush.reset_choices)
        self._brush.changed.connect(self._choose_brush)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self._layers_changed)
        self._timer = QTimer(self.native)
        self._timer.timeout.connect(self._look)
        self._timer.start(_LOOK_EVERY)
        self.native.destroyed.connect(self._end)

    # What can be chosen

    def _layers_of(self, kind: type) -> Callable[[Any], list[Any]]:
        """Those of the viewer; of what was made here, only cells."""

        def layers(_):
            own = [layer for layer in self._viewer.layers if type(layer) is kind]
            return [layer for layer in own if kind_made_here(layer) in (None, "cells")]

        return layers

    def _networks(self, _: Any) -> list[str]:
        learnt = self._painting and self._painting.learnt
        return [*NETWORKS, *self._runs, *([_PAINTED] if learnt else [])]

    def _class_names(self, _: Any = None) -> list[str]:
        return [name.strip() for name in self._names.value.split(",") if name.strip()]

    def _layers_changed(self, event: Any) -> None:
        for chosen in (self._image, self._cells):
            chosen.reset_choices()
        painting = self._painting
        if event.type == "removed" and painting and self._teacher:
            if event.value in (painting.image, painting.strokes):
                self.stop()
                self._tell(f"The training has ended, because {event.value.name} was removed.")

    # Segmentation

    def segment(self) -> None:
        """Segments all planes of the chosen image, those in view first."""
        self._begin_to_segment([self._image.value])

    def segment_all(self) -> None:
        """Segments all image layers that the network can take."""
        self._begin_to_segment(self._layers_of(napari.layers.Image)(None))

    def _begin_to_segment(self, layers: list[Any]) -> None:
        if not layers or layers[0] is None:
            self._tell("There is no image to segment; open one first.")
        elif not self._is_segmenting():
            views = [(shown_index(self._viewer, layer), in_view(layer)) for layer in layers]
            work = self._segmented(layers, views)
            self._worker = self._start(work, self._show, self._forget_worker)
            self._tell("Segmenting...", is_problem=False)

    def _is_segmenting(self) -> bool:
        if self._worker:
            self._tell("A segmentation is already running; cancel it, or wait until it has ended.")
        return bool(self._worker)

    def _segmented(self, layers, views) -> Callable[[], Iterator[Any]]:
        name = self._network.value
        painting = self._painting if name == _PAINTED else None

        def work():
            if painting and painting.learnt:
                model, settings = painting.learnt.model, painting.cells
                class_names = tuple(painting.names)
            else:
                model, settings = checkpoint.load(name), cell_settings(name)
                class_names = model.class_names
            done, pixels = 0, sum(math.prod(Planes.of(layer).shape) for layer in layers)
            for layer, (first, view) in zip(layers, views, strict=True):
                planes = Planes.of(layer)
                indices = sorted(planes.indices(), key=lambda index: index != first)
                results = Results(self._viewer, layer, class_names)
                for result in segment(model, settings, planes, indices, view):
                    if isinstance(result, Predicted):
                        done += result.probabilities[..., 0].size
                    yield results, result, done / pixels

        return work

    def _show(self, shown: tuple[Results, Predicted | Found | InputError, float]) -> None:
        results, result, share = shown
        planes = Planes.of(results.image)
        if isinstance(result, InputError):
            self._tell(str(result))
        elif isinstance(result, Found):
            layer = results.write_cells(*result)
            if layer is not None:
                self._cells.value = layer
            found = f"{planes.title(result.plane)}: {result.cells.max()} cells found."
            self._tell(found, is_problem=False)
        else:
            results.write(*result)
            if planes.are_large:
                text = f"{planes.name} is large: only what is in view is segmented."
            else:
                text = f"Segmenting {planes.title(result.plane)}: {share:.0%}"
            self._tell(text, is_problem=False)

    def segment_folder(self, folder: Path) -> None:
        """Segments the image files of a folder into FOLDER_results, as `predict.py` does."""
        name, output = self._network.value, Path(folder).with_name(f"{Path(folder).name}_results")
        if name == _PAINTED:
            self._tell("First save the network as a run; then choose that run.")
            return
        if self._is_segmenting():
            return

        def work():
            files = image_files(folder, output)
            problems: list[str] = []
            for number, file in enumerate(files, 1):
                try:
                    problems += predict_files(name, images=file, output=output).problems
                except InputError as error:  # the other files may do
                    problems += error.args
                done = f"{number} of {len(files)} files: {output}"
                is_problem = bool(problems) and number == len(files)
                yield "; ".join([done, *problems[:_MOST_PROBLEMS]]), is_problem

        self._worker = self._start(work, lambda said: self._tell(*said), self._forget_worker)

    def cancel(self) -> None:
        """Ends a segmentation after the current piece; what has been segmented stays."""
        if self._worker:
            self._worker.quit()
            self._tell("Cancelled; what has been segmented so far stays.", is_problem=False)

    def _forget_worker(self) -> None:
        self._worker = None

    # Painting

    def paint(self) -> None:
        """Begins to learn from strokes on the chosen image, in a labels layer of its own."""
        image, names = self._image.value, self._class_names()
        if self._teacher:
            self._tell("Already training; stop that first.")
        elif image is None:
            self._tell("There is no image to paint on; open one first.")
        elif len(set(names)) != len(names) or not 2 <= len(names) <= 254:
            self._tell("Classes: expected at least two different names, separated by commas.")
        elif Planes.of(image).are_large:
            self._tell(f"{image.name} is too large to paint on; crop it first.")
        else:
            strokes = self._strokes_of(image, len(names))
            if strokes is not None:
                with self._one_sentence():
                    self._begin_to_learn(image, strokes, names)

    def _strokes_of(self, image: Any, classes: int) -> Any:
        """The labels layer for strokes on an image; None if there is one that does not fit."""
        name, shape = f"{image.name} strokes", Planes.of(image).shape
        if name not in self._viewer.layers:
            data = np.zeros(shape, np.uint8)
            options = {"metadata": made_here(image, "strokes"), **placed_like(image)}
            self._viewer.add_labels(data, name=name, **options)
        layer = self._viewer.layers[name]
        if not isinstance(layer, napari.layers.Labels):
            self._tell(f"{name} is needed for strokes, but holds no labels; rename it first.")
        elif self._fits(layer, shape):
            layer.colormap = class_colours(classes)
            return layer
        return None

    def _fits(self, labels: Any, shape: tuple[int, ...]) -> bool:
        is_fit = labels.data.shape == shape
        if not is_fit:
            found, expected = ("x".join(map(str, s)) for s in (labels.data.shape, shape))
            self._tell(f"{labels.name} is {found}, expected {expected} like the image.")
        return is_fit

    def _begin_to_learn(self, image: Any, strokes: Any, names: list[str]) -> None:
        network, before = self._network.value, self._painting
        if network == _PAINTED and before and before.learnt:
            network, settings = before.learnt.model, before.cells
        else:
            settings = cell_settings(network)
        view = View(shown_index(self._viewer, image), *in_view(image))
        desk = Desk(Planes.of(image), view, self._process or start_process())
        self._process = None
        results = Results(self._viewer, image, names)
        self._painting = _Painting(image, strokes, desk, results, names, settings)
        self._network.reset_choices()

        for event in (strokes.events.paint, strokes.events.set_data, strokes.events.data):
            event.connect(self._strokes_changed)
        self._viewer.layers.selection.active = strokes
        strokes.mode = "paint"
        self._choose_brush()
        forget = partial(self._forget_teacher, before)
        work = partial(learn, network, len(names), desk)
        self._teacher = self._start(work, self._show_learnt, forget)
        self._tell("Paint a stroke of each class.", is_problem=False)

    def _choose_brush(self, *_: Any) -> None:
        painting = self._painting
        if painting and self._brush.value in painting.names:
            painting.strokes.selected_label = painting.names.index(self._brush.value) + 1

    def _strokes_changed(self, *_: Any) -> None:
        if self._painting:
            self._painting.has_changed = True

    def _look(self) -> None:
        """Puts new strokes and what is in view on the desk, or has a process ready for some."""
        if self.native.parent() is None:  # the panel has been closed
            self._end()
            return
        painting = self._painting
        if not (painting and self._teacher):
            self._process = self._process or start_process()
            return
        desk, image = painting.desk, painting.image
        desk.view = View(shown_index(self._viewer, image), *in_view(image))
        if painting.has_changed:
            painting.has_changed = False
            painted, seen = painting.painted(), desk.painted
            same = painted.keys() == seen.keys()
            if not (same and all(np.array_equal(painted[i], seen[i]) for i in seen)):
                desk.painted = painted

    def _show_learnt(self, learnt: Learnt) -> None:
        if not self._painting:
            return
        is_first = self._painting.learnt is None
        self._painting.learnt = learnt
        self._painting.results.write(*learnt.view, learnt.probabilities)
        judged = f", {learnt.entropy:.2f} loss on left-out strokes" if learnt.entropy else ""
        self._tell(f"{learnt.steps} steps{judged}", is_problem=False)
        if is_first:
            self._network.reset_choices()

    def stop(self) -> None:
        """Ends the training; the network learnt so far and the strokes stay."""
        if self._teacher and self._painting:
            self._painting.desk.close()

    def _forget_teacher(self, before: _Painting | None) -> None:
        self._teacher = None
        if before and before.learnt and not (self._painting and self._painting.learnt):
            self._painting = before  # nothing that was learnt is lost
            self._network.reset_choices()
        if self._painting and self._painting.learnt:
            self._network.value = _PAINTED  # with which one goes on

    def annotate(self) -> None:
        """Makes strokes of the cells, as they are after corrections, where nothing is painted yet.

        They become strokes of the class chosen under Paint, of the second one if that is the first,
        and all around them of the first one.
        """
        painting, cells = self._painting, self._cells.value
        if not painting or cells is None or cells is painting.strokes:
            self._tell("First press Paint and train, and choose a layer of cells.")
        elif painting.strokes not in self._viewer.layers:
            self._tell("The layer of strokes was removed; press Paint and train again.")
        elif self._fits(cells, painting.strokes.data.shape):
            names, chosen = painting.names, self._brush.value
            is_cell = max(names.index(chosen), 1) if chosen in names else 1
            with painting.strokes.block_history():  # one step for Undo
                for index in Planes.of(painting.image).indices():
                    numbers = np.asarray(cells.data[index]).astype(np.int32)
                    if numbers.any():
                        example = Example("", numbers, (numbers > 0).astype(np.int32), numbers)
                        labels = separated(example).labels * is_cell + 1
                        at = np.nonzero(np.asarray(painting.strokes.data[index]) == 0)
                        there = (*(np.full(len(at[0]), i) for i in index), *at)
                        painting.strokes.data_setitem(there, labels[at], refresh=False)
            painting.strokes.refresh()
            then = "" if self._teacher else "; press Paint and train to learn from them"
            self._tell(f"The cells are strokes now{then}.", is_problem=False)

    # What is carried away

    def measure(self) -> None:
        """Shows the table of the cells in the plane that is shown, and keeps it in their layer."""
        image, cells = self._image.value, self._cells.value
        if image is None or cells is None:
            self._tell("Choose an image and a layer of cells.")
            return
        index, planes = shown_index(self._viewer, image), Planes.of(image)
        if not self._fits(cells, planes.shape):
            return
        size = image.scale[-2:][::-1] if str(image.units[-1]) == "micrometer" else None
        numbers = np.array(cells.data[index])

        def work():
            yield measure(planes.read(index), numbers, size)

        def show(table):
            cells.features = {"index": table["number"], **table}
            self._viewer.window.add_dock_widget(
                Table(value={name: list(column) for name, column in table.items()}),
                name=f"{cells.name}: table",
            )

        self._start(work, show)

    def save(self, folder: Path) -> None:
        """Saves the network learnt, and the strokes, as a run that the programs take."""
        painting = self._painting
        learnt = painting.learnt if painting else None
        labels = painting.painted() if painting else {}
        if not painting or not learnt or not labels:
            self._tell("There is nothing to save yet; paint a stroke of each class first.")
            return
        folder = Path(folder).absolute()
        planes, names = painting.desk.planes, tuple(painting.names)

        def work():
            painted = {
                _file_name(planes.name, index): Painted(
                    planes.read(index), strokes_of(labels[index], len(names))
                )
                for index in labels
            }
            save_painted(
                folder,
                learnt.model,
                painted,
                names,
                step=learnt.steps,
                cells=painting.cells,
                replace=folder in painting.saved_in,
            )
            yield f"Saved in {folder}."

        def show(text):
            painting.saved_in.add(folder)
            self._choose_run(folder)
            self._tell(text, is_problem=False)

        self._start(work, show)

    def add_run(self, folder: Path) -> None:
        """Adds a run to the networks; of one that was painted, the images and strokes as well."""

        def work():
            if is_painted(Path(folder)):
                yield open_painted(folder)
            else:
                yield checkpoint.load(folder), {}

        self._start(work, partial(self._show_run, Path(folder)))

    def _show_run(self, folder: Path, opened: tuple[Model, dict[str, Painted]]) -> None:
        model, painted = opened
        self._choose_run(folder)
        self._names.value = ", ".join(model.class_names)
        alike: dict[Any, list[str]] = {}
        for name, (image, _) in painted.items():
            alike.setdefault((image.shape, image.dtype), []).append(name)
        for names in alike.values():  # the planes of a stack again, so that all of them count
            image, strokes = map(np.stack, zip(*(painted[name] for name in names), strict=True))
            title = folder.name
            if len(names) == 1:
                image, strokes, title = image[0], strokes[0], names[0]
            is_rgb = painted[names[0]].image.ndim == 3
            layer = self._viewer.add_image(image, name=title, rgb=is_rgb)
            self._viewer.add_labels(
                np.where(strokes == IGNORED, 0, strokes + 1).astype(np.uint8),
                name=f"{layer.name} strokes",
                metadata=made_here(layer, "strokes"),
                colormap=class_colours(model.network.classes),
            )

    def _choose_run(self, folder: Path) -> None:
        if str(folder) not in self._runs:
            self._runs.append(str(folder))
        self._network.reset_choices()
        self._network.value = str(folder)

    # What all of it needs

    def _start(
        self,
        work: Callable[[], Iterator[Any]],
        show: Callable[[Any], None],
        end: Callable[[], None] = lambda: None,
    ) -> Any:
        """Runs a generator in a thread, at most two results ahead of what is shown of it."""
        ahead = threading.Semaphore(2)

        def guarded():
            try:
                for result in work():
                    ahead.acquire(timeout=_MOST_WAITED)
                    yield result
            except _EXPECTED as error:
                yield error

        def shown(result):
            ahead.release()
            if worker.abort_requested:
                return
            if isinstance(result, Exception):
                self._tell(str(result))
                return
            with self._one_sentence():  # there may be no memory for the layers
                show(result)

        worker = thread_worker(guarded, start_thread=False)()
        worker.yielded.connect(shown)
        worker.finished.connect(end)
        worker.start()
        return worker

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        """Turns an error that is the user's to mend into a sentence."""
        try:
            yield
        except _EXPECTED as error:
            self._tell(str(error))

    def _tell(self, text: str, is_problem: bool = True) -> None:
        self._status.value = text
        if is_problem:
            show_warning(text)

    def _ask(self, act: Callable[[Path], None]) -> Callable[[], None]:
        """Asks for a folder first."""

        def asked():
            folder = QFileDialog.getExistingDirectory(self.native)
            if folder:
                act(Path(folder))

        return asked

    def _end(self) -> None:
        """Ends the threads after their current piece of work, and a process that has none."""
        self._timer.stop()
        if self._worker:
            self._worker.quit()
        self.stop()
        if self._process:
            with self._process as process:
                process.terminate()


def _button(text: str, act: Callable[[], Any]) -> PushButton:
    button = PushButton(text=text)
    button.changed.connect(lambda _: act())
    return button


def _row(*buttons: PushButton) -> Container:
    return Container(widgets=buttons, layout="horizontal", labels=False)


def _file_name(layer: str, index: tuple[int, ...]) -> str:
    """Of a plane: letters, digits, dots and hyphens of the layer's name, and where it lies."""
    name = re.sub(r"[^\w.-]+", "-", layer).lstrip(".") or "image"
    return "_".join([name, *map(str, index)])
