"""Threads that use one model take turns: while it is called, its attention and its modules are not as usual."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_MAKING = threading.Lock()


def alone(text_model: Any) -> threading.RLock:
    """The lock of the model that `text_model` is the stack of, to be held while the model is called."""
    with _MAKING:
        return _LOCKS.setdefault(text_model, threading.RLock())


@contextlib.contextmanager
def meanwhile(text_model: Any, change: contextlib.AbstractContextManager[T]) -> Iterator[T]:
    """Inside, `change` holds; it begins and ends while no other thread calls the model, or copies it."""
    turn = alone(text_model)
    held = contextlib.ExitStack()
    with turn:
        found = held.enter_context(change)
    try:
        yield found
    finally:
        with turn:
            held.close()
