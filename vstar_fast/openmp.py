"""How many threads torch's operators take, by the thread that calls them."""

from __future__ import annotations

import ctypes
import threading
from functools import cache


def threads_here(count: int) -> bool:
    """From now on torch's operators take so many threads when this thread calls them; nothing changes for others.

    Every thread that calls them gets a team of its own. Once teams have more threads than there are cores, GNU OpenMP
    sends all that wait to sleep at once, and waking them took a third of the time of everything on 2 cores.
    `torch.set_num_threads` would hold for the whole process. False: torch has no OpenMP here, and nothing changed.
    """
    import torch

    torch.get_num_threads()  # sets this thread up as all are, which would undo the next line if it came later
    own = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)
    if own is not None:
        own(count)
    return torch.get_num_threads() == count


@cache
def settable() -> bool:
    """Whether `threads_here` works in this process, tried in a thread of its own."""
    import torch

    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(threads_here(torch.get_num_threads() + 1)))
    thread.start()
    thread.join()
    return found == [True]
