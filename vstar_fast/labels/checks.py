"""What a label's value must be, by its kind: each check raises DataError with the value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vstar_fast.errors import DataError

if TYPE_CHECKING:
    from vstar_fast.records import Label


def _has_word(text: Any) -> bool:
    return isinstance(text, str) and any(c.isalnum() for c in text)


def require_word(what: str, text: Any) -> None:
    """A text that can be matched: it has a letter or digit."""
    if not _has_word(text):
        raise DataError(f"{what} {text!r} has no letter or digit; give it a name that can be matched")


def is_finite(value: Any) -> bool:
    """Whether `value` is a number that a float can hold: no NaN, no infinity, no integer of 400 digits."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def check_number(what: str, value: Any) -> None:
    """A finite number."""
    if not is_finite(value):
        text = repr(value)
        raise DataError(f"{what} must be a finite number, got {text if len(text) <= 60 else text[:57] + '...'}")


def check_from_zero(what: str, value: Any) -> None:
    """None, or a finite number of at least 0."""
    if value is not None:
        check_number(what, value)
        if value < 0:
            raise DataError(f"{what} must be >= 0, got {value!r}")


def _check_class(label: Label) -> None:
    require_word(f"{label.kind} label", label.value)


def _check_numeric(label: Label) -> None:
    check_number("number label", label.value)


def _check_interval(label: Label) -> None:
    value = label.value
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise DataError(f"interval label must be [start_s, end_s], got {value!r}")
    for x in value:
        check_number("interval bound", x)
    if not 0 <= value[0] < value[1]:
        raise DataError(f"interval label needs 0 <= start_s < end_s, got {list(value)!r}")


def _check_sequence(label: Label) -> None:
    if not isinstance(label.value, (tuple, list)) or not label.value:
        raise DataError(f"sequence label must be a non-empty list of names, got {label.value!r}")
    for item in label.value:
        require_word("sequence item", item)


# Open table: a new label kind is one entry here, one in `questions.py`, one in `match.py`.
LABEL_KINDS = {
    "class": _check_class,
    "choice": _check_class,
    "answer": _check_class,
    "number": _check_numeric,
    "interval": _check_interval,
    "sequence": _check_sequence,
}
