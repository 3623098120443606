"""Rows that are drawn together: one setting and one grammar, each row at its own step of its own random stream."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vstar_fast.engine.request import Settings
from vstar_fast.errors import ConfigError
from vstar_fast.kernels.constrain import DecodeState
from vstar_fast.kernels.sample import sample
from vstar_fast.kernels.sample.streams import seeds_at

if TYPE_CHECKING:
    from vstar_fast.kernels.constrain import Grammar

MOST_FORCED = 32
"""Forced tokens taken at once."""


class Tracked:
    """Rows under one grammar; `rows` are the caller's, in the order of the state."""

    def __init__(self, grammar: Grammar, rows: Sequence[Any], budget: int | None, device: torch.device) -> None:
        self.rows = list(rows)
        self.state = DecodeState(grammar, len(self.rows), device, max_new_tokens=budget)

    def keep(self, index: Sequence[int]) -> None:
        """Only these rows go on."""
        self.rows = [self.rows[i] for i in index]
        self.state = self.state.take(torch.tensor(index, dtype=torch.int64, device=self.state.device))

    def join(self, other: Tracked) -> None:
        """The rows of another one of the same grammar come behind."""
        self.rows += other.rows
        self.state = self.state.join(other.state)

    def advance(self, index: Sequence[int], tokens: torch.Tensor) -> None:
        """Rows `index` move by one token each; tokens [len(index)] int64."""
        if len(index) == len(self.rows):
            self.state.advance_(tokens, strict=False)
            return
        at = torch.tensor(index, dtype=torch.int64, device=self.state.device)
        part = self.state.take(at)
        part.advance_(tokens, strict=False)
        for name in ("state", "remaining", "step"):
            getattr(self.state, name).index_copy_(0, at, getattr(part, name))


class Lane:
    """Rows of one `Settings` and one grammar (None: any answer)."""

    def __init__(self, settings: Settings, grammar: Grammar | None, rows: Sequence[Any], device: torch.device) -> None:
        self.settings, self.grammar = settings, grammar
        self.free = list(rows) if grammar is None else []
        self.seeds = torch.tensor([row.answer.seed for row in rows], dtype=torch.int64, device=device)
        self.tracked = None if grammar is None else Tracked(grammar, rows, _budget(settings, grammar), device)

    @property
    def rows(self) -> list[Any]:
        """The rows, in the order of the logits that `draw` takes."""
        return self.free if self.tracked is None else self.tracked.rows

    def draw(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Next token [B] int64 of each row from logits [B, V], and its log-probability [B]."""
        s = self.settings
        if self.tracked is not None:
            return self.tracked.state.sample_(logits, self.seeds, s.temperature, s.top_p, s.top_k)
        steps = torch.tensor([len(row.answer.token_ids) for row in self.free], device=self.seeds.device)
        return sample(logits, seeds_at(self.seeds, steps), 0, s.temperature, s.top_p, s.top_k)

    def forced(self) -> list[list[int]]:
        """Tokens that must follow in each row; the rows have moved by them."""
        if self.tracked is None:
            return [[]] * len(self.free)
        tokens, lengths = self.tracked.state.forced(MOST_FORCED)
        counts = lengths.tolist()
        return [row[:n] for row, n in zip(tokens.tolist(), counts, strict=True)] if any(counts) else [[]] * len(counts)

    def keep(self, index: Sequence[int]) -> None:
        """Only these rows go on."""
        self.seeds = self.seeds[torch.tensor(index, dtype=torch.int64, device=self.seeds.device)]
        if self.tracked is None:
            self.free = [self.free[i] for i in index]
        else:
            self.tracked.keep(index)

    def take(self, index: Sequence[int]) -> Lane:
        """These rows once more, in a lane of their own."""
        part = copy.copy(self)
        part.tracked = None if self.tracked is None else copy.copy(self.tracked)
        part.keep(index)
        return part

    def join(self, other: Lane) -> None:
        """The rows of another lane of the same settings and grammar come behind."""
        self.seeds = torch.cat([self.seeds, other.seeds])
        self.free = self.free + other.free
        if self.tracked is not None and other.tracked is not None:
            self.tracked.join(other.tracked)


def _budget(settings: Settings, grammar: Grammar) -> int:
    """Tokens an answer may take; one is kept for the end of the turn."""
    if settings.max_new_tokens < grammar.shortest + 1:
        raise ConfigError(
            f"max_new_tokens is {settings.max_new_tokens}, but the shortest answer of a label takes "
            f"{grammar.shortest + 1} tokens; raise it, or draw without a template (generate.constrain = false)"
        )
    return settings.max_new_tokens - 1
