"""The text stack of a model, called with packed tokens: prefill of prompts behind what they share, and steps."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vstar_fast.engine import bidirectional, windows
from vstar_fast.engine import plan as plans
from vstar_fast.engine.cache import PackedCache, attending, check
from vstar_fast.engine.chunked_prefill import BETWEEN_STEPS, Prompt, pieces, whole
from vstar_fast.engine.plan import Level, Plan, Slab, Span
from vstar_fast.engine.store import Node, Shape, Store
from vstar_fast.errors import ModelError
from vstar_fast.kernels.linear import fast_linears
from vstar_fast.models.bidirectional import of_window
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.models.layers import layers_of
from vstar_fast.models.modules import rope_types
from vstar_fast.models.recurrent import Held, Run, Waves, in_waves, mixers_in, running

PREFILL_TOKENS = {"cpu": 512, "cuda": 8192}
"""Tokens of prompts in one call, several prompts at a time; a longer prompt, or piece of one, is a call of its own.

On a CPU what lies between two layers of a call should stay in its caches.
"""
STATE_BYTES = 1 << 30


class Stack:
    """`lm.text_model` with a store for its keys and values."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.text_model = lm.text_model
        check(self.text_model)
        layers = layers_of(self.text_model)
        self.store = Store(Shape.of(layers.shapes, self.text_model.dtype, lm.device))
        self.look()
        self.windows = layers.windows
        self._cache = PackedCache(layers)
        dynamic = any("dynamic" in kind for kind in rope_types(self.text_model.config))
        self._most_positions = self.text_model.config.max_position_embeddings if dynamic else 1 << 62

    def admit(self, tokens: int) -> None:
        """Raise ModelError for a row that may become so long that the rotary frequencies follow its length."""
        config = self.text_model.config
        if tokens > self._most_positions:
            raise ModelError(
                f"a prompt and its answer may take {tokens} tokens; beyond {config.max_position_embeddings} the rotary "
                f"frequencies of {type(self.text_model).__name__} change with a row's length (dynamic), and rows of "
                "several lengths cannot be packed; use generate.engine = plain, fewer frames or a lower max_new_tokens"
            )

    def look(self) -> None:
        """Look up again what may have changed: an adapter puts layers in the places of others, weights change dtype."""
        if self.text_model.dtype != self.store.shape.dtype:
            self.store.clear()
            self.store.shape = replace(self.store.shape, dtype=self.text_model.dtype)
        self.mixers = mixers_in(self.text_model)
        self.most_prompts = max(1, STATE_BYTES // max(1, self.mixers.row_bytes))
        """Prompts whose states are held at once where nothing else limits them."""

    def call(
        self, embeds: torch.Tensor, positions: torch.Tensor, plan: Plan, extras: dict[str, Any] | None = None
    ) -> torch.Tensor:
        """Hidden states [N, H] of packed tokens with inputs_embeds [1, N, H] and position_ids [R, N]."""
        self._cache.set_plan(plan)
        positions = positions if positions.shape[0] == 1 else positions[:, None]
        try:
            with attending(self.text_model), running(self.mixers, lambda: plan.waves), fast_linears(half=self.lm.mixed):
                out = self.text_model(
                    inputs_embeds=embeds,
                    position_ids=positions,
                    attention_mask=None,
                    use_cache=True,
                    **{CACHE: self._cache},
                    **(extras or {}),
                )
        finally:
            self._cache.set_plan(Plan())  # what it names may go, when memory ran out above all
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    def waves(self, runs: Sequence[Run], moving: bool = False) -> tuple[Waves | None, Sequence[Held | None]]:
        """How the runs of a call go through layers with a state, if there are any, and the states behind them."""
        return in_waves(runs, self.lm.device, moving) if self.mixers else (None, [None] * len(runs))

    def plan(self, new: Iterable[Span], levels: Sequence[Level], places: Sequence[tuple[int, int]]) -> Plan:
        """A plan that writes the `new` spans; `places`: (place of the first in its row, count) of runs of tokens."""
        device, tokens = self.lm.device, sum(count for _, count in places)
        made = [plans.level(level.spans, device, level.kind) for level in levels]

        def cut(window: int) -> list[list[Slab]]:
            each = np.concatenate([np.arange(first, first + count) for first, count in places])
            return windows.within(window, levels, each, device)

        return Plan(plans.writes(new, tokens, device), made, max(map(sum, places)), cut)

    def prefill(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Put prompts into their nodes; hidden states [len(prompts), H] of their last tokens."""
        return whole(self.prefilling(prompts))

    def prefilling(self, prompts: Sequence[Prompt]) -> Generator[int, None, torch.Tensor]:
        """As `prefill`; stops between two calls of the text stack and says how many tokens the first one took."""
        kind = self.lm.device.type
        most = BETWEEN_STEPS[kind]
        last: dict[int, torch.Tensor] = {}
        taken = 0
        for call in _calls([piece for p in prompts for piece in pieces(p, most)], min(PREFILL_TOKENS[kind], most)):
            if taken:
                yield taken
            last.update(zip((id(p.node) for p in call), self._prefill(call), strict=True))
            taken = sum(p.inputs_embeds.shape[1] for p in call)
        return torch.stack([last[id(p.node)] for p in prompts])

    def _prefill(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        device, spans, places, end = self.lm.device, [], [], 0
        for p in prompts:
            count, before = p.inputs_embeds.shape[1], sum(node.length for node in p.seen)
            spans.append(Span(p.node, end, end + count, p.start, p.start + count, before - p.start))
            places.append((before, count))
            end += count
        depth = max(len(p.seen) for p in prompts)
        levels = [Level("whole", _seen(prompts, spans, i)) for i in range(depth)]
        plan = self.plan(spans, [*levels, Level("causal", spans)], places)
        _see(plan, prompts[0], device)
        plan.waves, after = self.waves([(p.inputs_embeds.shape[1], p.before) for p in prompts])
        embeds = torch.cat([p.inputs_embeds for p in prompts], 1)
        positions = torch.cat([p.position_ids for p in prompts], 1)
        hidden = self.call(embeds, positions, plan, prompts[0].extras)
        for p, span, state in zip(prompts, spans, after, strict=True):
            p.node.length, p.node.state = span.stop, state
            if p.node not in p.seen:
                copy_front(p.seen, p.node, p.start)
        return hidden[torch.tensor([s.end - 1 for s in spans], device=device)]


def _see(plan: Plan, prompt: Prompt, device: torch.device) -> None:
    """The only prompt of a call sees what its mask says, if it has one."""
    if prompt.sight is not None:
        sight = prompt.sight
        plan.levels = bidirectional.levels(prompt, of_window(sight, None), device)
        plan.cut = lambda window: bidirectional.levels(prompt, of_window(sight, window), device)


def _seen(prompts: Sequence[Prompt], spans: Sequence[Span], depth: int) -> list[Span]:
    """Level `depth` of what prompts see before themselves; neighbours behind one node are one group."""
    found: list[Span] = []
    for p, span in zip(prompts, spans, strict=True):
        if depth >= len(p.seen):
            continue
        node, before = p.seen[depth], sum(n.length for n in p.seen[:depth])
        if found and found[-1].node is node and found[-1].end == span.first:
            found[-1] = found[-1]._replace(end=span.end)
        else:
            found.append(Span(node, span.first, span.end, 0, node.length, before))
    return found


def copy_front(nodes: Sequence[Node], target: Node, tokens: int) -> None:
    """Copy the first tokens of `nodes`, one after the other, to the front of `target`, `tokens` in all."""
    at = 0
    for node in nodes:
        n = min(node.length, tokens - at)
        if n > 0:
            for mine, theirs in zip(target.arena.tensors, node.arena.tensors, strict=True):
                mine[:, target.slot, :, at : at + n] = theirs[:, node.slot, :, :n]
        at += max(n, 0)


def copy(source: Node, span: Span) -> None:
    """Copy tokens `span.first` to `span.end` of `source` to positions `start` to `stop` of the span's node."""
    target = span.node
    for mine, theirs in zip(target.arena.tensors, source.arena.tensors, strict=True):
        mine[:, target.slot, :, span.start : span.stop] = theirs[:, source.slot, :, span.first : span.end]


def _alone(prompt: Prompt) -> bool:
    return bool(prompt.extras) or prompt.sight is not None


def _calls(prompts: Sequence[Prompt], most: int) -> list[list[Prompt]]:
    """Prompts in calls of at most `most` tokens; one with extras, or a mask of its own, goes alone."""
    calls: list[list[Prompt]] = []
    room = 0
    for p in prompts:
        size = p.inputs_embeds.shape[1]
        if _alone(p) or size > room or _alone(calls[-1][0]):
            calls.append([])
            room = most
        calls[-1].append(p)
        room -= size
    return calls
