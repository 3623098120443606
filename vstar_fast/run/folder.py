"""The run folder: the only state there is. Its files appear whole or not at all (`vstar_fast.files`)."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from vstar_fast.distributed import rank, size
from vstar_fast.errors import RunError
from vstar_fast.files import UNFINISHED, read_jsonl, write_jsonl
from vstar_fast.records import Rejected, to_dict

Part = tuple[list[dict[str, Any]], list[Rejected]]
"""Rows of a part, and what was rejected while they were made."""
REJECTED = "rejected"
UNREADABLE = "unreadable"
"""Reason of a file that could not be opened, which may pass."""


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


class RunFolder:
    """Parts by content key, and the list of what was rejected before it became an answer."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.root / ".lock", "w")  # noqa: SIM115 - held as long as the run
            if rank() == 0:  # the others of one run are let in by it
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another process is running in {self.root}; wait for it or use another --run folder"
            ) from None
        except OSError as error:
            raise RunError(f"cannot use run folder {self.root}: {error}") from None
        if size() == 1:
            self._sweep()
        self._rejected: dict[Rejected, None] = {}

    def _sweep(self) -> None:
        """Remove what processes that were killed had not finished writing; caches look after themselves."""
        for folder, inner, names in os.walk(self.root):
            if folder == str(self.root) and "cache" in inner:
                inner.remove("cache")
            for name in names:
                writer = UNFINISHED.fullmatch(name)
                if writer and not _alive(int(writer[1])):
                    (Path(folder) / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let another process use the folder."""
        self._lock.close()

    def cycle(self, number: int) -> Path:
        """Folder of one cycle, counted from 0."""
        return self.root / f"cycle-{number:02d}"

    @staticmethod
    def part_file(folder: Path, key: str) -> Path:
        """Where a part stands once it is whole."""
        return folder / f"{key}.jsonl"

    def has_part(self, folder: Path, key: str) -> bool:
        """Whether a part stands in the folder."""
        return self.part_file(folder, key).is_file()

    def only_others(self, folder: Path, keys: Sequence[str]) -> bool:
        """Whether there are parts in the folder, but none of these."""
        there = {path.stem for path in folder.glob("*.jsonl")}
        return bool(there) and not there & set(keys)

    def part(self, folder: Path, key: str, compute: Callable[[], Part]) -> list[dict[str, Any]]:
        """Rows of a part: read when present, else computed and stored.

        What was rejected on the way is stored with the rows, so that a run that is resumed counts it again. A part
        in which a file could not be opened is not stored: the next run tries that file again.
        """
        path = self.part_file(folder, key)
        if path.is_file():
            stored = read_jsonl(path)
            self.reject(Rejected(**row[REJECTED]) for row in stored if REJECTED in row)
            return [row for row in stored if REJECTED not in row]
        rows, rejected = compute()
        self.reject(rejected)
        if not any(r.reason == UNREADABLE for r in rejected):
            write_jsonl(path, [*rows, *({REJECTED: to_dict(r)} for r in rejected)], own=True)
        return rows

    def reject(self, rows: Iterable[Rejected]) -> None:
        """Add to `rejected.jsonl`; the same thing refused twice is one row."""
        before = len(self._rejected)
        self._rejected.update(dict.fromkeys(rows))
        if len(self._rejected) > before:
            write_jsonl(self.root / "rejected.jsonl", [to_dict(r) for r in self._rejected])

    @property
    def rejected(self) -> list[Rejected]:
        """What was rejected so far, parts that were read back included."""
        return list(self._rejected)
