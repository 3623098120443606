"""What the rows of a call state, as columns of one integer table and of floats."""

from __future__ import annotations

import dataclasses
from typing import Self

import torch
from vstar_fast.kernels.label_match.result import bad_token

STATUSES = (
    "ok",
    "no_slot",
    "no_value",
    "wrong_unit",
    "ambiguous",
    "off_tolerance",
    "wrong_order",
    "low_iou",
    "wrong_value",
    "wrong_length",
)
"""What `status` counts: fits, the literal is absent, nothing to read, another dimension, "3 or 4", too far off, an
interval that ends before it starts or the right items in the wrong order, too little overlap, as many items but
others, more or fewer items."""

ROW_INTS = 11
"""Columns of a result row: status (0), spans in bytes (1-2), tokens (6-7) and characters (8-9), denied (3), byte where
reading began (4), best own interval or number of items (5), position of an id outside the vocabulary (10)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stated:
    """What B rows state; spans are [begin, end), (-1, -1) for none, from the first of several values to the last."""

    table: torch.Tensor
    """[B, ROW_INTS] int32: all columns, as the backend wrote them."""
    score: torch.Tensor
    """[B] float64: IoU with the best own interval, or share of a sequence in order; 0 for numbers."""
    backend: str

    @property
    def matched(self) -> torch.Tensor:
        """[B] bool: the value fits the row's own."""
        return self.table[:, 0] == 0

    @property
    def status(self) -> torch.Tensor:
        """[B] int32: index of STATUSES."""
        return self.table[:, 0]

    @property
    def span(self) -> torch.Tensor:
        """[B, 2] int32: bytes of the value in the row."""
        return self.table[:, 1:3]

    @property
    def span_tokens(self) -> torch.Tensor:
        """[B, 2] int32: from the token with its first byte to behind that with its last; (-1, -1) for rows of text."""
        return self.table[:, 6:8]

    @property
    def span_chars(self) -> torch.Tensor:
        """[B, 2] int32: characters of the value; a byte that is not valid UTF-8 counts as one."""
        return self.table[:, 8:10]

    @property
    def negated(self) -> torch.Tensor:
        """[B] bool: the value is denied ("not 3")."""
        return self.table[:, 3] != 0

    @property
    def searched_from(self) -> torch.Tensor:
        """[B] int32: byte where reading began, -1 without a slot."""
        return self.table[:, 4]

    def reasons(self) -> list[str]:
        """The status of each row as a word."""
        return [STATUSES[x] for x in self.status.tolist()]

    def check(self) -> Self:
        """Raise DataError when a row has an id outside the vocabulary, else return self.

        On the CPU the call has done so. On a GPU it would make the host wait, so there such rows state nothing
        and this tells.
        """
        rows = (self.table[:, 10] >= 0).nonzero()
        if rows.numel():
            bad_token(int(rows[0]), int(self.table[rows[0], 10]))
        return self


@dataclasses.dataclass(frozen=True, slots=True)
class ValueMatch(Stated):
    """The number or the interval of each row."""

    values: torch.Tensor
    """[B, 2] float64: the number in the row's unit and its error, or begin and end in seconds; NaN where none."""

    @property
    def best(self) -> torch.Tensor:
        """[B] int32: which of the row's own intervals overlaps most, -1 when none does."""
        return self.table[:, 5]


ITEM_INTS = 7
"""Columns of an item: label (0), spans in bytes (1-2), tokens (3-4) and characters (5-6)."""


@dataclasses.dataclass(frozen=True, slots=True)
class SequenceMatch(Stated):
    """The labels that each row names, in their order; where a row has more than M of them, its first M."""

    items: torch.Tensor
    """[B, M, ITEM_INTS] int32, -1 behind the last item; M is the length of the longest own sequence of the call."""

    @property
    def count(self) -> torch.Tensor:
        """[B] int32: labels that the row names, which may be more than M."""
        return self.table[:, 5]

    @property
    def item_labels(self) -> torch.Tensor:
        """[B, M] int32: label ids."""
        return self.items[:, :, 0]

    @property
    def item_spans(self) -> torch.Tensor:
        """[B, M, 2] int32: bytes of each item."""
        return self.items[:, :, 1:3]

    @property
    def item_tokens(self) -> torch.Tensor:
        """[B, M, 2] int32: tokens of each item; (-1, -1) for rows of text."""
        return self.items[:, :, 3:5]

    @property
    def item_chars(self) -> torch.Tensor:
        """[B, M, 2] int32: characters of each item."""
        return self.items[:, :, 5:7]
