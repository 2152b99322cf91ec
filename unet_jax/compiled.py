"""The loops over pixels, compiled by Numba on their first call."""

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Compiles a function on its first call; where possible kept on disk for later processes.

    Compiled functions run without Python's lock. They call each other only within one file: Numba
    does not notice when a function in another file, called by one that it has kept, has changed.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(nogil=True)(function)
