"""`LabelSet`: class names and their aliases, checked once and compiled once."""

from __future__ import annotations

import functools
import re
import unicodedata
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from vstar_fast.errors import DataError

from .characters import WORD, fold_name, kind
from .handles import hold
from .token_bytes import TokenBytes


class LabelSet:
    """Class names with aliases, ready for `label_match`; label ids are positions in `names`.

    Names that differ only in case, or in spaces, `_` and `-`, are the same name. `aliases` maps a name to more
    ways to write it. Raises DataError for an empty set, a name without a letter or digit, and two labels
    that are the same name.
    """

    def __init__(self, names: Iterable[str], aliases: Mapping[str, Sequence[str]] | None = None) -> None:
        if isinstance(names, str):
            raise DataError(f"a label set takes a list of names, not one string ({names!r})")
        self.names: tuple[str, ...] = tuple(names)
        if not self.names:
            raise DataError("the label set is empty; give at least one class name")
        self._owner: dict[str, int] = {}
        self._written: dict[str, str] = {}
        for label, name in enumerate(self.names):
            self._add(label, name)
        for name, others in (aliases or {}).items():
            label = self.id(name)
            for other in [others] if isinstance(others, str) else others:
                self._add(label, other)
        self._begin()

    def _begin(self) -> None:
        """Nothing is compiled yet, and a number of its own."""
        self._tables: dict[tuple[tuple[int, ...], torch.device], torch.Tensor] = {}
        self._hints: weakref.WeakKeyDictionary[TokenBytes, Hints] = weakref.WeakKeyDictionary()
        self.handle = hold(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names, "_owner": self._owner, "_written": self._written}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _add(self, label: int, name: str) -> None:
        """Enter a name of `label`, in composed and in decomposed Unicode, unless it is there already."""
        if not isinstance(name, str):
            raise DataError(f"label {label} is {name!r} ({type(name).__name__}); a label is a string")
        if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
            raise DataError(f"label {label} ({name!r}) is not valid Unicode; was it read with the wrong encoding?")
        forms = _forms(name)
        if not forms:
            raise DataError(f"label {label} ({name!r}) has no letter or digit, so it cannot be found in a text")
        for form in forms:
            known = self._owner.setdefault(form, label)
            written = self._written.setdefault(form, name)
            if known != label:
                raise DataError(
                    f"labels {known} ({written!r}) and {label} ({name!r}) are the same name once case, spaces, "
                    "'_' and '-' are treated as equal; rename or remove one"
                )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"LabelSet({len(self)} labels, {len(self._owner)} ways to write them)"

    @property
    def forms(self) -> tuple[tuple[int, ...], ...]:
        """Every way to write a label, as folded code points."""
        return tuple(tuple(map(ord, form)) for form in self._owner)

    @property
    def owners(self) -> tuple[int, ...]:
        """The label id of each of `forms`."""
        return tuple(self._owner.values())

    def find(self, name: str) -> int | None:
        """The label that `name` is a way to write, or None."""
        return self._owner.get(_folded(name if name.isascii() else unicodedata.normalize("NFC", name)))

    def id(self, name: str) -> int:
        """The label that `name` is a way to write; DataError when there is none."""
        label = self.find(name)
        if label is None:
            raise DataError(f"{name!r} is none of the {len(self)} labels ({_some(self.names)})")
        return label

    def tables(self, after: tuple[int, ...] = (), device: torch.device | None = None) -> torch.Tensor:
        """The compiled block [bytes] uint8 for one `after` literal, on `device` (CPU by default); kept."""
        cpu = torch.device("cpu")
        key = (after, device or cpu)
        if key not in self._tables:
            if device is None or device == cpu:
                self._tables[key] = _compile(tuple(self._owner), self.owners, after)
            else:
                self._tables[key] = self.tables(after).to(device)
        return self._tables[key]

    def hints(self, tokens: TokenBytes, after: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """What each token can mean for these labels and this literal (csrc/token_text.h), [2, V] int32; kept."""
        kept = self._hints.setdefault(tokens, Hints())
        key = (after, device)
        if key not in kept.made:
            if device.type == "cpu":
                kept.made[key] = _compile_hints(self.tables(after), tokens)
            else:
                kept.made[key] = self.hints(tokens, after, torch.device("cpu")).to(device)
        return kept.made[key]

    def hints_for(self, rows: int, tokens: TokenBytes, after: tuple[int, ...]) -> torch.Tensor | None:
        """The hints for a call on the CPU with so many rows; None until making them pays."""
        kept = self._hints.setdefault(tokens, Hints())
        kept.rows[after] = kept.rows.get(after, 0) + rows
        cpu = torch.device("cpu")
        worth = (after, cpu) in kept.made or kept.rows[after] * _TOKENS_A_ROW >= len(tokens)
        return self.hints(tokens, after, cpu) if worth else None


_TOKENS_A_ROW = 16
"""Hints of so many tokens take about as long to make as they save on one row."""


class Hints:
    """Hints of one vocabulary: by literal and device; rows seen so far, by literal."""

    def __init__(self) -> None:
        self.made: dict[tuple[tuple[int, ...], torch.device], torch.Tensor] = {}
        self.rows: dict[tuple[int, ...], int] = {}


def _compile_hints(tables: torch.Tensor, tokens: TokenBytes) -> torch.Tensor:
    from vstar_fast import _C

    made = torch.empty((2, len(tokens)), dtype=torch.int32, device="cpu")
    try:
        _C.compile_hints(tables.data_ptr(), tokens.table().data_ptr(), made.data_ptr())
    except ValueError as error:
        raise DataError(f"the token table cannot be used: {error}") from None
    return made


def _compile(forms: tuple[str, ...], owners: tuple[int, ...], after: tuple[int, ...]) -> torch.Tensor:
    from vstar_fast import _C

    try:
        block = _C.compile_labels(forms, owners, "".join(map(chr, after)))
    except ValueError as error:
        raise DataError(f"the label set cannot be compiled: {error}") from None
    return torch.frombuffer(bytearray(block), dtype=torch.uint8)


@functools.lru_cache(maxsize=64)
def fold_literal(after: str) -> tuple[int, ...]:
    """The `after` literal as it is compared; DataError when nothing of it is left."""
    if not isinstance(after, str):
        raise DataError(f"after={after!r} is no string; use None to search the whole text")
    points = fold_name(after)
    if not points:
        raise DataError(f"after={after!r} holds no character to look for; use None to search the whole text")
    return points


_ASCII_SEPARATORS = re.compile(r"[\s_-]+")


def _folded(name: str) -> str:
    """`fold_name` as a string; an ASCII name without a step a character."""
    if name.isascii() and not any("\x1c" <= char <= "\x1f" for char in name):
        return _ASCII_SEPARATORS.sub(" ", name).strip(" ").lower()
    return "".join(map(chr, fold_name(name)))


def _forms(name: str) -> tuple[str, ...]:
    """A name folded, composed and decomposed; none when it has no letter or digit."""
    if name.isascii():
        form = _folded(name)
        return (form,) if any(map(str.isalnum, form)) else ()
    if not any(kind(char) == WORD for char in name):
        return ()
    return _folded(unicodedata.normalize("NFC", name)), _folded(unicodedata.normalize("NFD", name))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
