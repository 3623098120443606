"""`constrain` in plain Python over the arena's arrays: the specification of every backend, and the oracle of tests.

A row with state s >= 0 and `remaining` tokens may take the tokens of its edges (a dense state: its set bits) whose
next state can be finished within the budget, dist[next] < remaining. kFree allows everything, kDone, kLost and a
spent budget only the end-of-sequence tokens.
"""

from __future__ import annotations

import struct
from fractions import Fraction

import torch
from vstar_fast.kernels.sample.reference import exponent_scale, scale_down, stream_bits, weights

from .backend import DONE, FREE, LOST, UNLIMITED, Draw, Rows


class Tables:
    """An arena as Python lists."""

    def __init__(self, block: torch.Tensor) -> None:
        data = block.cpu().numpy().tobytes()
        self.head = struct.unpack_from("<17i", data)
        self.vocabulary, self.states, edges, self.dense, count, narrow = self.head[3:9]
        first, reach, tokens, following, bits, fallback, eos = self.head[10:17]
        self.words = (self.vocabulary + 31) // 32

        def ints(kind: str, at: int, length: int) -> list[int]:
            return list(struct.unpack_from(f"<{length}{kind}", data, at))

        self.first = ints("i", first, self.states + 1)
        self.dist = ints("H", reach, 2 * self.states)[::2]
        self.tokens = ints("H" if narrow else "i", tokens, edges)
        self.next = ints("i", following, edges)
        self.bits = ints("I", bits, self.dense * self.words)
        self.fallback = ints("i", fallback, self.dense)
        self.eos = ints("i", eos, count)

    def edges(self, state: int) -> dict[int, int]:
        """token -> next state, without regard to the budget."""
        out: dict[int, int] = {}
        if state < self.dense:
            row = self.bits[state * self.words : (state + 1) * self.words]
            out = {32 * w + b: self.fallback[state] for w, word in enumerate(row) for b in range(32) if word >> b & 1}
        span = range(self.first[state], self.first[state + 1])
        return out | {self.tokens[e]: self.next[e] for e in span}

    def legal(self, state: int, remaining: int) -> dict[int, int]:
        """token -> next state of the tokens a row may take; of kFree rows all."""
        if state == FREE:
            return dict.fromkeys(range(self.vocabulary), FREE)
        if state < 0 or remaining <= 0:
            return dict.fromkeys(self.eos, DONE if state >= 0 else state)
        found = self.edges(state)
        return {t: to for t, to in found.items() if to != LOST and (to < 0 or self.dist[to] < remaining)}


def _each(rows: Rows) -> tuple[Tables, list[tuple[int, int]]]:
    return Tables(rows.host), list(zip(rows.state.tolist(), rows.remaining.tolist(), strict=True))


def _move(rows: Rows, tables: Tables, row: int, token: int) -> bool:
    """Move one row; whether this loses it."""
    state, remaining = int(rows.state[row]), int(rows.remaining[row])
    rows.step[row] += 1
    if state < 0:
        return False
    after = tables.legal(state, remaining).get(token, LOST) if remaining > 0 else DONE
    rows.state[row] = after
    rows.remaining[row] = remaining if remaining == UNLIMITED else remaining - 1
    return after == LOST


def advance(rows: Rows, tokens: torch.Tensor) -> int:
    """Rows lost by these tokens."""
    tables = Tables(rows.host)
    return sum(_move(rows, tables, row, token) for row, token in enumerate(tokens.tolist()))


def mask(rows: Rows, logits: torch.Tensor) -> None:
    """-inf where a token is not legal."""
    tables, each = _each(rows)
    for row, (state, remaining) in enumerate(each):
        legal = torch.zeros(tables.vocabulary, dtype=torch.bool)
        legal[list(tables.legal(state, remaining))] = True
        logits[row].masked_fill_(~legal.to(logits.device), float("-inf"))


def sample(rows: Rows, logits: torch.Tensor, draw: Draw) -> None:
    """Fill draw.ids and draw.logprobs, and move."""
    tables, each = _each(rows)
    for row, (state, remaining) in enumerate(each):
        ids = sorted(tables.legal(state, remaining))
        values = logits[row, ids].float().cpu()
        top = values.max()
        if values.isnan().any() or top.isinf():
            continue
        kept = values if draw.scale == 0 else _keep(values, draw)
        if draw.scale == 0:
            place = int((kept == top).nonzero()[0])
        else:
            running = weights(kept[None], top[None, None], _temperature(draw))[0].cumsum(0)
            bits = stream_bits(draw.seeds[row].cpu()[None], int(rows.step[row]))
            place = int(torch.searchsorted(running, scale_down(bits, running[-1:]), right=True))
        place = min(place, len(ids) - 1)
        draw.ids[row] = ids[place]
        draw.logprobs[row] = values.double().log_softmax(0)[place].float()
        _move(rows, tables, row, ids[place])


def _temperature(draw: Draw) -> float:
    """A temperature whose fp32 scale is the one asked for."""
    return exponent_scale(1.0) / draw.scale


def _keep(values: torch.Tensor, draw: Draw) -> torch.Tensor:
    """-inf where top-k (ties kept), then top-p leave a logit out."""
    if 0 < draw.top_k < len(values):
        values = values.masked_fill(values < values.topk(draw.top_k).values[-1], float("-inf"))
    if draw.top_p >= 1 << 62:
        return values
    heavy = weights(values[None], values.max()[None, None], _temperature(draw))[0].tolist()
    limit, before = Fraction(draw.top_p, 1 << 62) * sum(heavy), 0
    values = values.clone()
    for place in sorted(range(len(heavy)), key=lambda i: (-float(values[i]), i)):
        if before >= limit:
            values[place] = float("-inf")
        before += heavy[place]
    return values


def forced(rows: Rows, tokens: torch.Tensor, lengths: torch.Tensor, advance: bool) -> None:
    """Fill tokens [B, most] and lengths [B]."""
    tables, each = _each(rows)
    for row, (state, remaining) in enumerate(each):
        length = 0
        while length < tokens.shape[1] and state >= 0 and remaining > 0:
            legal = tables.legal(state, remaining)
            if len(legal) != 1:
                break
            ((tokens[row, length], state),) = legal.items()
            remaining -= remaining != UNLIMITED
            length += 1
        lengths[row] = length
        if advance:
            rows.state[row], rows.remaining[row] = state, remaining
            rows.step[row] += length


def fill(rows: Rows, out: torch.Tensor, filled: torch.Tensor | None) -> None:
    """Fill the bits [B, words]."""
    tables, each = _each(rows)
    for row, (state, remaining) in enumerate(each):
        words = [0] * tables.words
        for token in tables.legal(state, remaining):
            words[token // 32] |= 1 << token % 32
        if state == FREE:
            words = [0xFFFFFFFF] * tables.words
        out[row] = torch.tensor([w - (1 << 32) if w >> 31 else w for w in words], dtype=torch.int32)
    if filled is not None:
        filled.copy_(rows.state)
