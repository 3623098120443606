"""Where a clip's bytes come from: a file, a URL, a member of a tar shard, or a folder of numbered images."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vstar_fast.clip_errors import Unusable
from vstar_fast.files import digest

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Endings of the pictures of an image folder."""
MEMBER = "::"
"""Between a tar shard and the name of a member: `shards/0001.tar::clip.mp4`."""
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_url(path: str) -> bool:
    """Whether `path` names something that fsspec opens."""
    return _URL.match(path) is not None


def is_member(path: str) -> bool:
    """Whether `path` names a member of a tar shard."""
    shard, mark, member = path.partition(MEMBER)
    return bool(mark and member) and shard.endswith(".tar")


def is_folder(path: str) -> bool:
    """Whether `path` is a folder (of images)."""
    return not is_url(path) and not is_member(path) and os.path.isdir(path)


def absolute(path: str) -> str:
    """The same for a process whose working folder is another one."""
    return path if is_url(path) or os.path.isabs(path) else os.path.join(os.getcwd(), path)


def check(path: str) -> None:
    """Raise Unusable for what can be told without opening: missing, empty, no file and no folder of images."""
    if is_url(path) or is_member(path):
        return
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Unusable("missing_file", "no such file") from None
    if stat.S_ISDIR(info.st_mode):
        if not images(path):
            raise Unusable("not_a_video", "is a folder without images")
    elif not stat.S_ISREG(info.st_mode):
        raise Unusable("not_a_video", "is not a regular file")
    elif info.st_size == 0:
        raise Unusable("empty_file", "has 0 bytes")


def images(folder: str) -> list[str]:
    """The images of a folder in order of the numbers in their names (`2.jpg` before `10.jpg`), then of the names."""
    names = [n for n in os.listdir(folder) if n.lower().endswith(IMAGES) and not n.startswith(".")]
    return [os.path.join(folder, n) for n in sorted(names, key=lambda n: (_by_number(n), n))]


def _by_number(name: str) -> list[Any]:
    parts = re.split(r"(\d+)", name)
    return [int(p) if i % 2 else p for i, p in enumerate(parts)]


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, URL or tar member, to read and seek in. Raises OSError or Unusable."""
    with contextlib.ExitStack() as stack:
        shard, _, member = path.partition(MEMBER) if is_member(path) else (path, "", "")
        file = stack.enter_context(_fsspec(shard) if is_url(shard) else open(shard, "rb"))  # noqa: SIM115
        if member:
            start, size = _place(shard, member)
            file = stack.enter_context(io.BufferedReader(_Part(file, start, size), 1 << 16))
        yield file


def read_bytes(path: str) -> bytes:
    """All bytes of a file, URL or tar member."""
    with opened(path) as file:
        return file.read()


def content_key(path: str) -> str:
    """16 hex digits that change with the content: of a file its size and its first, middle and last MiB.

    Of an image folder: names, sizes and times of change. A URL is asked once a process. Raises OSError or Unusable
    where there is nothing to read.
    """
    shard = path.partition(MEMBER)[0] if is_member(path) else path
    if is_url(path) or shard != path:
        return _opened_key(path, *(() if is_url(path) else _stamp(shard)))
    if os.path.isdir(path):  # the folder's own stamp stays when an image in it changes
        return _folder_key(path)
    return _local_key(os.path.realpath(path), *_stamp(path))


@functools.lru_cache(maxsize=65536)
def _opened_key(path: str, *_: int) -> str:
    with _remote_faults(path), opened(path) as file:
        return digest(file, file.seek(0, os.SEEK_END))


@contextlib.contextmanager
def _remote_faults(path: str) -> Iterator[None]:
    """What a URL fails with is OSError or Unusable: every protocol's package has errors of its own."""
    try:
        yield
    except (OSError, Unusable):
        raise
    except Exception as error:
        if not is_url(path):
            raise
        raise Unusable("unreadable", f"{type(error).__name__}: {error}") from error


def _stamp(path: str) -> tuple[int, int, int]:
    info = os.stat(path)
    return info.st_size, info.st_mtime_ns, info.st_ino


def _folder_key(path: str) -> str:
    listed = [(os.path.basename(p), *_stamp(p)[:2]) for p in images(path)]
    return hashlib.blake2b(repr(listed).encode(), digest_size=8).hexdigest()


@functools.lru_cache(maxsize=65536)
def _local_key(path: str, size: int, *_: int) -> str:
    with open(path, "rb") as file:
        return digest(file, size)


def _fsspec(url: str) -> Any:
    try:
        import fsspec
    except ImportError:
        remedy = "run: pip install 'vstar-fast[remote]'"
        raise Unusable("unreadable", f"is a URL, and the Python module fsspec is not installed; {remedy}") from None
    try:
        web = _patience() if url.lower().startswith("http") else {}
        file = fsspec.open(url, "rb", **web).open()
        if web and not _has_ranges(file):
            with fsspec.open(url, "rb", block_size=0, **web) as whole:
                return io.BytesIO(whole.read())
        return file
    except FileNotFoundError as error:  # fsspec's word for every answer of a web server but the file
        why = error.__cause__
        if why is None or isinstance(why, FileNotFoundError) or getattr(why, "status", 0) in (404, 410):
            raise Unusable("missing_file", "no such file") from None
        raise Unusable("unreadable", f"the server does not give it: {type(why).__name__} {why}".rstrip()) from None
    except (ValueError, ImportError) as error:  # a protocol that is unknown, or whose package is missing
        raise Unusable("unreadable", str(error)) from None


SILENT_S = 30.0
"""How long a web server may send nothing; five minutes is what a whole answer may take."""


def _patience() -> dict[str, Any]:
    """Options of fsspec for the web, whose own patience with a silent server is five minutes."""
    import aiohttp

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=300, sock_connect=SILENT_S, sock_read=SILENT_S)}}


def _has_ranges(file: Any) -> bool:
    """Whether a web server sends parts of files: some do not, and `seekable` says True all the same."""
    try:
        file.seek(-1, os.SEEK_END)
        file.read(1)
        file.seek(0)
    except ValueError:
        file.close()
        return False
    return True


def members(shard: str) -> dict[str, tuple[int, int]]:
    """Name -> (first byte, bytes) of every file in an uncompressed tar; the tar is read once a process.

    Raises Unusable when it is damaged or compressed.
    """
    if is_url(shard):
        return _members(shard)
    return _members(os.path.realpath(shard), *_stamp(shard))


@functools.lru_cache(maxsize=256)
def _members(shard: str, *_: int) -> dict[str, tuple[int, int]]:
    try:
        with _remote_faults(shard), opened(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            found = {m.name: (m.offset_data, m.size) for m in tar if m.isfile()}
            _check_end(file, tar)
            return found
    except (tarfile.TarError, EOFError) as error:
        raise Unusable("truncated", f"shard {Path(shard).name} is no whole, uncompressed tar: {error}") from None


def _check_end(file: IO[bytes], tar: tarfile.TarFile) -> None:
    """Raise ReadError where no end mark follows the last member: `tarfile` takes damage for the end."""
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError(f"it breaks off or is damaged at byte {tar.offset}")


def _place(shard: str, member: str) -> tuple[int, int]:
    found = members(shard).get(member)
    if found is None:
        raise Unusable("missing_file", f"the shard has no member {member!r}")
    if found[1] == 0:
        raise Unusable("empty_file", "has 0 bytes")
    return found


class _Part(io.RawIOBase):
    """`size` bytes of a file from `start` on, as a file."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
