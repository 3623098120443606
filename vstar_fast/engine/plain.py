"""Answers and label scores of text stacks that packed tokens have no form for: their own forward, their own cache.

A prompt goes through once as one row, its cache is repeated for its answers, and prompts of equal length are drawn
together, so that no row is padded: that is exact for layers of any kind. Lanes, seeds and settings are the packed
engine's, so an answer is the same one. Slower: every answer reads its own copy of the prompt's keys and values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vstar_fast import backends
from vstar_fast.engine.batch import Batch, Flight, Group, Row
from vstar_fast.engine.drawing import joined
from vstar_fast.engine.lanes import Lane
from vstar_fast.engine.plain_caches import NoRows
from vstar_fast.engine.plain_prompts import PlainPrompts, PlainStack, ids_of
from vstar_fast.engine.request import Answer
from vstar_fast.engine.scheduler import Scheduler, prompt_tokens


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

    stack: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.units: list[Unit] = []
        self.parked: dict[Any, Lane] = {}
        """Rows that are fed what their grammar left no choice about: a token a step, and none is drawn."""

    def clear(self) -> None:
        """Forget all rows."""
        super().clear()
        self.units, self.parked = [], {}

    def join(self, groups: Sequence[Group]) -> None:
        """Draw the first token of new rows; those that go on get a cache."""
        lanes, golds = self._first(groups)
        self.groups += groups
        self._among(lanes, golds)
        _move(self.lanes, self.parked, lambda row: len(row.pending) > 1)
        alive: list[tuple[Any, list[Row]]] = [(g.prefix, [r for r in g.rows if not r.answer.finish]) for g in groups]
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
        """Feed every row's next token, and draw the one behind it where none is left to feed."""
        rows = [row for unit in self.units for row in unit.rows]
        hidden = torch.cat([self._fed(unit) for unit in self.units])
        for row in rows:
            row.pending, row.position = row.pending[1:], row.position + 1
        self.counts.steps += len(self.units)
        backends.ran("decode", "plain", len(self.units))
        _move(self.parked, self.lanes, lambda row: not row.pending)
        ready = [i for i, row in enumerate(rows) if not row.pending]
        if ready:
            seen = hidden if len(ready) == len(rows) else hidden[torch.tensor(ready, device=hidden.device)]
            self._draw([rows[i] for i in ready], self.stack.lm.logits(seen), self.lanes, self.golds)
            _move(self.lanes, self.parked, lambda row: len(row.pending) > 1)

    def _fed(self, unit: Unit) -> torch.Tensor:
        """Hidden states [rows, H] behind each row's last token."""
        if unit.cache is None:
            return torch.cat([self._read(row) for row in unit.rows])
        ids = torch.tensor([row.pending[:1] for row in unit.rows])
        hidden: torch.Tensor = self.stack.behind(unit.cache, ids, [row.position for row in unit.rows], unit.width)
        return hidden[:, -1]

    def _read(self, row: Row) -> torch.Tensor:
        request = row.flight.request
        fed = len(row.answer.token_ids) - len(row.pending) + 1
        asked = ids_of(request)
        ids = torch.cat([asked, torch.tensor(row.answer.token_ids[:fed], device=asked.device)])
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


def _move(lanes: dict[Any, Lane], others: dict[Any, Lane], wanted: Callable[[Row], bool]) -> None:
    """Move the wanted rows of lanes to the others of the same settings and grammar."""
    for key, lane in list(lanes.items()):
        moved = [i for i, row in enumerate(lane.rows) if wanted(row)]
        if not moved:
            continue
        others[key] = joined(others.get(key), lane.take(moved))
        left = sorted({*range(len(lane.rows))} - {*moved})
        if left:
            lane.keep(left)
        else:
            del lanes[key]


class PlainScheduler(Scheduler):
    """`Scheduler` without packed tokens; the same face, the same answers. What is forced takes steps, but no draws."""

    def _begin(self, _: int | None, skip_forced: bool) -> None:
        self.stack = PlainStack(self.lm)
        self._prompts = PlainPrompts(self.stack)
        self._batch = PlainBatch(self.stack, self.lm.eos_ids, self.counts, skip_forced=skip_forced)
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
        need = self.stack.row_bytes(prompt_tokens(flight) + longest)
        return min(self.max_rows, max(1, int(self.memory_bytes / need)) if need else self.max_rows)

    def _need(self, _: Flight, __: list[Answer] | None = None) -> int:
        """Nothing is reserved: what fits is picked when nothing is in flight."""
        return 0
