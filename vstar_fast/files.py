"""Files that appear whole (temporary name, then rename) or not at all, and keys of content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from vstar_fast.distributed import rank
from vstar_fast.errors import RunError

FORMAT = 1
"""Version of what is stored; part of every content key."""

_WINDOW_BYTES = 1 << 20
UNFINISHED = re.compile(r"\..+\.(\d+)\.\d+\.tmp")
"""Name of a file that is being written, see `write_atomic`: the process's id is in it."""
PATIENCE_S = 120.0
"""How long another process's file is waited for. Network file systems may say for a minute that it is not there."""


def content_key(*values: Any) -> str:
    """16 hex digits that change when any of the (JSON-like) values does."""
    text = json.dumps([FORMAT, *values], sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def file_key(path: str | Path) -> str:
    """Key of a file's content, see `digest`."""
    with open(path, "rb") as file:
        return digest(file, os.fstat(file.fileno()).st_size)


def digest(file: IO[bytes], size: int) -> str:
    """16 hex digits of `size` bytes: of all of them up to 3 MiB, else of their number and three MiB."""
    found = hashlib.blake2b(str(size).encode(), digest_size=8)
    for start in sorted({0, max(0, size // 2 - _WINDOW_BYTES // 2), max(0, size - _WINDOW_BYTES)}):
        file.seek(start)
        found.update(file.read(_WINDOW_BYTES))
    return found.hexdigest()


def write_atomic(path: Path, write: Callable[[Path], None], *, own: bool = False) -> None:
    """Call `write(temporary path)`, then rename to `path`; a full disk leaves nothing behind but a clear error.

    Of several processes at one run only the first writes, unless a file is the process's `own`.
    """
    if rank() and not own:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{rank()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what another library cannot write (a full disk, no access) is a clear error about `path`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: Exception) -> RunError:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = "the disk is full" if full else str(error)
    return RunError(f"cannot write {path}: {why}; make room (or mend access) and run the same command again")


def write_text(path: Path, text: str, *, own: bool = False) -> None:
    """Write a text file whole or not at all; `own` as in `write_atomic`."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    write_atomic(path, write, own=own)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, keys in order of insertion; a number that is not finite becomes null."""
    write_text(path, json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_jsonl(path: Path, rows: Iterable[Any], *, own: bool = False) -> None:
    """Write one JSON value a line; `own` as in `write_atomic`."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), own=own)


def appears(path: Path, patience_s: float = PATIENCE_S) -> bool:
    """Whether a file that another process has written is there; a network file system may show it late."""
    last = time.monotonic() + patience_s
    while not path.is_file():
        if time.monotonic() > last:
            return False
        time.sleep(min(0.2, patience_s))
        with contextlib.suppress(OSError):
            os.listdir(path.parent)  # so that the folder is asked for anew
    return True


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file is an error that says so, and so is one that is not there."""
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); delete it and run the same command again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is a damaged file."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise RunError(f"{path} is damaged (it holds no object); delete it and run the same command again")
    return found


def read_jsonl(path: Path) -> list[Any]:
    """Read one JSON value a line."""
    try:
        # Not splitlines(): it also splits at U+2028 and the like, which JSON leaves as they are.
        return [json.loads(line) for line in _text(path).split("\n") if line]
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); delete it and run the same command again") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"cannot read {path}: {error.strerror}; run the same `vstar-fast cycle` again to have it written"
        ) from None
