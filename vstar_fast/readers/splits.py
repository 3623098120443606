"""Which split a video belongs to."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from vstar_fast.config import DataConfig
from vstar_fast.records import LabeledVideo

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validate": "dev",
    "validation": "dev",
    "test": "test",
    "testing": "test",
}


def split_of_name(name: str) -> str | None:
    """The split that the name of a file or folder says: `train_qa`, `val_1`, `testlist01`; None where none or two."""
    words = re.findall(r"[a-z]+", name.lower())
    found = {SPLIT_NAMES[x] for x in (word.removesuffix("list") for word in words) if x in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def assign_splits(
    videos: Mapping[str, LabeledVideo],
    named: set[str],
    file_keys: Mapping[str, str],
    original: Mapping[str, str],
    config: DataConfig,
    seed: int,
) -> list[LabeledVideo]:
    """Videos with their final split.

    `named`: ids whose split came with the data; `original`: path -> that of the file it is a copy of. The rest go
    where the data put another window of their file, held out before `train`. What is left, and `train` where the data
    has no `dev` or no `test`, is dealt by hash of (seed, file): windows of one file stay together, and more data moves
    no file. A missing split gets at least one file as long as `train` keeps one.
    """
    held = {videos[id].split for id in named}
    file = {id: original.get(video.path, video.path) for id, video in videos.items()}
    keys: dict[str, str] = {}
    file_keys = {id: keys.setdefault(file[id], file_keys[id]) for id in videos}
    kept = _held_out((file[id], videos[id].split) for id in named)
    open_ids = [id for id in videos if file[id] not in kept and (id not in named or videos[id].split == "train")]
    tied = {file_keys[id] for id in open_ids if id in named}
    shares = {"test": config.test_fraction, "dev": config.dev_fraction}
    dealt: dict[str, str] = {}
    for key in sorted({file_keys[id] for id in open_ids}, key=lambda key: _place(seed, key)):
        split = _deal(_place(seed, key), shares)
        dealt[key] = "train" if key in tied and split in held else split
    _fill([s for s in shares if shares[s] > 0 and s not in held], dealt)
    final = {id: dealt[file_keys[id]] for id in open_ids}
    final |= {id: kept[file[id]] for id in videos if file[id] in kept and id not in named}
    return [dataclasses.replace(video, split=final.get(id, video.split)) for id, video in videos.items()]


def _held_out(files: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Path -> `test`, else `dev`, where one of the videos (windows) is in one of these."""
    held: dict[str, str] = {}
    for path, split in files:
        if split == "test" or split == "dev" and path not in held:
            held[path] = split
    return held


def _place(seed: int, key: str) -> float:
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _deal(place: float, shares: Mapping[str, float]) -> str:
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def _fill(missing: list[str], dealt: dict[str, str]) -> None:
    """Give `train`, then each missing split, a file from whichever split can best spare one."""
    order = ["train", *missing]
    for rank, split in enumerate(order):
        counts = Counter(dealt.values())
        spare = [s for s in order if counts[s] > 1 or (counts[s] and order.index(s) > rank)]
        if counts[split] == 0 and spare:
            donor = max(spare, key=lambda s: (counts[s], order.index(s)))
            dealt[next(key for key, s in dealt.items() if s == donor)] = split
