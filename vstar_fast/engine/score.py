"""How likely a model holds each of N labels: all of them in one call behind a stored prompt.

The labels' tokens make a trie. Its inner nodes are packed into one row, each sees the prompt and its own
ancestors, and what they predict gives the log-likelihood of every label: the same as N separate rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from vstar_fast.engine import plan as plans
from vstar_fast.engine.plan import Plan, Slab, Span
from vstar_fast.engine.prompts import Prefix, Prompts
from vstar_fast.engine.request import Request
from vstar_fast.engine.stack import Stack
from vstar_fast.engine.turn import alone
from vstar_fast.errors import ConfigError
from vstar_fast.kernels.prefix_attention import Groups
from vstar_fast.models.modules import evaluating

MOST_LOGITS = 1 << 25
"""Logits held at once."""
NORMS = ("sum", "mean")


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


class Scorer:
    """Scores labels behind prompts; prompts and videos are stored as for generation."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.stack = Stack(lm)
        self._prompts = Prompts(self.stack)

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
        if norm not in NORMS:
            raise ConfigError(f"norm is {norm!r}; use one of {', '.join(NORMS)}")
        nameless = [i for i, label in enumerate(labels) if not len(label)]
        if nameless or not len(labels):
            what = f"label {nameless[0]} has no surface" if nameless else "there are no labels"
            raise ConfigError(f"{what}, so nothing can be scored; give each label the token ids of its name")
        surfaces = [tuple(s) for label in labels for s in label]
        tree = trie(surfaces)
        owner = torch.tensor([i for i, label in enumerate(labels) for _ in label])
        sizes = torch.tensor([len(s) for s in surfaces], dtype=torch.float32)
        found = torch.empty(len(requests), len(labels))
        try:
            for i, request in enumerate(requests):
                with alone(self.stack.text_model), evaluating(self.lm.model):
                    sums = self._one(request, tree, requests[i + 1 :]).cpu()
                found[i] = _by_label(sums if norm == "sum" else sums / sizes, owner, len(labels), norm)
        finally:  # what is stored is of the weights as they are now
            self._prompts.clear()
            self.stack.store.clear()
        return found

    def pmi(
        self, requests: Sequence[Request], blank: Request, labels: Sequence[Sequence[Sequence[int]]]
    ) -> torch.Tensor:
        """`score` less that behind `blank` (the question with a blank video): what the video itself speaks for."""
        return self.score(requests, labels) - self.score([blank], labels)

    @torch.inference_mode()
    def _one(self, request: Request, tree: Trie, later: Sequence[Request]) -> torch.Tensor:
        """Summed log-probability [surfaces] of each surface's tokens behind one prompt."""
        (prefix,) = self._prompts.put([request], later)
        hidden = prefix.hidden[None]
        if tree.tokens:
            hidden = torch.cat([hidden, self._nodes(prefix, tree)])
        self._prompts.let_go(prefix, later)
        index = torch.tensor([s for steps in tree.steps for s in steps], device=hidden.device)
        logprobs = self._logprobs(hidden, index)
        owner = torch.tensor([i for i, steps in enumerate(tree.steps) for _ in steps], device=hidden.device)
        return torch.zeros(len(tree.steps), device=hidden.device).index_add_(0, owner, logprobs)

    def _nodes(self, prefix: Prefix, tree: Trie) -> torch.Tensor:
        """Hidden states [M, H] of the trie's inner nodes behind the prompt."""
        device, count = self.lm.device, len(tree.tokens)
        node = self.stack.store.take(count)
        own = Span(node, 0, count, 0, count)
        seen = [plans.level([Span(n, 0, count, 0, n.length)], device, "whole") for n in prefix.nodes]
        groups = Groups(torch.arange(count, device=device)[None], None, tree_mask(tree.parents)[None].to(device))
        slab = Slab(node.arena, slice(node.slot, node.slot + 1), 0, count, groups)
        plan = Plan(plans.writes([own], count, device), [*seen, [slab]])
        depths = torch.tensor(tree.depths, device=device) + prefix.next_position
        embeds = self.lm.embed_tokens(torch.tensor(tree.tokens, device=device))[None]
        hidden = self.stack.call(embeds, depths.expand(prefix.rows, count), plan)
        self.stack.store.give_back(node)
        return hidden

    def _logprobs(self, hidden: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Log-probability [S] of (node, token) pairs `steps` [S, 2] under what the nodes predict."""
        out = torch.empty(len(steps), device=hidden.device)
        width = max(1, MOST_LOGITS // self.lm.logits(hidden[:1]).shape[-1])
        for start in range(0, len(hidden), width):
            logits = self.lm.logits(hidden[start : start + width]).float()
            total = logits.logsumexp(-1)
            here = (steps[:, 0] >= start) & (steps[:, 0] < start + width)
            node, token = steps[here, 0] - start, steps[here, 1]
            out[here] = logits[node, token] - total[node]
        return out


def _by_label(scores: torch.Tensor, owner: torch.Tensor, labels: int, norm: str) -> torch.Tensor:
    """Scores [surfaces] of labels [surfaces] -> one a label: summed probability, or the best surface."""
    table = torch.full((labels, len(scores)), -torch.inf)
    table[owner, torch.arange(len(scores))] = scores
    return table.logsumexp(-1) if norm == "sum" else table.amax(-1)
