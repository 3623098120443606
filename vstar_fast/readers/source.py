"""One data path as it is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vstar_fast import clip_files
from vstar_fast.config import DataConfig
from vstar_fast.readers.clips import Clips
from vstar_fast.readers.names import ClassNames


@dataclass(frozen=True)
class Source:
    """What reads a data path, why, and the folder its video paths start from (resolved).

    `split`: of rows that name none.
    """

    path: Path
    root: Path
    reader: str
    why: str
    config: DataConfig
    split: str | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.path.is_dir() else self.path.resolve().parent.name

    @cached_property
    def clips(self) -> Clips:
        """The clips below the root, by their names."""
        return Clips(self.root)

    @cached_property
    def class_names(self) -> ClassNames:
        """Names of the classes that the data numbers."""
        return ClassNames(self.config.class_names, self.path if self.path.is_dir() else self.path.parent)

    def relative(self, path: str) -> str:
        """`path` (resolved, inside the root) as it reads from the root."""
        return path if clip_files.is_url(path) else Path(path).relative_to(self.root).as_posix()
