"""Closed label sets: declared by the data, or built from its labels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from vstar_fast.readers.rows import Bad, is_utf8
from vstar_fast.records import Label, LabeledVideo, Rejected

CLOSED_KINDS = ("class", "sequence")
"""Kinds whose labels get the set of their name when the data names none."""


def label_key(text: str) -> str:
    """Labels with one key are one label: case, spaces, `_` and `-` do not count."""
    return " ".join(re.split(r"[\s_\-]+", text.casefold())).strip()


def _unusable(value: str) -> tuple[str, str] | None:
    """Why no label may have this value: reason and words."""
    if not is_utf8(value):
        return "not_utf8", "is not UTF-8; save the file as UTF-8"
    return None if any(c.isalnum() for c in value) else ("bad_label", "has no letter or digit")


class LabelSets:
    """Label sets by name. Labels that differ only in case, spaces, `_` or `-` are one, spelt as first seen."""

    def __init__(self) -> None:
        self._declared: dict[str, dict[str, str]] = {}
        self._built: dict[str, dict[str, str]] = {}

    def declare(self, sets: Mapping[str, Sequence[str]], where: str) -> list[Rejected]:
        """Take declared sets; sets of one name are joined. Gives what had to be left out of them."""
        rejected = []
        for name, values in sets.items():
            if not is_utf8(name):
                detail = f"{where}: the name of label_sets.{name} is not UTF-8; save the file as UTF-8"
                rejected.append(Rejected("read", f"label_sets.{name}", "not_utf8", detail))
                continue
            held = self._declared.setdefault(name, {})
            for i, value in enumerate(values):
                wrong = _unusable(value)
                if wrong:
                    detail = f"{where}: label_sets.{name}[{i}] {value!r} {wrong[1]}"
                    rejected.append(Rejected("read", f"label_sets.{name}[{i}]", wrong[0], detail))
                else:
                    held.setdefault(label_key(value), value)
        return rejected

    def fit(self, label: Label) -> Label:
        """The label in its set's spelling, with the set of its name where it has none. Raises Bad."""
        if label.set is None and label.kind in CLOSED_KINDS:
            label = dataclasses.replace(label, set=label.name)
        if label.set is None or label.kind not in (*CLOSED_KINDS, "choice"):
            return label
        declared = self._declared.get(label.set)
        if declared is not None and not declared:
            raise Bad("empty_label_set", f"label set {label.set!r} of {label.value!r} is empty; list its labels")
        if label.kind == "sequence":
            return dataclasses.replace(label, value=tuple(self._spelling(label.set, x) for x in label.value))
        return dataclasses.replace(label, value=self._spelling(label.set, label.value))

    def note(self, video: LabeledVideo) -> None:
        """Add the video's labels to the sets that nothing declared."""
        for label in video.labels:
            if label.set is not None and label.set not in self._declared:
                built = self._built.setdefault(label.set, {})
                for value in label.value if label.kind == "sequence" else (label.value,):
                    if isinstance(value, str):
                        built.setdefault(label_key(value), value)

    def result(self) -> dict[str, tuple[str, ...]]:
        """Every set: declared ones in their order, built ones sorted."""
        names = dict.fromkeys((*self._declared, *self._built))
        return {name: tuple(self._merged(name).values()) for name in names}

    def _merged(self, name: str) -> dict[str, str]:
        built = self._built.get(name, {})
        return {**{k: built[k] for k in sorted(built)}, **self._declared.get(name, {})}

    def _spelling(self, name: str, value: str) -> str:
        declared = self._declared.get(name)
        key = label_key(value)
        if declared is None:
            return self._built.get(name, {}).get(key, value)
        if key not in declared:
            raise Bad("not_in_label_set", f"label {value!r} is not in label set {name!r}; add it there or correct it")
        return declared[key]
