"""Several decode steps on the device alone (multi-step decoding): the host reads nothing until their end.

A `Step` has buffers that keep their addresses: the rows' next tokens and places, the tables of their pages, whom each
group's keys are for, the state of each lane. One call of it feeds a token of every row and draws the next, so that a
CUDA graph may record it once and replay it for any rows that fit the buffers. Rows that are done, and rows there are
none of, go along and count for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vstar_fast.engine.burst_windows import Window
from vstar_fast.engine.plan import Plan, Slab, Write
from vstar_fast.engine.store import PAGE, Arena
from vstar_fast.kernels.constrain import DecodeState
from vstar_fast.kernels.prefix_attention import Groups
from vstar_fast.kernels.sample import sample
from vstar_fast.kernels.sample.streams import seeds_at

if TYPE_CHECKING:
    from vstar_fast.engine.lanes import Lane, Tracked
    from vstar_fast.engine.request import Settings
    from vstar_fast.engine.stack import Stack

MOST_STEPS = 16
"""Steps between two looks at the results; a row that ends early idles for the rest of them."""
IDLE = -2
"""In place of the token of a row that is done; -1 is a draw from logits that were no numbers."""


class Shape(NamedTuple):
    """Sizes of the buffers: rows (the last is nobody's), pages a row, and of each slab groups and members.

    `windows`: those that rows may outgrow.
    """

    rows: int
    pages: int
    slabs: tuple[tuple[int, int], ...]
    lanes: tuple[int, ...]
    golds: tuple[int, ...]
    windows: tuple[int, ...] = ()


class Filling(NamedTuple):
    """What the buffers are to hold, on the host: int64 lists and arrays of the real rows, slabs, lanes and golds."""

    ids: list[int]
    positions: list[int]
    before: list[int]
    stored: list[int]
    left: list[int]
    table: list[list[int]]
    scratch: int
    slabs: list[tuple[list[list[int]], list[int], list[int], list[int]]]
    """tokens, slots, lengths, offsets of each group."""
    lane_rows: list[list[int]]
    gold_rows: list[list[int]]


@dataclass(slots=True)
class LaneBuffers:
    """A lane's rows by index, their seeds, how many tokens each has, and the state of its grammar, if any."""

    settings: Settings
    index: torch.Tensor
    seeds: torch.Tensor
    drawn: torch.Tensor
    state: DecodeState | None

    def draw(self, logits: torch.Tensor, active: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and log-probabilities of all rows of the lane; those not active stay where they are."""
        s, rows = self.settings, logits.index_select(0, self.index)
        going = active.index_select(0, self.index)
        if self.state is None:
            found = sample(rows, seeds_at(self.seeds, self.drawn), 0, s.temperature, s.top_p, s.top_k)
        else:
            kept = [t.clone() for t in parts_of(self.state)]
            found = self.state.sample_(rows, self.seeds, s.temperature, s.top_p, s.top_k)
            for now, before in zip(parts_of(self.state), kept, strict=True):
                now.copy_(torch.where(going, now, before))
        self.drawn += going
        return found


def parts_of(state: DecodeState) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tensors that a grammar's rows move in."""
    return state.state, state.remaining, state.step


class Step:
    """One decode step over buffers of a shape. Call it, or have it recorded; `load` first, `results` at the end."""

    def __init__(
        self, stack: Stack, shape: Shape, pages: Arena, arenas: Sequence[Arena], eos: Sequence[int], position_rows: int,
        lanes: Sequence[Lane], golds: Sequence[Tracked],
    ) -> None:  # fmt: skip
        self.stack, self.shape, self.position_rows = stack, shape, position_rows
        device = stack.lm.device
        rows = shape.rows

        def zeros(*size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.ids, self.positions, self.before, self.stored, self.left = (zeros(rows) for _ in range(5))
        self.active = zeros(rows, dtype=torch.bool)
        self.table = zeros(rows, shape.pages)
        self.eos = torch.tensor(list(eos) or [-1], device=device)
        self.count = zeros(1)
        self.drawn = zeros(MOST_STEPS, rows)
        self.logprobs = zeros(MOST_STEPS, rows, dtype=torch.float32)
        self.lost = zeros(MOST_STEPS, rows, dtype=torch.bool)
        self._page_groups = [self._pages_of(zeros, rows) for _ in range(shape.pages)]
        self._slab_groups = [Groups(zeros(g, m) - 1, zeros(g), zeros(g, 1)) for g, m in shape.slabs]
        self._offsets = [zeros(g) for g, _ in shape.slabs]
        prefixes = [Slab(a, None, 0, a.capacity, g) for a, g in zip(arenas, self._slab_groups, strict=True)]
        own = [Slab(pages, None, 0, PAGE, g) for g in self._page_groups]
        self._write = Write(pages, None, zeros(rows), zeros(rows))
        self._windows = {n: Window(n, prefixes, own) for n in shape.windows}
        self.plan = Plan([self._write], [[slab] for slab in (*prefixes, *own)])
        if shape.windows:
            self.plan.longest, self.plan.cut = 1 << 62, lambda n: self._windows[n].levels
        self.lanes = [
            LaneBuffers(lane.settings, zeros(n), zeros(n), zeros(n), _padded(lane.tracked, n))
            for lane, n in zip(lanes, shape.lanes, strict=True)
        ]
        self.golds = [(zeros(n), _padded(gold, n)) for gold, n in zip(golds, shape.golds, strict=True)]

    @staticmethod
    def _pages_of(zeros: Any, rows: int) -> Groups:
        tokens = torch.arange(rows, device=zeros(1).device)[:, None]
        return Groups(tokens, zeros(rows), zeros(rows, 1))

    def load(self, filling: Filling, lanes: Sequence[Lane], golds: Sequence[Tracked]) -> None:
        """Put rows into the buffers: one copy from pinned memory each, none of which is waited for."""
        f, rows = filling, self.shape.rows
        nobody = rows - 1
        self._fill(self.ids, f.ids, 0)
        self._fill(self.positions, f.positions, 0)
        self._fill(self.before, f.before, 0)
        self._fill(self.stored, f.stored, 0)
        self._fill(self.left, f.left, 0)
        self._fill(self.active, [True] * len(f.ids), False)
        self._fill(self.table, [r + [f.scratch] * (self.shape.pages - len(r)) for r in f.table], f.scratch)
        self.count.zero_()
        given = zip(self._slab_groups, self._offsets, f.slabs, strict=True)
        for groups, offset, (tokens, slots, lengths, offsets) in given:
            width = groups.tokens.shape[1]
            self._fill(groups.tokens, [t + [-1] * (width - len(t)) for t in tokens], -1)
            self._fill(groups.slots, slots, 0)
            self._fill(groups.visible, [[n] for n in lengths], 0)
            self._fill(offset, offsets, 0)
        for buffers, lane, index in zip(self.lanes, lanes, f.lane_rows, strict=True):
            self._fill(buffers.index, index, nobody)
            buffers.seeds[: len(index)].copy_(lane.seeds)
            self._fill(buffers.drawn, [len(row.answer.token_ids) for row in lane.rows], 0)
            if buffers.state is not None and lane.tracked is not None:
                _copy(lane.tracked.state, buffers.state, len(index))
        for (places, state), gold, index in zip(self.golds, golds, f.gold_rows, strict=True):
            self._fill(places, index, nobody)
            assert state is not None
            _copy(gold.state, state, len(index))

    @staticmethod
    def _fill(buffer: torch.Tensor | None, values: Sequence[Any], rest: Any) -> None:
        """`values` at the front of a buffer, `rest` behind them."""
        assert buffer is not None
        host = torch.full(buffer.shape, rest, dtype=buffer.dtype)
        if len(values):
            host[: len(values)] = torch.tensor(values, dtype=buffer.dtype)
        if buffer.device.type == "cuda":
            host = host.pin_memory()
        buffer.copy_(host, non_blocking=True)

    def __call__(self) -> None:
        """Feed every row's token, draw its next one, book it."""
        active = self.active
        self._write.slots.copy_(self._slots())
        self._write.places.copy_(self.stored % PAGE)
        for n, groups in enumerate(self._page_groups):
            assert groups.visible is not None and groups.slots is not None
            groups.slots.copy_(self.table[:, n])
            groups.visible.copy_((self.stored + 1 - n * PAGE).clamp(0, PAGE)[:, None])
        for window in self._windows.values():
            window.update(self.before, self.stored, self._offsets)
        embeds = self.stack.lm.embed_tokens(self.ids)[None]
        extras = self.stack.lm.text_extras(self.ids)
        hidden = self.stack.call(embeds, self.positions.expand(self.position_rows, -1), self.plan, extras)
        logits = self.stack.lm.logits(hidden)
        ids, logprobs = torch.zeros_like(self.ids), torch.zeros_like(self.logprobs[0])
        for lane in self.lanes:
            found, each = lane.draw(logits, active)
            ids.index_copy_(0, lane.index, found)
            logprobs.index_copy_(0, lane.index, each)
        self._book(ids, logprobs)

    def _slots(self) -> torch.Tensor:
        """The page that each row writes to; nobody's for a row that is done and has filled its last one."""
        column = self.stored // PAGE
        found = self.table.gather(1, column.clamp(max=self.shape.pages - 1)[:, None])[:, 0]
        return torch.where(column < self.shape.pages, found, self.table[-1, 0])

    def _book(self, ids: torch.Tensor, logprobs: torch.Tensor) -> None:
        fed = self.active.long()
        self.stored += fed
        self.positions += fed
        self.left -= fed
        going = self.active & (self.left > 0) & ~(ids[:, None] == self.eos).any(-1) & (ids >= 0)
        lost = torch.zeros_like(going)
        for index, state in self.golds:
            assert state is not None
            state.advance_(ids.index_select(0, index).clamp(min=0), strict=False)
            lost.index_copy_(0, index, state.lost)
        lost &= going
        self.drawn.index_copy_(0, self.count, torch.where(self.active, ids, IDLE)[None])
        self.logprobs.index_copy_(0, self.count, logprobs[None])
        self.lost.index_copy_(0, self.count, lost[None])
        self.active.copy_(going & ~lost)
        self.ids.copy_(ids.clamp(min=0))
        self.count += 1

    def results(self, steps: int) -> tuple[list[list[int]], list[list[float]], list[list[bool]]]:
        """Tokens (or IDLE), log-probabilities and whether the row was lost, [steps][rows]: the one wait of a burst."""
        found = (self.drawn[:steps], self.logprobs[:steps], self.lost[:steps])
        if self.ids.device.type == "cuda":
            pinned = [torch.empty_like(t, device="cpu", pin_memory=True) for t in found]
            for host, there in zip(pinned, found, strict=True):
                host.copy_(there, non_blocking=True)
            torch.cuda.current_stream().synchronize()
            found = (pinned[0], pinned[1], pinned[2])
        tokens, logprobs, lost = (t.tolist() for t in found)
        return tokens, logprobs, lost

    def give_back(self, lanes: Sequence[Lane], golds: Sequence[Tracked]) -> None:
        """The states of lanes and golds as they stand now."""
        for buffers, lane in zip(self.lanes, lanes, strict=True):
            if buffers.state is not None and lane.tracked is not None:
                for mine, theirs in zip(parts_of(lane.tracked.state), parts_of(buffers.state), strict=True):
                    mine.copy_(theirs[: len(mine)])
        for (_, state), gold in zip(self.golds, golds, strict=True):
            assert state is not None
            for mine, theirs in zip(parts_of(gold.state), parts_of(state), strict=True):
                mine.copy_(theirs[: len(mine)])


def _padded(tracked: Tracked | None, rows: int) -> DecodeState | None:
    """A state of `rows` rows under the grammar of another one."""
    if tracked is None:
        return None
    index = torch.arange(rows, device=tracked.state.device) % len(tracked.rows)
    return tracked.state.take(index)


def _copy(source: DecodeState, target: DecodeState, count: int) -> None:
    for mine, theirs in zip(parts_of(target), parts_of(source), strict=True):
        mine[:count].copy_(theirs)
