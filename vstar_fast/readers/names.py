"""Names of classes that the data gives by number or code: `classInd.txt`, a label map, a list of names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vstar_fast.errors import DataError
from vstar_fast.readers.rows import Bad

USUAL = ("classInd.txt", "Charades_v1_classes.txt", "labels.json")
"""Files of names that are looked for beside the data: of UCF101, Charades, and Something-Something."""
_CODED = re.compile(r"([A-Za-z]?\d+)[\s,;:]+(\S.*)")
NUMBER = re.compile(r"[+\-]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+\-]?\d+)?\s*")


def is_number(value: Any) -> bool:
    """Whether a label is a bare number, which is no name."""
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float)) or isinstance(value, str) and NUMBER.fullmatch(value.strip()) is not None


class ClassNames:
    """Number or code -> name. `given`: `data.class_names`; else a usual file in `folder`."""

    def __init__(self, given: str, folder: Path) -> None:
        path = Path(given).expanduser() if given else None
        if path is not None and not path.is_absolute() and not path.is_file():
            path = folder / path
        if path is not None and not path.is_file():
            raise DataError(f"data.class_names {given} is not there")
        path = path or next((folder / x for x in USUAL if (folder / x).is_file()), None)
        self._names = _read(path) if path else {}
        self._path = path

    def of(self, value: Any) -> Any:
        """The name of a number or code, or `value` as it is. Raises Bad for a number without a name."""
        text = str(value).strip() if isinstance(value, (str, int)) else ""
        if text in self._names:
            return self._names[text]
        if not is_number(value):
            return value
        if self._path:
            raise Bad("bad_label", f"class {value!r} is not in {self._path.name}")
        raise Bad(
            "bad_label",
            f"label {value!r} is a number, not a name; for the number of a class name the file with the names in "
            'data.class_names, for a score or count name its column in data.columns, e.g. columns = {number = "score"}',
        )


def _read(path: Path) -> dict[str, str]:
    """`1 ApplyEyeMakeup` or `c092 Opening a door` a line, a name a line (counted from 0), or a list or map in JSON."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text) if path.suffix == ".json" else [x.strip() for x in text.splitlines() if x.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no file of class names: {error}") from None
    if isinstance(value, dict):
        pairs = list(value.items())
        by_name = all(re.fullmatch(r"\d+", str(v)) for _, v in pairs)
        pairs = [(str(v), k) for k, v in pairs] if by_name else pairs
    else:
        coded = [_CODED.fullmatch(x) for x in value if isinstance(x, str)] if path.suffix != ".json" else []
        coded = coded[1:] if len(coded) > 1 and not coded[0] else coded  # a header line
        whole = bool(coded) and all(coded)
        pairs = [(x[1], x[2]) for x in coded if x] if whole else [(str(i), x) for i, x in enumerate(value)]
    if not all(isinstance(name, str) for _, name in pairs) or len({k for k, _ in pairs}) < len(pairs):
        raise DataError(f"{path} must hold one name a number, e.g. `1 ApplyEyeMakeup` a line, or a name a line")
    return {k: name.strip() for k, name in pairs}
