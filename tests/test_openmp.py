"""The number of threads by thread."""

import ctypes
import threading

import torch

from vstar_fast.openmp import settable, threads_here


def test_it_holds_for_the_thread_that_says_so_and_no_other():
    before, found = torch.get_num_threads(), {}
    torch.set_num_threads(3)

    def other(name, *calls):
        found[name] = [call() for call in (*calls, torch.get_num_threads)]

    try:
        for name, calls in (("told", [lambda: threads_here(2)]), ("untold", [])):
            thread = threading.Thread(target=other, args=(name, *calls))
            thread.start()
            thread.join()
        assert found == {"told": [True, 2], "untold": [3]} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_whether_it_works_is_tried_and_changes_nothing(monkeypatch):
    before = torch.get_num_threads()
    settable.cache_clear()
    assert settable() and torch.get_num_threads() == before
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    settable.cache_clear()
    assert not settable()
    settable.cache_clear()
