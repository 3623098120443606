"""Threads that use one model take turns: while it is called, its attention and its modules are not as usual."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch

T = TypeVar("T")
_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_MAKING = threading.Lock()


@contextlib.contextmanager
def on_host() -> Iterator[None]:
    """Inside, new tensors are on the CPU, `torch.set_default_device` or not: plans are made there."""
    with contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
        yield


@contextlib.contextmanager
def alone(text_model: Any) -> Iterator[None]:
    """Nobody else calls the model that `text_model` is the stack of; again inside is harmless."""
    with _MAKING:
        lock = _LOCKS.setdefault(text_model, threading.RLock())
    with lock, on_host():
        yield


@contextlib.contextmanager
def meanwhile(text_model: Any, change: contextlib.AbstractContextManager[T]) -> Iterator[T]:
    """Inside, `change` holds; it begins and ends while no other thread calls the model, or copies it."""
    held = contextlib.ExitStack()
    with alone(text_model):
        found = held.enter_context(change)
    try:
        yield found
    finally:
        with alone(text_model):
            held.close()
