"""Parts of a run folder that several processes make: each makes its share, all read all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vstar_fast.distributed import Ranks
from vstar_fast.errors import RunError
from vstar_fast.files import appears
from vstar_fast.run.folder import Part, RunFolder


class SharedParts:
    """Parts of one kind; `places[i]` is the (folder, content key) of part i."""

    def __init__(self, run: RunFolder, ranks: Ranks, places: Sequence[tuple[Path, str]]) -> None:
        self._run, self._ranks, self._places = run, ranks, places
        self._loose: dict[str, Part] = {}
        """Parts that are not stored, for they may come out otherwise next time."""

    def mine(self) -> list[int]:
        """The parts that are not there and that this process is to make."""
        missing = [i for i, place in enumerate(self._places) if not self._run.has_part(*place)]
        return [missing[n] for n in self._ranks.mine([self._places[i][1] for i in missing])]

    def store(self, place: tuple[Path, str], part: Part) -> None:
        """Keep a part that was made."""
        self._run.part(*place, lambda: part)
        if not self._run.has_part(*place):
            self._loose[place[1]] = part

    def rows(self) -> list[list[dict[str, Any]]]:
        """Rows of each part. Waits for all processes. Raises RunError where another's part is not in the folder."""
        loose = self._ranks.merged(self._loose)

        def given(key: str) -> Part:
            if key not in loose:
                raise RunError(f"another process's part {key} is not in {self._run.root}; all need the same run folder")
            return loose[key]

        found = []
        for folder, key in self._places:
            if self._ranks.size > 1 and key not in loose:
                appears(self._run.part_file(folder, key))
            found.append(self._run.part(folder, key, lambda: given(key)))  # noqa: B023 - called at once
        return found
