"""Memory that decoders freed goes back to the system now and then."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Callable

EVERY = 64
"""Files from one time to the next; it takes a millisecond or two."""
_files = itertools.count(1)


def tidy() -> None:
    """To be called once a file. glibc keeps freed pictures between others, and its heap would grow with every file."""
    trim = _trim()
    if next(_files) % EVERY == 0 and trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
