"""Decoders that do what no decoder should: for the tests of isolation."""

import os
import signal
import time


def hang(job):  # type: ignore[no-untyped-def]
    """Never comes back for a file called `bad`."""
    return _unless_bad(job, lambda: time.sleep(600))


def crash(job):  # type: ignore[no-untyped-def]
    """Takes the process with it."""
    return _unless_bad(job, lambda: os.kill(os.getpid(), signal.SIGSEGV))


def fail(job):  # type: ignore[no-untyped-def]
    """Cannot enter the file."""
    raise RuntimeError("no more frames left to decode")


def _unless_bad(job, fault):  # type: ignore[no-untyped-def]
    from vstar_fast.frames.pyav import decode

    if "bad" in job.path:
        fault()
    return decode(job)
