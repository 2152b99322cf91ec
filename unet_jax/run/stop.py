"""Ctrl-C and SIGTERM as a request to end a run after the current step, which `fit` saves."""

import signal
import threading

# Windows sends SIGBREAK for Ctrl-Break, and where the window is closed.
_SIGNALS = [signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGBREAK", None)])]


class StopRequest:
    """In its block, notes SIGINT and SIGTERM in `signal`, 0 before; a second one acts as usual.

    Python delivers signals only to the main thread; in others, as in a viewer, none is noted.
    """

    signal = 0

    def __enter__(self):
        """Takes over the signals."""
        is_main = threading.current_thread() is threading.main_thread()
        self._handlers = {s: signal.getsignal(s) for s in _SIGNALS if is_main}
        for number in self._handlers:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        """Restores the handlers."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.signal = number
        signal.signal(number, self._handlers[number])
