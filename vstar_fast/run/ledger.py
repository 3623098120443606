"""What the processes of a run did: time by stage, files read, which backends ran and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vstar_fast import backends
from vstar_fast.files import read_object, write_json
from vstar_fast.profiling import Profiler

NAMES = ("stages", "frames", "backends", "reasons")


class Ledger:
    """Kept in the run folder whenever a stage ends, a file each: a process that is killed takes its last stage along.

    `frames` counts what this process has read so far.
    """

    def __init__(self, root: Path, profiler: Profiler, frames: Callable[[], Mapping[str, float]]) -> None:
        self._root, self._profiler, self._frames = root, profiler, frames
        before = {name: self._read(name) for name in NAMES}
        profiler.merge(before["stages"])
        self._frames_before = Counter(before["frames"])
        self._ran = backends.Since(before["backends"])
        self._reasons_before = before["reasons"]

    def write(self) -> dict[str, Any]:
        """Write and return all of it, earlier processes of the run included."""
        found = {
            "stages": self._profiler.stages(),
            "frames": dict(self._frames_before + Counter(self._frames())),
            "backends": self._ran.report(),
            "reasons": self._reasons_before | backends.reasons(),
        }
        for name, value in found.items():
            write_json(self._root / f"{name}.json", value)
        return found

    def _read(self, name: str) -> dict[str, Any]:
        path = self._root / f"{name}.json"
        return read_object(path) if path.is_file() else {}
