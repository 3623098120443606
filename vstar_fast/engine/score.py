"""How likely a model holds each of N labels: all of them in one call behind a stored prompt.

The labels' tokens make a trie. Its inner nodes are packed into one row, each sees the prompt and its own
ancestors, and what they predict gives the log-likelihood of every label: the same as N separate rows.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from vstar_fast import backends
from vstar_fast.engine import plan as plans
from vstar_fast.engine import ways, windows
from vstar_fast.engine.plain_nodes import plain_nodes
from vstar_fast.engine.plain_prompts import PlainPrompts, PlainStack
from vstar_fast.engine.plan import Level, Plan, Slab, Span
from vstar_fast.engine.prompts import Prefix, Prompts
from vstar_fast.engine.request import Request
from vstar_fast.engine.stack import PREFILL_TOKENS, Stack
from vstar_fast.errors import ConfigError
from vstar_fast.kernels.prefix_attention import Groups
from vstar_fast.models import branches
from vstar_fast.models.model_lock import alone, on_host
from vstar_fast.models.modules import evaluating
from vstar_fast.models.recurrent import WAVE_BYTES, Waves

MOST_LOGITS = 1 << 25
"""Logits held at once."""
NEXT = 64
"""Requests that are looked at before their turn, to see which videos will be asked about again."""
NORMS = ("sum", "mean")
PARTS: dict[str, tuple[Any, Any]] = {"packed": (Stack, Prompts), "plain": (PlainStack, PlainPrompts)}


class Trie(NamedTuple):
    """Inner nodes of the labels' trie; node 0 is the root, which stands for the prompt's last token.

    `tokens`, `depths` [M] of nodes 1 to M; `parents` [M]; `steps`: per label, (node, next token) of each token.
    """

    tokens: list[int]
    depths: list[int]
    parents: list[int]
    steps: list[list[tuple[int, int]]]


def trie(sequences: Sequence[Sequence[int]]) -> Trie:
    """The trie of token sequences, each of one token or more."""
    found = Trie([], [], [], [])
    nodes: dict[tuple[int, int], int] = {}
    for sequence in sequences:
        if not len(sequence):
            raise ConfigError("a label without tokens cannot be scored; give it a name")
        at, steps = 0, [(0, int(sequence[0]))]
        for i, (token, after) in enumerate(zip(sequence, sequence[1:], strict=False)):
            key = (at, int(token))
            if key not in nodes:
                nodes[key] = len(nodes) + 1
                found.tokens.append(int(token))
                found.depths.append(i)
                found.parents.append(at)
            at = nodes[key]
            steps.append((at, int(after)))
        found.steps.append(steps)
    return found


def tree_mask(parents: Sequence[int]) -> torch.Tensor:
    """Bool [M, M]: nodes 1 to M see themselves and their ancestors."""
    seen = torch.eye(len(parents), dtype=torch.bool)
    for i, parent in enumerate(parents):
        if parent:
            seen[i] |= seen[parent - 1]
    return seen


class Labels:
    """A set of labels to be scored: `surfaces` are the token ids of every name and alias, `owner` whose they are."""

    def __init__(self, labels: Sequence[Sequence[Sequence[int]]]) -> None:
        nameless = [i for i, label in enumerate(labels) if not len(label)]
        if nameless or not len(labels):
            what = f"label {nameless[0]} has no surface" if nameless else "there are no labels"
            raise ConfigError(f"{what}, so nothing can be scored; give each label the token ids of its name")
        surfaces = [tuple(s) for label in labels for s in label]
        self.count = len(labels)
        self.tree = trie(surfaces)
        self.owner = torch.tensor([i for i, label in enumerate(labels) for _ in label])
        self.sizes = torch.tensor([len(s) for s in surfaces], dtype=torch.float32)

    def scores(self, sums: torch.Tensor, norm: str) -> torch.Tensor:
        """One score a label [labels] from the summed log-probability [surfaces] of each surface's tokens."""
        return _by_label(sums if norm == "sum" else sums / self.sizes, self.owner, self.count, norm)


class Scorer:
    """Scores labels behind prompts; prompts and videos are stored as for generation. Threads take turns.

    `engine`: `packed`, `plain`, or `auto`, see `ways.choose`.
    """

    def __init__(self, lm: Any, *, engine: str = "auto") -> None:
        self.lm = lm
        self.way = ways.chosen(lm, engine)
        stacked, prompted = PARTS[self.way.name]
        self.stack = stacked(lm)
        self._prompts = prompted(self.stack)
        self._turn = threading.Lock()

    @property
    def prefilled(self) -> int:
        """Prompt tokens that went through the text stack so far."""
        return self._prompts.tokens

    @on_host()
    def score(
        self, requests: Sequence[Request], labels: Sequence[Sequence[Sequence[int]]], *, norm: str = "sum"
    ) -> torch.Tensor:
        """Log-likelihood [requests, labels] fp32 of each label right behind each prompt.

        Args:
            requests: prompts with their videos; seeds and settings are not looked at.
            labels: per label its surfaces (name and aliases), as token ids.
            norm: "sum": log of the summed probability of a label's surfaces. "mean": the log-likelihood a token of
                its likeliest surface, so that long names are not worse off.
        """
        listed = Labels(labels)
        found = self._score(requests, [listed] * len(requests), norm)
        return torch.stack(found) if found else torch.empty(0, listed.count)

    @on_host()
    def score_each(
        self,
        requests: Sequence[Request],
        labels: Sequence[Sequence[Sequence[Sequence[int]]]],
        *,
        norm: str = "sum",
    ) -> list[torch.Tensor]:
        """As `score`, each request with labels of its own: [labels] fp32 a request.

        A video that several requests share (the same features) goes through the model once; requests about one
        video are best given one after the other, for it is stored from the first of them to the last.
        """
        if len(requests) != len(labels):
            raise ConfigError(f"there are {len(requests)} requests and {len(labels)} sets of labels; give one of each")
        known: dict[int, Labels] = {}
        for listed in labels:
            if id(listed) not in known:
                known[id(listed)] = Labels(listed)
        return self._score(requests, [known[id(listed)] for listed in labels], norm)

    def pmi(
        self, requests: Sequence[Request], blank: Request, labels: Sequence[Sequence[Sequence[int]]]
    ) -> torch.Tensor:
        """`score` less that behind `blank` (the question with a blank video): what the video itself speaks for."""
        return self.score(requests, labels) - self.score([blank], labels)

    def _score(self, requests: Sequence[Request], labels: Sequence[Labels], norm: str) -> list[torch.Tensor]:
        if norm not in NORMS:
            raise ConfigError(f"norm is {norm!r}; use one of {', '.join(NORMS)}")
        backends.ran("label_scores", self.way.name, why=self.way.reason)
        with self._turn:
            return self._in_turn(requests, labels, norm)

    def _in_turn(self, requests: Sequence[Request], labels: Sequence[Labels], norm: str) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        self.stack.look()
        try:
            while len(found) < len(requests):
                first = len(found)
                most = first + self.stack.most_prompts
                end = first + self._fitting(requests[first:most], labels[first:most])
                with alone(self.stack.text_model), evaluating(self.lm.model):
                    sums = self._together(requests[first:end], labels[first:end], requests[end : end + NEXT])
                found += [own.scores(x.cpu(), norm) for own, x in zip(labels[first:end], sums, strict=True)]
        finally:  # what is stored is of the weights as they are now
            self._prompts.clear()
            self.stack.store.clear()
        return found

    def _fitting(self, requests: Sequence[Request], labels: Sequence[Labels]) -> int:
        """How many of the first requests go into one call, prompts and labels together; at least one."""
        room, count = PREFILL_TOKENS[self.lm.device.type], 0
        for r, listed in zip(requests, labels, strict=True):
            video = 0 if r.features is None else len(r.features.ids)
            tokens = len(r.head) + video + len(r.tail) + len(listed.tree.tokens)
            self.stack.admit(tokens)
            room -= tokens
            if room < 0 and count:
                break
            count += 1
        return count

    @torch.inference_mode()
    def _together(
        self, requests: Sequence[Request], labels: Sequence[Labels], later: Sequence[Request]
    ) -> list[torch.Tensor]:
        """Summed log-probability [surfaces] of each surface's tokens behind each prompt."""
        prefixes = self._prompts.put(requests, later)
        trees = [listed.tree for listed in labels]
        nodes = plain_nodes(self.stack, prefixes, trees) if self.way.name == "plain" else self._nodes(prefixes, trees)
        inner = nodes.split([len(tree.tokens) for tree in trees])
        for prefix in prefixes:
            self._prompts.let_go(prefix, later)
        hidden, first, steps = [], 0, []
        for prefix, own, tree in zip(prefixes, inner, trees, strict=True):
            hidden += [prefix.hidden[None], own]
            steps += [(first + node, token) for each in tree.steps for node, token in each]
            first += 1 + len(tree.tokens)
        owner = [i for i, each in enumerate(each for tree in trees for each in tree.steps) for _ in each]
        device = self.lm.device
        logprobs = self._logprobs(torch.cat(hidden), torch.tensor(steps, device=device))
        sums = torch.zeros(sum(len(tree.steps) for tree in trees), device=device)
        sums.index_add_(0, torch.tensor(owner, device=device), logprobs)
        return list(sums.split([len(tree.steps) for tree in trees]))

    def _nodes(self, prefixes: Sequence[Prefix], trees: Sequence[Trie]) -> torch.Tensor:
        """Hidden states [sum of M, H] of the tries' inner nodes, each trie behind its prompt."""
        ends = list(itertools.accumulate((len(tree.tokens) for tree in trees), initial=0))
        if not ends[-1]:
            return prefixes[0].hidden.new_empty(0, prefixes[0].hidden.shape[0])
        device = self.lm.device
        held = [(p, t, first) for p, t, first in zip(prefixes, trees, ends, strict=False) if t.tokens]
        nodes = [self.stack.store.take(len(tree.tokens)) for _, tree, _ in held]
        own = [Span(n, at, at + len(t.tokens), 0, len(t.tokens)) for n, (_, t, at) in zip(nodes, held, strict=True)]
        seen = [
            [
                Span(p.nodes[d], at, at + len(t.tokens), 0, p.nodes[d].length, sum(n.length for n in p.nodes[:d]))
                for p, t, at in held
                if d < len(p.nodes)
            ]
            for d in range(max(len(p.nodes) for p, _, _ in held))
        ]
        levels = [Level("whole", spans) for spans in seen]
        rows = np.array([depth + p.length for p, tree, _ in held for depth in tree.depths])

        def tries(window: int | None = None) -> list[Slab]:
            return [_slab(span, tree, device, window) for span, (_, tree, _) in zip(own, held, strict=True)]

        plan = Plan(
            plans.writes(own, ends[-1], device),
            [*(plans.level(level.spans, device, level.kind) for level in levels), tries()],
            int(rows.max()) + 1,
            lambda window: [*windows.within(window, levels, rows, device), tries(window)],
        )
        plan.waves = self._waves(held)
        places = [depth + p.next_position for p, tree, _ in held for depth in tree.depths]
        position_rows = max(p.rows for p in prefixes)
        ids = torch.tensor([token for tree in trees for token in tree.tokens], device=device)
        positions = torch.tensor(places, device=device).expand(position_rows, ends[-1])
        hidden = self.stack.call(self.lm.embed_tokens(ids)[None], positions, plan, self.lm.text_extras(ids))
        for node in nodes:
            self.stack.store.give_back(node)
        return hidden

    def _waves(self, held: Sequence[tuple[Prefix, Trie, int]]) -> Waves | None:
        """How the tries, (prompt, trie, first token) each, go through layers with a state."""
        mixers = self.stack.mixers
        if not mixers:
            return None
        tries = [branches.Trie(p.own.state, tree.parents, first) for p, tree, first in held]
        return branches.of_tries(tries, max(1, WAVE_BYTES // max(mixers.each_bytes)), self.lm.device)

    def _logprobs(self, hidden: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Log-probability [S] of (node, token) pairs `steps` [S, 2] under what the nodes predict."""
        out = torch.empty(len(steps), device=hidden.device)
        width = max(1, MOST_LOGITS // self.lm.head.weight.shape[0])
        for start in range(0, len(hidden), width):
            logits = self.lm.logits(hidden[start : start + width]).float()
            total = logits.logsumexp(-1)
            here = (steps[:, 0] >= start) & (steps[:, 0] < start + width)
            node, token = steps[here, 0] - start, steps[here, 1]
            out[here] = logits[node, token] - total[node]
        return out


def _slab(span: Span, tree: Trie, device: torch.device, window: int | None) -> Slab:
    """The trie's tokens, each of which sees itself and its ancestors, those within the window if there is one."""
    tokens = torch.arange(span.first, span.end, device=device)[None]
    seen = tree_mask(tree.parents)
    if window is not None:
        depths = torch.tensor(tree.depths)
        seen &= depths[:, None] - depths < window
    groups = Groups(tokens, None, seen[None].to(device))
    return Slab(span.node.arena, slice(span.node.slot, span.node.slot + 1), 0, span.stop, groups)


def _by_label(scores: torch.Tensor, owner: torch.Tensor, labels: int, norm: str) -> torch.Tensor:
    """Scores [surfaces] of labels [surfaces] -> one a label: summed probability, or the best surface."""
    table = torch.full((labels, len(scores)), -torch.inf)
    table[owner, torch.arange(len(scores))] = scores
    return table.logsumexp(-1) if norm == "sum" else table.amax(-1)
