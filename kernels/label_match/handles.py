"""Numbers that stand for label sets and token tables where only tensors and numbers pass: in operators."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

from vstar_fast.errors import DataError

_numbers = itertools.count(1)
_held: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def hold(thing: Any) -> int:
    """A number for `thing`, good as long as it lives."""
    number = next(_numbers)
    _held[number] = thing
    return number


def held(number: int, kind: type) -> Any:
    """What `hold` gave the number to; DataError when it is gone or of another kind."""
    thing = _held.get(number)
    if not isinstance(thing, kind):
        raise DataError(f"no {kind.__name__} has the handle {number}; keep it alive as long as what uses it")
    return thing
