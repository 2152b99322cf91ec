"""The pictures of a run, drawn in a thread while training goes on."""

import gc
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self


class Pictures:
    """Draws one picture at a time; a newer one replaces one that has not been started.

    Used in a `with` block, which waits for the last one at its end.
    """

    def __init__(self):
        """Starts nothing yet."""
        self._background = ThreadPoolExecutor(1)
        self._drawings: list[Future[None]] = []

    def __enter__(self) -> Self:
        """These pictures."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits; raises the last one's error, unless another error is being raised."""
        self._background.shutdown()
        if kind is None:
            self._raise_errors()

    def draw(self, picture: Callable[[], None]) -> None:
        """Calls `picture` in the thread; raises the error of an earlier one."""
        self._raise_errors()
        for drawing in self._drawings:
            drawing.cancel()  # nothing happens to one that has been begun
        self._drawings.append(self._background.submit(_draw, picture))

    def _raise_errors(self) -> None:
        done = [drawing for drawing in self._drawings if drawing.done()]
        self._drawings = [drawing for drawing in self._drawings if drawing not in done]
        for drawing in done:
            if not drawing.cancelled():
                drawing.result()


def _draw(picture: Callable[[], None]) -> None:
    picture()
    gc.collect()  # figures hold each other, and so their pixels, for long
