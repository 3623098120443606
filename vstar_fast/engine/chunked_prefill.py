"""A prompt on its way into the store, whole or, where it is long, in pieces that answers in flight go on between."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vstar_fast.engine.store import Node

if TYPE_CHECKING:
    from vstar_fast.models.bidirectional import Sight
    from vstar_fast.models.recurrent import Held

BETWEEN_STEPS = {"cpu": 1 << 62, "cuda": 8192}
"""Tokens of prompts that are taken in before answers in flight go on; a longer prompt comes in pieces of so many.

On a CPU, where a step takes longer than a prompt, prompts come whole and together instead.
"""

T = TypeVar("T")


@dataclass(slots=True)
class Prompt:
    """Tokens to put into `node` from position `start` on, behind the nodes of `seen`.

    inputs_embeds [1, T, H]; position_ids [R, T]; `extras` for the text stack, of this prompt only; `sight` where its
    tokens see others behind them.
    """

    node: Node
    start: int
    seen: list[Node]
    inputs_embeds: torch.Tensor
    position_ids: torch.Tensor
    extras: dict[str, Any] = field(default_factory=dict)
    sight: Sight | None = None

    @property
    def before(self) -> Held | None:
        """The state that it stands behind."""
        return self.seen[-1].state if self.seen else None


def pieces(prompt: Prompt, most: int) -> list[Prompt]:
    """The prompt in pieces of at most `most` tokens, each behind those before it.

    The last is no single token: layers with a state may have another kernel for one, see `recurrent.STEPS`.
    Whole where it has extras that cannot be told apart by token, or tokens that see others behind them.
    """
    tokens = prompt.inputs_embeds.shape[1]
    ends = [*range(0, tokens, most), tokens]
    if most > 2 and len(ends) > 2 and ends[-1] - ends[-2] == 1:
        ends[-2] -= 1
    cuts = list(pairwise(ends))
    if len(cuts) == 1 or prompt.sight is not None or not divisible(prompt.extras, tokens):
        return [prompt]
    # a node with a start holds a copy of what it is behind
    later = [prompt.node] if prompt.start else [*prompt.seen, prompt.node]
    return [
        Prompt(
            prompt.node,
            prompt.start + first,
            later if first else prompt.seen,
            prompt.inputs_embeds[:, first:end],
            prompt.position_ids[:, first:end],
            cut(prompt.extras, first, end, tokens),
        )
        for first, end in cuts
    ]


def divisible(extras: dict[str, Any], tokens: int) -> bool:
    """Whether each extra is a value a token ([1, T, ...]), a list of values of the tokens of a mask, or no tensor."""
    mask = _mask(extras, tokens)
    return all(
        by_token(x, tokens) or not _tensors(x) or (mask is not None and isinstance(x, (list, tuple)))
        for x in extras.values()
    )


def cut(extras: dict[str, Any], first: int, end: int, tokens: int) -> dict[str, Any]:
    """The extras of tokens `first` to `end` of a prompt of so many."""
    mask = _mask(extras, tokens)
    before = inside = 0
    if mask is not None:
        before, inside = int(mask[0, :first].sum()), int(mask[0, first:end].sum())

    def part(x: Any) -> Any:
        if by_token(x, tokens):
            return x[:, first:end]
        return [t[before : before + inside] for t in x] if _tensors(x) else x

    return {name: part(x) for name, x in extras.items()}


def _mask(extras: dict[str, Any], tokens: int) -> torch.Tensor | None:
    """The one mask of tokens among the extras, where every list of tensors has a row for each token that it names."""
    masks = [x for x in extras.values() if by_token(x, tokens) and x.dtype == torch.bool and x.ndim == 2]
    if len(masks) != 1:
        return None
    named = int(masks[0].sum())
    listed = [t for x in extras.values() if isinstance(x, (list, tuple)) for t in x]
    return masks[0] if all(isinstance(t, torch.Tensor) and len(t) == named for t in listed) else None


def by_token(x: Any, tokens: int) -> bool:
    """Whether an extra has one value a token: [1, T] or [1, T, ...]."""
    return isinstance(x, torch.Tensor) and x.ndim >= 2 and x.shape[:2] == (1, tokens)


def _tensors(x: Any) -> bool:
    return isinstance(x, torch.Tensor) or (isinstance(x, (list, tuple)) and any(isinstance(t, torch.Tensor) for t in x))


def whole(steps: Generator[Any, None, T]) -> T:
    """What steps come to when none of them is waited at."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found
