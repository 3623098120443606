"""Arrays on disk and in memory under a byte budget: least recently used out first, safe for several processes.

An entry is one file, named by its key, written whole (temporary name, then rename) with a checksum in front. A damaged
one is dropped and made again. Readers and writers need no lock; only what makes room takes one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

MAGIC = b"vstarfc1"
_SUM_BYTES = 16
SUFFIX = ".vfc"
UNFINISHED = ".*.tmp"
ABANDONED_NS = 3600 * 10**9
"""Nobody is still writing an entry that was begun so long ago."""
RECOUNT = 1 / 16
PATIENCE_S = 5.0
"""How long a writer waits for another process that makes room; one that was stopped meanwhile must not stop all."""
ROOM = 0.9
"""Making room goes down to this share of the budget, so that it is not done for every entry."""


class Entry(NamedTuple):
    """Arrays by name and the JSON values kept with them. Arrays may be shared: not to be written to."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Memory held by the arrays, in bytes."""
        return sum(a.nbytes for a in self.arrays.values())


class Cache:
    """Entries by key in `folder`, at most `disk_bytes` there and `host_bytes` in memory; 0 switches a level off.

    `counts`: `host`, `disk`, `miss`, `put`, `evicted`, `damaged`, `unwritten`. Safe for threads and processes.
    """

    def __init__(self, folder: Path, disk_bytes: float, host_bytes: float = 0) -> None:
        self.folder = folder
        self.disk_bytes = disk_bytes
        self.host_bytes = host_bytes
        self.counts: Counter[str] = Counter()
        self._host: OrderedDict[str, Entry] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        self._on_disk: int | None = None
        self._written = 0

    def get(self, key: str) -> Entry | None:
        """The entry of `key`, or None."""
        with self._lock:
            found = self._host.get(key)
            if found is not None:
                self._host.move_to_end(key)
                self.counts["host"] += 1
                return found
        found = self._read(key) if self.disk_bytes else None
        with self._lock:
            self.counts["miss" if found is None else "disk"] += 1
        if found is not None:
            self._keep(key, found)
        return found

    def put(self, key: str, entry: Entry, *, disk: bool = True) -> None:
        """Keep an entry; one that is larger than a level's whole budget is not kept there."""
        self._keep(key, entry)
        if disk and entry.nbytes <= self.disk_bytes:
            self._write(key, entry)

    def __contains__(self, key: str) -> bool:
        return key in self._host or (bool(self.disk_bytes) and self._path(key).is_file())

    def clear(self) -> int:
        """Remove all entries; returns the bytes freed on disk."""
        with self._lock:
            self._host.clear()
            self._held, self._on_disk, self._written = 0, None, 0
        freed = 0
        for path, size, _ in [*self._files(), *self._files(UNFINISHED)]:
            path.unlink(missing_ok=True)
            freed += size
        return freed

    def info(self) -> dict[str, Any]:
        """`entries` and `bytes` on disk, and the budget."""
        files = list(self._files())
        return {
            "folder": str(self.folder),
            "entries": len(files),
            "bytes": sum(size for _, size, _ in files),
            "budget_bytes": self.disk_bytes,
        }

    def _keep(self, key: str, entry: Entry) -> None:
        if entry.nbytes > self.host_bytes:
            return
        with self._lock:
            before = self._host.pop(key, None)
            self._held += entry.nbytes - (before.nbytes if before else 0)
            self._host[key] = entry
            while self._held > self.host_bytes:
                _, gone = self._host.popitem(last=False)
                self._held -= gone.nbytes

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def _read(self, key: str) -> Entry | None:
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                data = bytearray(os.fstat(file.fileno()).st_size)
                file.readinto(data)
        except OSError:
            return None
        with contextlib.suppress(OSError):  # of a cache that may only be read
            os.utime(path)
        try:
            return unpack(data)
        except ValueError as error:
            with self._lock:
                self.counts["damaged"] += 1
            logging.getLogger(__name__).warning("cache entry %s is damaged (%s): dropped, and made again", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def _write(self, key: str, entry: Entry) -> None:
        path = self._path(key)
        temporary = path.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}.tmp")
        data = pack(entry)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._unwritten(path, error)
            return
        with self._lock:
            self.counts["put"] += 1
            self._written += len(data)
        try:
            self._make_room()
        except OSError as error:  # entries of somebody else's
            self._unwritten(self.folder, error)

    def _unwritten(self, path: Path, error: OSError) -> None:
        """A cache that cannot be written costs time, not results: said once, counted always."""
        with self._lock:
            self.counts["unwritten"] += 1
            first = self.counts["unwritten"] == 1
        if first:
            logging.getLogger(__name__).warning("cannot write the cache at %s: %s; going on without", path, error)

    def _make_room(self) -> None:
        # Other processes write here too: count anew after every share of the budget of one's own.
        if self._on_disk is None or self._written > RECOUNT * self.disk_bytes:
            self._on_disk, self._written = sum(size for _, size, _ in self._files()), 0
        if self._on_disk + self._written <= self.disk_bytes:
            return
        with self._only_one() as mine:
            if not mine:
                return
            self._sweep()
            files = sorted(self._files(), key=lambda f: f[2])
            left = sum(size for _, size, _ in files)
            most = ROOM * self.disk_bytes if left > self.disk_bytes else left  # somebody else may have made room
            for path, size, _ in files:
                if left <= most:
                    break
                path.unlink(missing_ok=True)
                left -= size
                self.counts["evicted"] += 1
            self._on_disk, self._written = left, 0

    def _sweep(self) -> None:
        """Remove what processes that were killed had not finished writing."""
        for path, _, changed_ns in self._files(UNFINISHED):
            if time.time_ns() - changed_ns > ABANDONED_NS:
                path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _only_one(self) -> Iterator[bool]:
        """Whether nobody else is making room. Waits for who is: else one that is slow lets the others write on."""
        with open(self.folder / ".lock", "w") as lock:
            over = time.monotonic() + PATIENCE_S
            while not _locked(lock):
                if time.monotonic() > over:
                    yield False
                    return
                time.sleep(0.01)
            yield True

    def _files(self, names: str = f"*{SUFFIX}") -> Iterator[tuple[Path, int, int]]:
        """Path, bytes and time of the last use of each entry."""
        for path in self.folder.glob(f"??/{names}"):
            with contextlib.suppress(FileNotFoundError):  # another process made room
                info = path.stat()
                yield path, info.st_size, info.st_mtime_ns


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def pack(entry: Entry) -> bytes:
    """An entry as bytes: magic, checksum, then safetensors with the values as JSON in its header."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(a) for name, a in entry.arrays.items()}
    body = save(arrays, metadata={"meta": json.dumps(entry.meta)})
    return MAGIC + hashlib.blake2b(body, digest_size=_SUM_BYTES).digest() + body


def unpack(data: bytearray) -> Entry:
    """Inverse of `pack`; raises ValueError when the bytes are not what was written."""
    start = len(MAGIC) + _SUM_BYTES
    body = memoryview(data)[start:]
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("of another format")
    if hashlib.blake2b(body, digest_size=_SUM_BYTES).digest() != data[len(MAGIC) : start]:
        raise ValueError("checksum differs")
    size = int.from_bytes(body[:8], "little")
    header = json.loads(bytes(body[8 : 8 + size]))
    meta = json.loads(header.pop("__metadata__")["meta"])
    return Entry({name: _array(body[8 + size :], row) for name, row in header.items()}, meta)


_DTYPES = {"U8": "u1", "I64": "<i8", "I32": "<i4", "F32": "<f4", "F16": "<f2", "BOOL": "?", "U16": "<u2"}


def _array(body: memoryview, row: dict[str, Any]) -> np.ndarray:
    start, end = row["data_offsets"]
    return np.frombuffer(body[start:end], dtype=_DTYPES[row["dtype"]]).reshape(row["shape"])
