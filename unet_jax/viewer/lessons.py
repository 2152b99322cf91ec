"""Learning from strokes in a process of its own, so that the viewer never waits for it.

In a thread of the viewer, JAX's compiling would stop the viewer for up to two seconds. The process
is told what has been painted and what is in view, does a piece of work, and answers with what the
network says now; then it waits for the next time.
"""

import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from unet_jax import checkpoint
from unet_jax.command_line import keep_compiled_code
from unet_jax.errors import InputError, RunFailed
from unet_jax.example import IGNORED
from unet_jax.live.learning import LiveTraining
from unet_jax.live.strokes import Painted
from unet_jax.model import Model
from unet_jax.viewer.planes import Index, Planes

_PAUSE = 0.05  # seconds, while there is nothing to do


class View(NamedTuple):
    """What the viewer shows.

    Attributes:
      plane: which one, by its leading axes.
      rows: in view.
      columns: in view.
    """

    plane: Index
    rows: slice
    columns: slice


class Learnt(NamedTuple):
    """What the network that is shown now says of what is in view.

    Attributes:
      view: what was in view.
      probabilities: float32 [h, w, classes].
      model: the network.
      steps: how many steps the one in the background has been trained for.
      entropy: in nats, over the strokes that are left out; 0 = there are none.
    """

    view: View
    probabilities: np.ndarray
    model: Model
    steps: int
    entropy: float


class Task(NamedTuple):
    """What has changed since the last piece of work.

    Attributes:
      view: what is shown.
      painted: see `Desk`; None = as before.
      images: of the planes that are shown or painted on, [H, W] or [H, W, C], those that were not
        for the last piece of work.
    """

    view: View
    painted: dict[Index, np.ndarray] | None
    images: dict[Index, np.ndarray]


@dataclasses.dataclass
class Desk:
    """Where the viewer's thread puts what has changed, for `learn`.

    Attributes:
      planes: of the image.
      view: what is shown now.
      process: that learns, from `start_process`.
      painted: the labels by plane, int [H, W], see `strokes_of`; another dict for each change.
      is_closed: whether it is to end.
    """

    planes: Planes
    view: View
    process: subprocess.Popen
    painted: dict[Index, np.ndarray] = dataclasses.field(default_factory=dict)
    is_closed: bool = False

    def close(self) -> None:
        """Ends the lessons."""
        self.is_closed = True
        self.process.terminate()


def start_process() -> subprocess.Popen:
    """A process for one call of `learn`; after some seconds it has imported what it needs.

    It ends by itself when the viewer does.
    """
    # Not -m, which would give what is sent another name than here.
    command = [sys.executable, "-c", "from unet_jax.viewer.lessons import main; main()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def strokes_of(labels: np.ndarray, classes: int) -> np.ndarray:
    """What is painted in a layer, where 1 is the first class: as in `Painted`, int32 [H, W]."""
    is_class = (labels > 0) & (labels <= classes)
    return np.where(is_class, labels.astype(np.int32) - 1, IGNORED)


def learn(network: str | Model, classes: int, desk: Desk) -> Iterator[Learnt | InputError]:
    """Has a process learn what lies on the desk, until that is closed; yields each change.

    The process has ended afterwards. A plane that cannot be used is an error among the results, and
    the lessons go on with the others.

    Args:
      network: the folder of a run, or a network of the package, or one in memory, to begin with.
      classes: how many there are.
      desk: where new strokes are put.

    Raises:
      InputError: the network cannot be used, or the image, or the plane that is shown first.
      RunFailed: the process has ended otherwise, such as for lack of memory.
    """
    known: set[Index] = set()  # planes that the process has
    refused: set[Index] = set()
    taught: dict[Index, np.ndarray] | None = None
    shown: View | None = None
    with desk.process as process:
        assert process.stdin
        try:
            model = checkpoint.load(network) if isinstance(network, str) else network
            desk.planes.check(model)
            message: object = (_on_host(model), classes)
            while not desk.is_closed:
                answer = _ask(process, message)
                if isinstance(answer, ValueError):
                    raise desk.planes.named(answer)
                if isinstance(answer, Exception):
                    raise answer
                if answer:
                    model = answer["model"] or model
                    yield Learnt(**answer | {"model": model})
                view, painted = desk.view, desk.painted  # other ones a moment later
                images = {}
                for index in {view.plane, *painted} - known - refused:
                    try:
                        images[index] = desk.planes.read(index)
                    except InputError as error:
                        if shown is None:
                            raise
                        refused.add(index)
                        yield error
                if shown is None or view.plane not in refused:
                    shown = view
                usable = {index: painted[index] for index in painted.keys() - refused}
                message = Task(shown, usable if painted is not taught else None, images)
                known, taught = {shown.plane, *usable}, painted
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:  # it is gone
            if not desk.is_closed:
                raise RunFailed(
                    "The training has stopped unexpectedly; is there enough memory?"
                ) from error
        finally:
            process.terminate()
            with contextlib.suppress(BrokenPipeError):  # what it was not sent any more
                process.stdin.close()


def _ask(process: subprocess.Popen, message: object) -> dict[str, Any] | Exception | None:
    """What has changed, as in `Learnt`; a model of None is that of before."""
    assert process.stdin and process.stdout
    pickle.dump(message, process.stdin)
    process.stdin.flush()
    return pickle.load(process.stdout)  # from our own process


def _on_host(model: Model) -> Model:
    return dataclasses.replace(model, params=jax.device_get(model.params))


def teach(tasks: BinaryIO, answers: BinaryIO) -> None:
    """The other side of `learn`: answers each task, until there are no more."""

    def answer(result):
        pickle.dump(result, answers)
        answers.flush()

    images: dict[Index, np.ndarray] = {}
    painted: dict[Index, np.ndarray] = {}
    shown = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        try:
            model, classes = pickle.load(tasks)
            live = LiveTraining(model, classes)
            answer(None)
            while True:
                task = pickle.load(tasks)
                painted = painted if task.painted is None else task.painted
                images |= task.images
                images = {index: images[index] for index in {task.view.plane, *painted}}
                if task.painted is not None:
                    strokes = {i: strokes_of(labels, classes) for i, labels in painted.items()}
                    live.paint({i: Painted(images[i], s) for i, s in strokes.items()})
                steps, has_changed = live.steps, live.work()
                if live.is_ready and (has_changed or task.view != shown):
                    shown = task.view
                    index, rows, columns = shown
                    probabilities = live.probabilities(index, images[index], rows, columns)
                    answer(
                        {
                            "view": shown,
                            "probabilities": probabilities,
                            "model": _on_host(live.shown) if has_changed else None,
                            "steps": live.steps,
                            "entropy": live.left_out_entropy(),
                        }
                    )
                    continue
                if live.steps == steps:
                    time.sleep(_PAUSE)
                answer(None)
        except (ValueError, RuntimeError, MemoryError) as error:  # JAX's and ours are among them
            answer(error)


def main() -> None:
    """Teaches over standard input and output."""
    with contextlib.suppress(AttributeError):
        os.nice(5)  # the viewer comes first
    keep_compiled_code()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    teach(sys.stdin.buffer, answers)
