"""Ctrl-C and SIGTERM as a request that a run ends where its steps stand, which `fit` saves."""

import signal
import threading

# Windows sends SIGBREAK for Ctrl-Break, and where the window is closed.
_SIGNALS = [signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGBREAK", None)])]


class StopRequest:
    """While entered, notes SIGINT and SIGTERM in `signal`, 0 before; a second one acts as usual.

    Python gives signals to the main thread only. In another one, as of a viewer, nothing is noted.
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
        """Gives them back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.signal = number
        signal.signal(number, self._handlers[number])
