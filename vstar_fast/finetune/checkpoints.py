"""Where a training stands, on disk: killed at any moment and started again, it ends with the very same weights.

A folder of `step-NNNNNN`, each the adapter (as PEFT saves it), the optimizer's state and a seal with the digest of
every file. A checkpoint appears whole, by a rename, or not at all. Random numbers need no place in it: they depend on
the seed, the step and the pass alone, and so does the order of the examples.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vstar_fast.files import writing

STATE, SEAL, ADAPTER = "state.pt", "seal.json", "adapter"
NAME = re.compile(r"step-(\d+)")
Note = Callable[[str], None]


class Loaded(NamedTuple):
    """A checkpoint that is whole: steps done, its adapter's folder, what was saved with it."""

    step: int
    adapter: Path
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training. `key` changes with whatever changes its weights; `kept`: how many stay."""

    def __init__(self, folder: Path, key: str, every: int, kept: int, note: Note) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        """What was wrong with those that could not be used."""
        self._unusable: list[Path] = []
        self._key, self._every, self._kept, self._note = key, every, kept, note

    def due(self, step: int, steps: int) -> bool:
        """Whether to save after `step` steps of `steps`; the last is what the adapter itself holds."""
        return bool(self._every) and step % self._every == 0 and step < steps

    def save(self, step: int, adapter: Callable[[Path], None], state: dict[str, Any]) -> None:
        """Write a checkpoint; `adapter(folder)` writes the adapter. Only the last `kept` stay.

        Those that `load` could not use go, too: they are of steps that this training has not come to, and would count
        as the last ones.
        """
        final = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".{final.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        with writing(final):
            temporary.mkdir(parents=True)
            adapter(temporary / ADAPTER)
            torch.save(state, temporary / STATE)
            seal = {"key": self._key, "step": step, "files": _digests(temporary)}
            (temporary / SEAL).write_text(json.dumps(seal))
            _sync(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
        others = [p for p in self._unusable if p != final and p.is_dir()]
        self._unusable = []
        for old in [*others, *[p for p in self._found() if p not in others][: -self._kept]]:
            shutil.rmtree(old)

    def load(self, fits: Callable[[Path], bool] = lambda _: True) -> Loaded | None:
        """The newest checkpoint of this training that is whole; those that are not are told of and counted.

        `fits`: whether an adapter's folder holds what is trained, which goes by the version of more than one package.
        """
        for folder in reversed(self._found()):
            try:
                found = self._opened(folder)
                if not fits(found.adapter):
                    raise ValueError("it was written by another version, which trained other layers")
                return found
            except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError) as error:
                self._unusable.append(folder)
                self.damaged.append(f"{folder}: {error}")
                self._note(f"checkpoint {folder} cannot be used ({error}); going on from the one before it")
        return None

    def clear(self) -> None:
        """Forget them: the training has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        """Folders of checkpoints, the oldest first."""
        named = ((NAME.fullmatch(p.name), p) for p in self.folder.glob("step-*") if p.is_dir())
        return [p for _, p in sorted((int(name[1]), p) for name, p in named if name)]

    def _opened(self, folder: Path) -> Loaded:
        seal = json.loads((folder / SEAL).read_text())
        if seal["key"] != self._key:
            raise ValueError("it belongs to other examples, settings or weights")
        if seal["files"] != _digests(folder):
            raise ValueError("its files are not those that were written")
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        return Loaded(int(seal["step"]), folder / ADAPTER, state)


def _digests(folder: Path) -> dict[str, str]:
    """A digest of each file but the seal, by its name within the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SEAL)
    return {str(p.relative_to(folder)): _digest(p) for p in files}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _sync(folder: Path) -> None:
    """Have the folder's files on the disk before its name says that they are there."""
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
