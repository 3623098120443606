"""What each row of a call should state, as tensors on the device of the rows; on a GPU nothing is read back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from vstar_fast.kernels.label_match.labels import LabelSet
from vstar_fast.kernels.label_match.rows import offsets_of, upload
from vstar_fast.kernels.number_words import UNITS

from vstar_fast.errors import DataError

NUMBER, INTERVAL, SEQUENCE = 0, 1, 2

UNIT_NAMES = (*UNITS, "?", "")
"""Units by the index that the compiled functions know them by; -2 is a word that is none, -1 no unit."""

_INDEX = {name: at for at, name in enumerate(UNITS)}


class Own(NamedTuple):
    """The own values of B rows, as the compiled functions take them; what a kind does not use is empty."""

    kind: int
    gold: torch.Tensor
    """[B] float64 numbers, or [2 S] begins and ends."""
    absolute: torch.Tensor
    """[B] float64, or for intervals [1]: the least IoU."""
    relative: torch.Tensor
    units: torch.Tensor
    """[B] int32: index of a unit, -1 for none, -2 for a word that is none."""
    items: torch.Tensor
    """[total] int32 label ids."""
    offsets: torch.Tensor
    """[B + 1] int64: where the spans or items of each row lie."""
    most: int = 0
    """Items of a row that are told, M."""
    labels: LabelSet | None = None

    def to(self, device: torch.device) -> Own:
        """The same on another device."""
        moved: dict[str, Any] = {
            name: x.to(device) for name, x in self._asdict().items() if isinstance(x, torch.Tensor)
        }
        return self._replace(**moved)


def of_numbers(
    gold: Any, absolute: Any, relative: Any, unit: str | Sequence[str], rows: int, device: torch.device
) -> Own:
    """Numbers with tolerances and units, for all rows or each."""
    wanted = doubles(gold, rows, "gold", device)
    absolute, relative = (
        _tolerances(given, rows, what, device)
        for given, what in ((absolute, "abs_tolerance"), (relative, "rel_tolerance"))
    )
    none = torch.empty(0, dtype=torch.int32, device=device)
    return Own(NUMBER, wanted, absolute, relative, _units(unit, rows, device), none, _offsets(0, 0, device))


def doubles(given: Any, rows: int, what: str, device: torch.device) -> torch.Tensor:
    """[B] float64 from one number or B; DataError names `what`."""
    if isinstance(given, (int, float)):
        return torch.full((rows,), float(given), dtype=torch.float64, device=device)
    try:
        held = (
            torch.as_tensor(given).to(torch.float64)
            if _is_tensor(given)
            else torch.tensor(given, dtype=torch.double, device="cpu")
        )
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{what} must be numbers, not {given!r:.80}; NaN is a row that nothing fits") from None
    held = held.expand(rows) if held.dim() == 0 else held
    if held.shape != (rows,):
        raise DataError(f"{what} must be one number, or [{rows}], not {tuple(held.shape)}")
    return upload(held.contiguous(), device)


def _tolerances(given: Any, rows: int, what: str, device: torch.device) -> torch.Tensor:
    """[B] float64, checked where that makes nothing wait: not for a tensor that lies on a GPU."""
    if not _is_tensor(given):
        listed = list(given) if isinstance(given, (list, tuple)) else [given]
        bad = [x for x in listed if isinstance(x, (int, float)) and not x >= 0]
    else:
        bad = given[~(given >= 0)].tolist() if given.device.type == "cpu" else []
    if bad:
        raise DataError(f"{what} is {bad[0]}; give 0 or more, how far off a number may be")
    return doubles(given, rows, what, device)


def _units(unit: str | Sequence[str], rows: int, device: torch.device) -> torch.Tensor:
    if isinstance(unit, str):
        return torch.full((rows,), _unit(unit), dtype=torch.int32, device=device)
    if len(unit) != rows:
        raise DataError(f"unit names {len(unit)} units for {rows} rows; give one, or one a row")
    found = {name: _unit(name) for name in set(unit)}
    return upload(torch.tensor([found[name] for name in unit], dtype=torch.int32, device="cpu"), device)


def _unit(name: str) -> int:
    name = name.strip().lower()
    return _INDEX[name] if name in UNITS else -2 if name else -1


def of_intervals(gold: Any, iou: float, rows: int, device: torch.device) -> Own:
    """Spans in seconds: [B, 2], [B, S, 2], or lists of (begin, end)."""
    flat, offsets = _span_tensor(gold, device) if _is_tensor(gold) else _span_lists(gold)
    found = offsets.numel() - 1
    if found != rows:
        raise DataError(f"gold has spans for {found} rows, but there are {rows} rows")
    bound = torch.full((1,), float(iou), dtype=torch.float64, device=device)
    none = torch.empty(0, dtype=torch.int32, device=device)
    return Own(INTERVAL, upload(flat, device), bound, bound, none, none, upload(offsets, device))


def _span_tensor(gold: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    if gold.dim() not in (2, 3) or gold.shape[-1] != 2 or gold.is_complex():
        raise DataError(f"own intervals are [B, 2] or [B, S, 2] seconds, not {gold.dtype} {tuple(gold.shape)}")
    each = 1 if gold.dim() == 2 else gold.shape[1]
    return gold.to(torch.float64).reshape(-1).contiguous(), _offsets(gold.shape[0], each, device)


def _span_lists(gold: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [span_list(row) for row in gold]
    flat = torch.tensor([x for row in rows for span in row for x in span], dtype=torch.float64, device="cpu")
    return flat, offsets_of(list(map(len, rows)))


def span_list(row: Any) -> list[tuple[float, float]]:
    """The spans of one row, given as one pair or a list of pairs."""
    if not hasattr(row, "__len__"):
        raise DataError(f"own intervals are a list of (begin, end) in seconds a row, not {row!r}")
    items = row.tolist() if _is_tensor(row) else list(row)
    items = [items] if len(items) == 2 and not hasattr(items[0], "__len__") else items
    if any(not hasattr(item, "__len__") or len(item) != 2 for item in items):
        raise DataError(f"an own interval is (begin, end) in seconds, not {row!r}")
    return [(float(begin), float(end)) for begin, end in items]


def of_sequences(gold: Any, labels: LabelSet, rows: int, device: torch.device) -> Own:
    """Label ids in order: [B, M] with -1 for no item, or lists of ids or names."""
    items, offsets, most = _item_tensor(gold, labels) if _is_tensor(gold) else _item_lists(gold, labels)
    found = offsets.numel() - 1
    if found != rows:
        raise DataError(f"gold has sequences for {found} rows, but there are {rows} rows")
    floats, ints = (torch.empty(0, dtype=kind, device=device) for kind in (torch.float64, torch.int32))
    return Own(SEQUENCE, floats, floats, floats, ints, upload(items, device), upload(offsets, device), most, labels)


def item_lists(gold: Sequence[Sequence[int | str]], labels: LabelSet) -> list[list[int]]:
    """Label ids of each row; DataError for one that is none."""
    odd = [row for row in gold if isinstance(row, str) or not hasattr(row, "__len__")]
    if odd:
        raise DataError(f"an own sequence is a list of label ids or names, not {odd[0]!r}")
    rows = [[labels.id(item) if isinstance(item, str) else item for item in row] for row in gold]
    bad = [x for x in set(chain.from_iterable(rows)) if not isinstance(x, int) or not 0 <= x < len(labels)]
    if bad:
        raise DataError(f"gold has label id {bad[0]!r}; ids are integers from 0 to {len(labels) - 1}")
    return rows


def _item_lists(gold: Sequence[Sequence[int | str]], labels: LabelSet) -> tuple[torch.Tensor, torch.Tensor, int]:
    rows = item_lists(gold, labels)
    flat = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int32, device="cpu")
    return flat, offsets_of(list(map(len, rows))), max(map(len, rows), default=0)


def _item_tensor(gold: torch.Tensor, labels: LabelSet) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The items moved together where the tensor lies; ids are checked where that makes nothing wait."""
    if gold.dim() != 2 or gold.dtype not in (torch.int32, torch.int64):
        raise DataError(f"own sequences are [B, M] int32 or int64 label ids, not {gold.dtype} {tuple(gold.shape)}")
    if gold.device.type == "cpu" and gold.numel() and not -1 <= int(gold.min()) <= int(gold.max()) < len(labels):
        raise DataError(f"gold has label ids {int(gold.min())} to {int(gold.max())}; ids are -1 to {len(labels) - 1}")
    there = (gold >= 0).reshape(-1)
    place = torch.where(there, there.cumsum(0) - 1, gold.numel())
    items = torch.full((gold.numel() + 1,), -1, dtype=torch.int32, device=gold.device)
    items.scatter_(0, place, gold.reshape(-1).to(torch.int32))
    ends = (gold >= 0).sum(1).cumsum(0)
    return items, torch.cat([ends.new_zeros(1), ends]), gold.shape[1]


def _offsets(rows: int, each: int, device: torch.device) -> torch.Tensor:
    return torch.arange(rows + 1, dtype=torch.int64, device=device) * each


def _is_tensor(given: Any) -> bool:
    return isinstance(given, torch.Tensor)
