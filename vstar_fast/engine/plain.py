"""Answers and label scores of text stacks that packed tokens have no form for: their own forward, their own cache.

A prompt goes through once as one row, its cache is repeated for its answers, and prompts of equal length are drawn
together, so that no row is padded: that is exact for layers of any kind. Lanes, seeds and settings are the packed
engine's, so an answer is the same one. Slower: every answer reads its own copy of the prompt's keys and values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vstar_fast import backends
from vstar_fast.engine.batch import Batch, Flight, Group, Row
from vstar_fast.engine.caches import NoRows
from vstar_fast.engine.plain_prompts import PlainPrompts, PlainStack, ids_of
from vstar_fast.engine.request import Answer
from vstar_fast.engine.scheduler import Scheduler, prompt_tokens

SHORT = -1
"""Prompts of at most so many tokens lie in pages of their answers: none do."""


@dataclass(slots=True, eq=False)
class Unit:
    """Rows that one call of the model takes a step further; row i of them is row i of `cache`.

    `cache` None: the model keeps none, and each row is read from its beginning. `width`: rows of position ids.
    """

    cache: Any
    rows: list[Row]
    width: int


class PlainBatch(Batch):
    """Rows in flight, in the model's own caches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.units: list[Unit] = []

    def clear(self) -> None:
        """Forget all rows."""
        super().clear()
        self.units = []

    def join(self, groups: Sequence[Group]) -> None:
        """Draw the first token of new rows; those that go on get a cache."""
        super().join(groups)
        alive = [(g.prefix, [r for r in g.rows if not r.answer.finish]) for g in groups]
        self.units += self._units([(held, rows) for held, rows in alive if rows])
        for held, _ in alive:
            held.cache = None

    def _units(self, parts: Sequence[tuple[Any, list[Row]]]) -> list[Unit]:
        """Rows behind their prompts: in one cache, else one a prompt, else one a row."""
        if not parts:
            return []
        rows, held = [row for _, each in parts for row in each], parts[0][0]
        if len(rows) == 1:
            return [Unit(held.cache, rows, held.rows)]
        try:
            cache = self.stack.gathered([(h.cache, [0] * len(each)) for h, each in parts], 1)
        except NoRows:
            if len(parts) > 1:
                return [unit for part in parts for unit in self._units([part])]
            again = [self.stack.read(ids_of(rows[0].flight.request), held.features)[0].cache for _ in rows[1:]]
            return [Unit(c, [row], held.rows) for c, row in zip([held.cache, *again], rows, strict=True)]
        return [Unit(cache, rows, held.rows)]

    def step(self) -> None:
        """Feed every row's last token and draw its next one."""
        rows = [row for unit in self.units for row in unit.rows]
        hidden = torch.cat([self._fed(unit) for unit in self.units])
        logits = self.stack.lm.logits(hidden)
        for row in rows:
            row.position += 1
        self.counts.steps += len(self.units)
        backends.ran("decode", "plain", len(self.units))
        self._draw(rows, logits, self.lanes, self.golds)

    def _fed(self, unit: Unit) -> torch.Tensor:
        """Hidden states [rows, H] behind each row's last token."""
        if unit.cache is None:
            return torch.cat([self._read(row) for row in unit.rows])
        ids = torch.tensor([row.pending for row in unit.rows])
        hidden: torch.Tensor = self.stack.behind(unit.cache, ids, [row.position for row in unit.rows], unit.width)
        return hidden[:, -1]

    def _read(self, row: Row) -> torch.Tensor:
        request = row.flight.request
        ids = torch.cat([ids_of(request), torch.tensor(row.answer.token_ids)])
        hidden: torch.Tensor = self.stack.read(ids, request.features)[1]
        return hidden

    def leave(self) -> list[Group]:
        """Take finished rows out, of the caches too; the groups that have none left."""
        empty = super().leave()
        units = []
        for unit in self.units:
            kept = [i for i, row in enumerate(unit.rows) if not row.answer.finish]
            if 0 < len(kept) < len(unit.rows):
                unit.cache = self.stack.gathered([(unit.cache, kept)], len(unit.rows))
            unit.rows = [unit.rows[i] for i in kept]
            units += [unit] if kept else []
        self.units = units
        return empty


class PlainScheduler(Scheduler):
    """`Scheduler` without packed tokens; the same face, the same answers. Nothing that is forced skips its step."""

    def _begin(self, plain_below: int | None, skip_forced: bool) -> None:
        self.stack = PlainStack(self.lm)
        self._prompts = PlainPrompts(self.stack)
        self._batch = PlainBatch(self.stack, self.lm.eos_ids, self.counts, SHORT, skip_forced=False)
        self._graphs = None

    def _picked(self, waiting: deque[Flight]) -> Iterator[int] | None:
        """The arrival of requests of equal length from those waiting, the first and as many more as fit."""
        if len(self._batch) or not waiting:
            return None
        most, length = self._fitting(waiting[0]), prompt_tokens(waiting[0])
        picked: list[tuple[Flight, list[Answer]]] = []
        taken = 0
        for flight in [f for f in waiting if prompt_tokens(f) == length]:
            if picked and taken + len(flight.todo) > most:
                break
            answers, flight.todo = flight.todo[:most], flight.todo[most:]
            picked.append((flight, answers))
            flight.open += len(answers)
            taken += len(answers)
            if not flight.todo:
                waiting.remove(flight)
        self._inbound = [flight for flight, _ in picked]
        return self._arrival(picked, [f.request for f in waiting])

    def _fitting(self, flight: Flight) -> int:
        """Answers to a request that memory holds, as far as is known, each with its own copy of the prompt."""
        request = flight.request
        longest = max(request.settings_of(a.sample).max_new_tokens for a in flight.todo)
        need = (prompt_tokens(flight) + longest) * self.stack.token_bytes
        return min(self.max_rows, max(1, int(self.memory_bytes / need)) if need else self.max_rows)

    def _need(self, flight: Flight, drawn: list[Answer] | None = None) -> int:
        """Nothing is reserved: what fits is picked when nothing is in flight."""
        return 0
