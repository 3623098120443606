"""The answers in flight: rows behind their prompts, one step of the model for all of them, who leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vstar_fast.engine import plan as plans
from vstar_fast.engine.drawing import Drawing
from vstar_fast.engine.lanes import Lane, Tracked
from vstar_fast.engine.plan import Level, Plan, Span
from vstar_fast.engine.prompts import Prefix
from vstar_fast.engine.request import Answer, Counts, Request
from vstar_fast.engine.stack import Stack, copy
from vstar_fast.engine.store import PAGE, Node
from vstar_fast.models.recurrent import Held


@dataclass(slots=True, eq=False)
class Flight:
    """A request on its way: its answers, those not begun yet, and how many are being drawn."""

    request: Request
    answers: list[Answer]
    todo: list[Answer]
    open: int = 0

    @property
    def done(self) -> bool:
        """All answers are there."""
        return not self.todo and not self.open

    def restart(self) -> None:
        """Answers that were not finished begin anew."""
        self.todo = [a for a in self.answers if a in self.todo or a.finish == ""]
        for answer in self.todo:
            answer.token_ids, answer.logprob, answer.finish = [], 0.0, ""
        self.open = 0


@dataclass(slots=True, eq=False)
class Row:
    """One answer being drawn: behind `before` tokens `stored` ones, in `pages`; `pending` ones are fed next."""

    flight: Flight
    answer: Answer
    position: int
    before: int
    pages: list[Node] = field(default_factory=list)
    stored: int = 0
    pending: list[int] = field(default_factory=list)
    state: Held | None = None
    """Behind its stored tokens, of layers that keep one."""
    index: int = 0
    """Its place among the logits of the step."""


@dataclass(slots=True, eq=False)
class Group:
    """The rows behind one prefix."""

    flight: Flight
    prefix: Prefix
    rows: list[Row]
    reserved: int
    """Bytes it may come to hold."""


class Batch(Drawing):
    """All groups in flight, and the lanes that their tokens are drawn in."""

    def __init__(
        self, stack: Stack, eos_ids: Sequence[int], counts: Counts, plain_below: int = 0, skip_forced: bool = True
    ) -> None:
        super().__init__(eos_ids, counts, skip_forced)
        self.stack, self.plain_below = stack, plain_below
        self.groups: list[Group] = []

    def __len__(self) -> int:
        return sum(len(g.rows) for g in self.groups)

    def clear(self) -> None:
        """Forget all rows; the store is emptied by the caller."""
        super().clear()
        self.groups = []

    def join(self, groups: Sequence[Group]) -> None:
        """Draw the first token of new rows from their prompts' last hidden states; those that go on take part."""
        lanes, golds = self._first(groups)
        for group in groups:
            for row in group.rows:
                row.state = group.prefix.own.state
            group.prefix.own.state = None
            if group.prefix.length <= self.plain_below:
                self._copy_prefix(group)
        self.groups += groups
        self._among(lanes, golds)

    def _first(self, groups: Sequence[Group]) -> tuple[dict[Any, Lane], dict[int, Tracked]]:
        """The lanes of new rows, their first tokens drawn."""
        rows = [row for g in groups for row in g.rows]
        forks = [i for i, g in enumerate(groups) for _ in g.rows]
        hidden = torch.stack([g.prefix.hidden for g in groups])
        logits = self.stack.lm.logits(hidden)
        index = torch.tensor(forks, device=logits.device)
        device = self.stack.lm.device
        lanes, golds = self._new_lanes(rows, device), self._new_golds(rows, device)
        self._draw(rows, logits if len(forks) == len(groups) else logits[index], lanes, golds)
        return lanes, golds

    def _copy_prefix(self, group: Group) -> None:
        """Put the prefix in front of each row's own tokens: a short one is not worth a part of its own."""
        nodes, count = group.prefix.nodes, group.prefix.length
        for row in group.rows:
            row.pages = [self.stack.store.take(PAGE) for _ in range(-(-count // PAGE))]
            row.before, row.stored, at = 0, count, 0
            for node in nodes:
                for span in plans.new_spans(row.pages, 0, node.length, at):
                    copy(node, span)
                at += node.length
        group.prefix.nodes = []

    def step(self) -> None:
        """Feed every row's pending tokens and draw its next one."""
        rows = [row for g in self.groups for row in g.rows]
        plan, last = self._plan(rows)
        ids = torch.tensor([t for row in rows for t in row.pending])
        places = [row.position + i for row in rows for i in range(len(row.pending))]
        width = max(g.prefix.rows for g in self.groups)
        lm = self.stack.lm
        positions = torch.tensor(places, device=lm.device).expand(width, len(places))
        plan.waves, after = self.stack.waves([(len(row.pending), row.state) for row in rows], moving=True)
        ids = ids.to(lm.device)
        hidden = self.stack.call(lm.embed_tokens(ids)[None], positions, plan, lm.text_extras(ids))
        logits = lm.logits(hidden if last is None else hidden[last])
        for i, (row, state) in enumerate(zip(rows, after, strict=True)):
            row.state = state
            row.stored += len(row.pending)
            row.position += len(row.pending)
            row.pending, row.index = [], i
        self.counts.steps += 1
        self._draw(rows, logits, self.lanes, self.golds)

    def _plan(self, rows: Sequence[Row]) -> tuple[Plan, torch.Tensor | None]:
        """(where this step's tokens go and what they see, each row's last token, None when every row has one)."""
        new: list[Span] = []
        columns: dict[int, list[Span]] = {}
        first, places = [0], []
        for row in rows:
            count = len(row.pending)
            while len(row.pages) * PAGE < row.stored + count:
                row.pages.append(self.stack.store.take(PAGE))
            new += plans.new_spans(row.pages, first[-1], count, row.stored)
            for n, span in enumerate(plans.page_spans(row.pages, first[-1], count, row.stored, row.before)):
                columns.setdefault(n, []).append(span)
            first.append(first[-1] + count)
            places.append((row.before + row.stored, count))
        levels = [Level("whole", spans) for spans in self.prefix_spans(first)]
        levels += (Level("last", spans) for spans in columns.values())
        last = None if first[-1] == len(rows) else torch.tensor(first[1:], device=self.stack.lm.device) - 1
        return self.stack.plan(new, levels, places), last

    def prefix_spans(self, first: Sequence[int]) -> list[list[Span]]:
        """Per depth, what each group sees before its own tokens."""
        levels: list[list[Span]] = []
        begin = 0
        for group in self.groups:
            end, offset = begin + len(group.rows), 0
            for depth, node in enumerate(group.prefix.nodes):
                if depth == len(levels):
                    levels.append([])
                before = levels[depth][-1] if levels[depth] else None
                if before is not None and before.node is node and before.end == first[begin]:
                    levels[depth][-1] = before._replace(end=first[end])
                else:
                    levels[depth].append(Span(node, first[begin], first[end], 0, node.length, offset))
                offset += node.length
            begin = end
        return levels

    def leave(self) -> list[Group]:
        """Take finished rows out and free their pages; the groups that have none left."""
        for group in self.groups:
            ended = [row for row in group.rows if row.answer.finish]
            for row in ended:
                for page in row.pages:
                    self.stack.store.give_back(page)
                self.counts.answers += 1
                self.counts.tokens += len(row.answer.token_ids)
                group.flight.open -= 1
            if ended:
                group.rows = [row for row in group.rows if not row.answer.finish]
        empty = [g for g in self.groups if not g.rows]
        self.groups = [g for g in self.groups if g.rows]
        return empty
