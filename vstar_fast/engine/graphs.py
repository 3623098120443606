"""Decoding in bursts of recorded steps: sizes in buckets, one recording a shape, results read once a burst.

`Graphs(batch, recorder).step()` stands in for `batch.step()`. The recorder is `CudaGraphs` on a GPU; `Again` calls the
step itself, which is what a recording replays.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vstar_fast import backends
from vstar_fast.engine.batch import Batch, Row
from vstar_fast.engine.burst import IDLE, MOST_STEPS, Filling, Shape, Step
from vstar_fast.engine.burst_states import Buffers
from vstar_fast.engine.drawing import keep_open
from vstar_fast.engine.plan import Span
from vstar_fast.engine.recorders import Again, CudaGraphs, Recorder
from vstar_fast.engine.store import PAGE, Arena, Node, Store
from vstar_fast.errors import ModelError
from vstar_fast.kernels.capture import first
from vstar_fast.kernels.launch import on

if TYPE_CHECKING:
    from vstar_fast.engine.lanes import Lane, Tracked

VARIABLE = "VSTAR_CUDA_GRAPHS"
"""0: on a GPU every step is made anew."""
MOST_RECORDED = 32
"""Recordings kept; the oldest goes first."""


def bucket(n: int) -> int:
    """The size of a buffer for n: powers of two up to 8, then two sizes a doubling, less than half too large."""
    if n <= 8:
        return 1 << max(0, n - 1).bit_length()
    step = 1 << ((n - 1).bit_length() - 2)
    return -(-n // step) * step


def made_for(batch: Batch) -> Graphs | None:
    """Graphs where they pay and work: on a GPU, over the Triton kernel, unless VSTAR_CUDA_GRAPHS is 0."""
    device = batch.stack.lm.device
    if device.type != "cuda" or os.environ.get(VARIABLE) == "0":
        return None
    if backends.choose("prefix_attention", device).name != "triton":
        return None
    return Graphs(batch, CudaGraphs(device))


class Graphs:
    """The recordings of one batch."""

    def __init__(self, batch: Batch, recorder: Recorder) -> None:
        self.batch, self.recorder = batch, recorder
        self.recorded: dict[Any, tuple[Step, Callable[[], None], Any]] = {}
        self.states: Buffers | None = None
        """Of the rows, where layers have one."""

    def clear(self) -> None:
        """Forget all recordings: their memory is going."""
        self.recorded.clear()
        self.states = None

    def step(self) -> None:
        """A burst; where a row has several tokens to feed, one step made anew."""
        rows = [row for g in self.batch.groups for row in g.rows]
        if any(len(row.pending) != 1 for row in rows):
            self.batch.step()
            return
        with on(self.batch.stack.lm.device):
            self._burst(rows)

    def _outgrown(self, rows: Sequence[Row], steps: int) -> tuple[int, ...]:
        """Windows of layers that a row may come to be longer than within so many steps."""
        longest = max(row.before + row.stored + min(steps, _left(row)) for row in rows)
        return tuple(n for n in self.batch.stack.windows if n < longest)

    def _burst(self, rows: Sequence[Row]) -> None:
        steps = min(MOST_STEPS, max(map(_left, rows)))
        scratch = self._room(rows, steps)
        lanes = [lane for lane in self.batch.lanes.values() if lane.rows]
        golds = list(self.batch.golds.values())
        step, replay = self._recording(rows, scratch, lanes, golds, self._outgrown(rows, steps))
        for _ in range(steps):
            replay()
        backends.ran("decode", self.recorder.name, steps)
        tokens, logprobs, lost = step.results(steps)
        step.give_back(lanes, golds)
        self.batch.stack.store.give_back(scratch)
        self.batch.counts.steps += steps
        self._book(rows, tokens, logprobs, lost)

    def _room(self, rows: Sequence[Row], steps: int) -> Node:
        """Pages for all tokens of a burst, all in one arena; one more, which rows that are nobody write to."""
        store = self.batch.stack.store
        need = [-(-(row.stored + min(steps, _left(row))) // PAGE) - len(row.pages) for row in rows]
        for row, more in zip(rows, need, strict=True):
            row.pages += [store.take(PAGE) for _ in range(more)]
        scratch = store.take(PAGE)
        all_told = sum(-(-(row.stored + _left(row)) // PAGE) for row in rows) + 1
        together(store, [*(page for row in rows for page in row.pages), scratch], all_told)
        return scratch

    def _recording(
        self, rows: Sequence[Row], scratch: Node, lanes: Sequence[Lane], golds: Sequence[Tracked],
        windows: tuple[int, ...],
    ) -> tuple[Step, Callable[[], None]]:  # fmt: skip
        """The step whose buffers fit, loaded, and its replay."""
        slabs = _slabs(self.batch, [0, *range(1, len(rows) + 1)])
        filling = _filling(rows, scratch, slabs, lanes, golds)
        width = max(g.prefix.rows for g in self.batch.groups)
        shape = _shape(filling)._replace(windows=windows)
        self._load_states(rows, shape.rows)
        arenas = [arena for arena, _ in slabs]
        kinds = [(lane.settings, id(lane.grammar)) for lane in lanes]
        key = (shape, width, id(scratch.arena), *map(id, arenas), *kinds, *(id(g.state.grammars[0]) for g in golds))
        if key not in self.recorded:
            step = Step(self.batch.stack, shape, scratch.arena, arenas, sorted(self.batch.eos), width, lanes, golds)
            step.plan.waves = None if self.states is None else self.states.waves(shape.rows)
            step.load(filling, lanes, golds)
            held = (scratch.arena, arenas, [lane.grammar for lane in lanes], [g.state.grammars[:1] for g in golds])
            with self.states.as_they_are(len(rows)) if self.states else contextlib.nullcontext():
                self.recorded[key] = step, self._record(step), held
            if len(self.recorded) > MOST_RECORDED:
                del self.recorded[next(iter(self.recorded))]
        step, replay, _ = self.recorded[key]
        step.load(filling, lanes, golds)
        return step, replay

    def _load_states(self, rows: Sequence[Row], room: int) -> None:
        """Have the rows' states, if they have any, where recordings look for them."""
        state = rows[0].state
        if state is None:
            return
        if self.states is None or self.states.states.rows < room:
            self.recorded.clear()
            self.states = Buffers(state, room)
        self.states.load(rows)

    def _record(self, step: Step) -> Callable[[], None]:
        try:
            return self.recorder.record(step)
        except RuntimeError as error:
            cause, name = first(error), type(self.batch.stack.text_model).__name__
            if isinstance(cause, torch.OutOfMemoryError):
                raise
            logging.getLogger(__name__).warning("%s cannot be recorded, steps are made anew: %s", name, cause)
            self.recorder = Again()
            return self.recorder.record(step)

    def _book(self, rows: Sequence[Row], tokens: Any, logprobs: Any, lost: Any) -> None:
        """What the burst drew, row by row up to its end."""
        stopped = set()
        for i, row in enumerate(rows):
            for drawn, each, gone in zip(tokens, logprobs, lost, strict=True):
                if row.answer.finish or drawn[i] == IDLE:
                    break
                if drawn[i] < 0:
                    raise ModelError("logits are NaN, +inf or all -inf; check the model's weights, dtype and inputs")
                _take(row, drawn[i], each[i], self.batch.eos)
                if gone[i] and not row.answer.finish:
                    row.answer.finish = "stopped_early"
                    stopped.add(id(row))
        if stopped:
            self.batch.count_saved(stopped, self.batch.lanes)
        keep_open(self.batch.lanes)
        keep_open(self.batch.golds)


def _take(row: Row, token: int, logprob: float, eos: frozenset[int]) -> None:
    answer = row.answer
    answer.token_ids.append(token)
    answer.logprob += logprob
    row.stored, row.position, row.pending = row.stored + 1, row.position + 1, [token]
    if token in eos:
        answer.finish = "stop"
    elif len(answer.token_ids) >= row.flight.request.settings_of(row.answer.sample).max_new_tokens:
        answer.finish = "length"


def _left(row: Row) -> int:
    """Tokens that a row may still take."""
    return row.flight.request.settings_of(row.answer.sample).max_new_tokens - len(row.answer.token_ids)


def together(store: Store, pages: Sequence[Node], wanted: int) -> None:
    """Move pages into one arena, if they are not: its keys have one address then.

    `wanted`: pages that these rows may come to have; there is room for a quarter more.
    """
    if len({id(page.arena) for page in pages}) == 1:
        return
    arena = Arena(store.shape, PAGE, max(wanted, len(pages)) * 5 // 4 + 1)
    for slot, page in enumerate(pages):
        for mine, theirs in zip(arena.tensors, page.arena.tensors, strict=True):
            mine[:, slot] = theirs[:, page.slot]
        store.give_back(Node(page.arena, page.slot))
        page.arena, page.slot = arena, slot
    arena.free = list(range(len(pages), arena.slots))
    store.arenas[PAGE].insert(0, arena)


def _slabs(batch: Batch, first: Sequence[int]) -> list[tuple[Arena, list[Span]]]:
    """What groups see before their own tokens, by depth and arena."""
    found: list[tuple[Arena, list[Span]]] = []
    for spans in batch.prefix_spans(first):
        by_arena: dict[int, list[Span]] = {}
        for span in spans:
            if span.end > span.first and span.stop > span.start:
                by_arena.setdefault(id(span.node.arena), []).append(span)
        found += [(held[0].node.arena, held) for held in by_arena.values()]
    return found


def _filling(
    rows: Sequence[Row], scratch: Node, slabs: Sequence[tuple[Arena, list[Span]]], lanes: Sequence[Lane],
    golds: Sequence[Tracked],
) -> Filling:  # fmt: skip
    place = {id(row): i for i, row in enumerate(rows)}
    return Filling(
        [row.pending[0] for row in rows],
        [row.position for row in rows],
        [row.before for row in rows],
        [row.stored for row in rows],
        [_left(row) for row in rows],
        [[page.slot for page in row.pages] for row in rows],
        scratch.slot,
        [_groups(held) for _, held in slabs],
        [[place[id(row)] for row in lane.rows] for lane in lanes],
        [[place[id(row)] for row in gold.rows] for gold in golds],
    )


def _groups(spans: Sequence[Span]) -> tuple[list[list[int]], list[int], list[int], list[int]]:
    """Tokens, slots, lengths and offsets."""
    found = [(list(range(s.first, s.end)), s.node.slot, s.stop, s.offset) for s in spans]
    tokens, slots, lengths, offsets = (list(each) for each in zip(*found, strict=True))
    return tokens, slots, lengths, offsets


def _shape(f: Filling) -> Shape:
    """Buffers that fit, in buckets; one row more than there are, which is nobody's."""
    return Shape(
        bucket(len(f.ids) + 1),
        bucket(max(map(len, f.table))),
        tuple((bucket(len(slots)), bucket(max(map(len, tokens)))) for tokens, slots, _, _ in f.slabs),
        tuple(bucket(len(index)) for index in f.lane_rows),
        tuple(bucket(len(index)) for index in f.gold_rows),
    )
