"""The loops over pixels, compiled by Numba on their first call."""

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Compiles a function on its first call; kept on disk for later processes where possible.

    Compiled functions run without Python's lock. One calls another only in its own file: Numba
    does not notice that a function it has kept calls one of another file that has changed.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(nogil=True)(function)
