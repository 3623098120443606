"""A label's value in words, as gold answers, hints and reports have it."""

from __future__ import annotations

from collections.abc import Callable

from vstar_fast.records import Label


def label_text(label: Label) -> str:
    """The label's value in words, e.g. `spin kick`, `1.8 s to 3.6 s`, `3 times`, `run, jump`."""
    return LABEL_TEXTS[label.kind](label)


def words(text: str) -> str:
    """A name as people write it: spaces for underscores, and for runs of them."""
    return " ".join(text.replace("_", " ").split())


def _number(value: float) -> str:
    text = f"{value:.6g}"
    if "e" in text or (float(value).is_integer() and abs(value) >= 1e6):
        text = f"{value:.12f}".rstrip("0").rstrip(".")
    return text


def _quantity(label: Label) -> str:
    if not label.unit:
        return _number(label.value)
    unit = label.unit[:-1] if label.value == 1 and len(label.unit) > 2 and label.unit.endswith("s") else label.unit
    return f"{_number(label.value)}{'' if unit == '%' else ' '}{unit}"


def _interval(label: Label) -> str:
    start, end = label.value
    digits = 2 if end - start >= 0.1 else 6
    return f"{_number(round(start, digits))} s to {_number(round(end, digits))} s"


# Label kind -> its value in words.
LABEL_TEXTS: dict[str, Callable[[Label], str]] = {
    "class": lambda label: words(label.value),
    "choice": lambda label: words(label.value),
    "answer": lambda label: " ".join(label.value.split()),
    "number": _quantity,
    "interval": _interval,
    "sequence": lambda label: ", ".join(words(item) for item in label.value),
}
