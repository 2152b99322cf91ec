"""Ctrl-C and SIGTERM as a request that a run ends after its present step."""

import signal


class StopRequest:
    """While entered, notes SIGINT and SIGTERM in `signal`, 0 before; a second one acts as usual."""

    signal = 0

    def __enter__(self):
        """Takes over the two signals."""
        self._handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
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
