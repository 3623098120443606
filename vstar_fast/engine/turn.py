"""Threads that use one model take turns: while it is called, its attention and its modules are not as usual."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_MAKING = threading.Lock()


def alone(text_model: Any) -> threading.RLock:
    """The lock of the model that `text_model` is the stack of, to be held while the model is called."""
    with _MAKING:
        return _LOCKS.setdefault(text_model, threading.RLock())
