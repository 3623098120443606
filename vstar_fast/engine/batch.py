"""The answers in flight: rows behind their prompts, one step of the model for all of them, who leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vstar_fast.engine import plan as plans
from vstar_fast.engine.lanes import Lane, Tracked, pick
from vstar_fast.engine.plan import Plan, Span
from vstar_fast.engine.prompts import Prefix
from vstar_fast.engine.recurrent import Held
from vstar_fast.engine.request import Answer, Counts, Request, Settings
from vstar_fast.engine.stack import Stack, copy
from vstar_fast.engine.store import PAGE, Node

if TYPE_CHECKING:
    from vstar_fast.kernels.constrain import Grammar


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
    """One answer being drawn. `stored` tokens have keys and values in `pages`; `pending` ones are fed next."""

    flight: Flight
    answer: Answer
    position: int
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


class Batch:
    """All groups in flight, and the lanes that their tokens are drawn in."""

    def __init__(
        self, stack: Stack, eos_ids: Sequence[int], counts: Counts, plain_below: int = 0, skip_forced: bool = True
    ) -> None:
        self.stack = stack
        self.plain_below, self.skip_forced = plain_below, skip_forced
        self.eos = frozenset(eos_ids)
        self.counts = counts
        self.groups: list[Group] = []
        self.lanes: dict[Any, Lane] = {}
        self.golds: dict[int, Tracked] = {}

    def __len__(self) -> int:
        return sum(len(g.rows) for g in self.groups)

    def clear(self) -> None:
        """Forget all rows; the store is emptied by the caller."""
        self.groups, self.lanes, self.golds = [], {}, {}

    # -- joining -------------------------------------------------------------------------------

    def join(self, groups: Sequence[Group]) -> None:
        """Draw the first token of new rows from their prompts' last hidden states; those that go on take part."""
        rows = [row for g in groups for row in g.rows]
        forks = [i for i, g in enumerate(groups) for _ in g.rows]
        hidden = torch.stack([g.prefix.hidden for g in groups])
        logits = self.stack.lm.logits(hidden)
        index = torch.tensor(forks, device=logits.device)
        lanes, golds = self._new_lanes(rows), self._new_golds(rows)
        self._draw(rows, logits if len(forks) == len(groups) else logits[index], lanes, golds)
        for group in groups:
            for row in group.rows:
                row.state = group.prefix.own.state
            group.prefix.own.state = None
            if group.prefix.length <= self.plain_below:
                self._copy_prefix(group)
        self.groups += groups
        for key, lane in lanes.items():
            self.lanes[key] = _joined(self.lanes.get(key), lane)
        for gold, tracked in golds.items():
            self.golds[gold] = _joined(self.golds.get(gold), tracked)

    def _copy_prefix(self, group: Group) -> None:
        """Put the prefix in front of each row's own tokens: a short one is not worth a part of its own."""
        nodes, count = group.prefix.nodes, group.prefix.length
        for row in group.rows:
            row.pages = [self.stack.store.take(PAGE) for _ in range(-(-count // PAGE))]
            row.stored = count
            at = 0
            for node in nodes:
                for span in plans.new_spans(row.pages, 0, node.length, at):
                    copy(node, span)
                at += node.length
        group.prefix.nodes = []

    def _new_lanes(self, rows: Sequence[Row]) -> dict[Any, Lane]:
        held: dict[Any, tuple[Settings, Grammar | None, list[Row]]] = {}
        for row in rows:
            asked, sample = row.flight.request, row.answer.sample
            settings, grammar = asked.settings_of(sample), asked.grammar_of(sample)
            held.setdefault((settings, id(grammar)), (settings, grammar, []))[2].append(row)
        return {key: Lane(*parts, self.stack.lm.device) for key, parts in held.items()}

    def _new_golds(self, rows: Sequence[Row]) -> dict[int, Tracked]:
        by_key: dict[int, tuple[Grammar, list[Row]]] = {}
        for row in rows:
            gold = row.flight.request.gold
            if gold is not None:
                by_key.setdefault(id(gold), (gold, []))[1].append(row)
        device = self.stack.lm.device
        return {key: Tracked(gold, held, None, device) for key, (gold, held) in by_key.items()}

    # -- a step --------------------------------------------------------------------------------

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
        hidden = self.stack.call(lm.embed_tokens(ids.to(lm.device))[None], positions, plan)
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
        device, store = self.stack.lm.device, self.stack.store
        new: list[Span] = []
        columns: dict[int, list[Span]] = {}
        first = [0]
        for row in rows:
            count = len(row.pending)
            while len(row.pages) * PAGE < row.stored + count:
                row.pages.append(store.take(PAGE))
            new += plans.new_spans(row.pages, first[-1], count, row.stored)
            for n, span in enumerate(plans.page_spans(row.pages, first[-1], count, row.stored)):
                columns.setdefault(n, []).append(span)
            first.append(first[-1] + count)
        levels = [plans.level(spans, device, "whole") for spans in self.prefix_spans(first)]
        levels += [plans.level(spans, device, "last") for spans in columns.values()]
        last = None if first[-1] == len(rows) else torch.tensor(first[1:], device=device) - 1
        return Plan(plans.writes(new, first[-1], device), levels), last

    def prefix_spans(self, first: Sequence[int]) -> list[list[Span]]:
        """Per depth, what each group sees before its own tokens."""
        levels: list[list[Span]] = []
        begin = 0
        for group in self.groups:
            end = begin + len(group.rows)
            for depth, node in enumerate(group.prefix.nodes):
                if depth == len(levels):
                    levels.append([])
                before = levels[depth][-1] if levels[depth] else None
                if before is not None and before.node is node and before.end == first[begin]:
                    levels[depth][-1] = before._replace(end=first[end])
                else:
                    levels[depth].append(Span(node, first[begin], first[end], 0, node.length))
            begin = end
        return levels

    # -- drawing -------------------------------------------------------------------------------

    def _draw(
        self, rows: Sequence[Row], logits: torch.Tensor, lanes: dict[Any, Lane], golds: dict[int, Tracked]
    ) -> None:
        """Next tokens of `rows` from logits [len(rows), V]; rows that are done leave lanes, golds and groups."""
        for i, row in enumerate(rows):
            row.index = i
        new: dict[int, list[int]] = {}
        for lane in lanes.values():
            if lane.rows:
                self._draw_lane(lane, logits, new)
        for gold in golds.values():
            self._stop_early(gold, new, lanes)
        keep_open(lanes)
        keep_open(golds)

    def _draw_lane(self, lane: Lane, logits: torch.Tensor, new: dict[int, list[int]]) -> None:
        ids, logprobs = lane.draw(pick(logits, [row.index for row in lane.rows]))
        most = lane.settings.max_new_tokens
        follow = lane.forced() if self.skip_forced else [[]] * len(lane.rows)
        drawn = zip(lane.rows, ids.tolist(), logprobs.tolist(), follow, strict=True)
        for row, token, logprob, forced in drawn:
            answer = row.answer
            answer.logprob += logprob
            taken = [token, *forced]
            end = next((i for i, t in enumerate(taken) if t in self.eos), len(taken) - 1)
            taken = taken[: min(end + 1, most - len(answer.token_ids))]
            answer.token_ids += taken
            self.counts.forced += len(taken) - 1
            if taken[-1] in self.eos:
                answer.finish = "stop"
            elif len(answer.token_ids) >= most:
                answer.finish = "length"
            row.pending = taken
            new[id(row)] = taken

    def _stop_early(self, gold: Tracked, new: dict[int, list[int]], lanes: dict[Any, Lane]) -> None:
        """End the rows that can no longer become a wanted answer."""
        alive = [i for i, row in enumerate(gold.rows) if not row.answer.finish]
        for column in range(max((len(new[id(gold.rows[i])]) for i in alive), default=0)):
            index = [i for i in alive if column < len(new[id(gold.rows[i])])]
            tokens = [new[id(gold.rows[i])][column] for i in index]
            gold.advance(index, torch.tensor(tokens, device=gold.state.device))
        lost = gold.state.lost.tolist()
        stopped = {id(gold.rows[i]) for i in alive if lost[i]}
        if stopped:
            self.count_saved(stopped, lanes)
        for i in alive:
            if lost[i]:
                gold.rows[i].answer.finish = "stopped_early"

    def count_saved(self, stopped: set[int], lanes: dict[Any, Lane]) -> None:
        self.counts.stopped_early += len(stopped)
        for lane in lanes.values():
            if lane.tracked is not None and any(id(row) in stopped for row in lane.rows):
                left = lane.tracked.state.shortest_left.tolist()
                saved = [n for row, n in zip(lane.rows, left, strict=True) if id(row) in stopped]
                self.counts.tokens_saved += sum(saved)

    # -- leaving -------------------------------------------------------------------------------

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


def keep_open(held: dict[Any, Any]) -> None:
    """Only rows whose answer is not finished stay in lanes (or golds)."""
    for key, lane in list(held.items()):
        left = [i for i, row in enumerate(lane.rows) if not row.answer.finish]
        if not left:
            del held[key]
        elif len(left) < len(lane.rows):
            lane.keep(left)


def _joined(before: Any, new: Any) -> Any:
    if before is None:
        return new
    before.join(new)
    return before
