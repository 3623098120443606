"""Rows of a model's own cache, whatever its layers keep: copied, repeated, taken out, put together.

transformers' caches reorder their rows, and no method does more for all of them. Which dimension of each tensor counts
the rows is seen on the caches of one row and of two; a cache with a tensor in which it does not show is refused.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PretrainedConfig

Path = tuple[Any, ...]
Dims = dict[Path, int | None]
"""Place of a tensor in a cache -> the dimension of its rows; None: a number that all rows share."""

ATOMS = (torch.nn.Module, PretrainedConfig, torch.Stream, torch.device, torch.dtype, type, types.FunctionType)


class NoRows(Exception):
    """Rows of a cache cannot be told apart, or those of two caches do not go together; the reason."""


def copied(cache: Any) -> Any:
    """The same cache once more, in memory of its own."""
    return _made([cache], lambda _, tensors: tensors[0].clone())


def gathered(parts: Sequence[tuple[Any, Sequence[int]]], dims: Mapping[Path, int | None]) -> Any:
    """One cache of the rows that are named of each part, in order. Raises NoRows where `dims` lack a tensor."""

    def joined(path: Path, tensors: list[torch.Tensor]) -> torch.Tensor:
        if path not in dims:
            raise NoRows(f"{_words(path)} is new")
        dim = dims[path]
        if dim is None:
            if any(not torch.equal(tensors[0], t) for t in tensors[1:]):
                raise NoRows(f"{_words(path)} differs")
            return tensors[0].clone()
        index = [torch.tensor(rows, device=t.device) for t, (_, rows) in zip(tensors, parts, strict=True)]
        if len({(*t.shape[:dim], *t.shape[dim + 1 :]) for t in tensors}) > 1:
            raise NoRows(f"{_words(path)} is of several sizes")
        return torch.cat([t.index_select(dim, i) for t, i in zip(tensors, index, strict=True)], dim)

    return _made([cache for cache, _ in parts], joined)


def dims_between(one: Any, two: Any) -> Dims:
    """Where the rows stand, seen on the caches of one row and of two like it. Raises NoRows where that shows none."""
    after = dict(tensors_of(two))
    return {path: _dim(path, tensor, after.get(path), 1, 2) for path, tensor in tensors_of(one)}


def dims_of(cache: Any, rows: int) -> Dims:
    """The same, seen on one cache of so many rows by having it reorder a copy. Raises NoRows where it does not."""
    device = next((t.device for _, t in tensors_of(cache)), torch.device("cpu"))
    more = _made([cache], lambda _, tensors: tensors[0])
    try:
        more.reorder_cache(torch.tensor([*range(rows), 0], device=device))
    except (AttributeError, NotImplementedError) as error:
        raise NoRows(f"{type(cache).__name__} cannot be reordered: {error}") from None
    after = dict(tensors_of(more))
    return {path: _dim(path, tensor, after.get(path), rows, rows + 1) for path, tensor in tensors_of(cache)}


def _dim(path: Path, before: torch.Tensor, after: torch.Tensor | None, rows: int, count: int) -> int | None:
    if before.ndim == 0 or before.shape == (0,):
        return None
    grown = [d for d, n in enumerate(before.shape) if n == rows and after is not None and after.shape[d] == count]
    if after is None or after.ndim != before.ndim or len(grown) != 1:
        raise NoRows(f"{_words(path)} does not follow its rows")
    return grown[0]


def tensors_of(cache: Any) -> list[tuple[Path, torch.Tensor]]:
    """All tensors of a cache with their places."""
    found: list[tuple[Path, torch.Tensor]] = []

    def seen(path: Path, tensors: list[torch.Tensor]) -> torch.Tensor:
        found.append((path, tensors[0]))
        return tensors[0]

    _made([cache], seen)
    return found


def nbytes(cache: Any) -> int:
    """Bytes that a cache holds."""
    return sum(tensor.nbytes for _, tensor in tensors_of(cache))


def _made(
    things: list[Any],
    tensor: Callable[[Path, list[torch.Tensor]], torch.Tensor],
    path: Path = (),
    known: dict[int, Any] | None = None,
) -> Any:
    """A cache made of caches of one structure, each tensor by `tensor`; what stands in several places stays one."""
    first, known = things[0], {} if known is None else known
    if id(first) in known:
        return known[id(first)]
    if isinstance(first, torch.Tensor):
        made: Any = tensor(path, things)
    elif isinstance(first, dict):
        made = copy.copy(first)
        for name in first:
            made[name] = _made([_of(t, name, path) for t in things], tensor, (*path, name), known)
    elif isinstance(first, (list, tuple)):
        if any(len(t) != len(first) for t in things):
            raise NoRows(f"{_words(path)} is of several lengths")
        each = [_made(list(parts), tensor, (*path, n), known) for n, parts in enumerate(zip(*things, strict=True))]
        made = type(first)(each)
    elif hasattr(first, "__dict__") and not isinstance(first, ATOMS):
        made = copy.copy(first)
        vars(made).update(_made([vars(t) for t in things], tensor, path, known))
    else:
        if isinstance(first, (int, float, str)) and any(t != first for t in things):
            raise NoRows(f"{_words(path)} differs")
        return first
    known[id(first)] = made
    return made


def _of(thing: Any, name: Any, path: Path) -> Any:
    if name not in thing:
        raise NoRows(f"{_words((*path, name))} is not in all of them")
    return thing[name]


def _words(path: Path) -> str:
    return ".".join(str(part) for part in path) or "a cache"
