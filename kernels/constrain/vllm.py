"""An adapter with the shape of vLLM's custom logits processors (V1); vLLM itself is not imported.

    class Processor(VllmLogitsProcessor):
        grammars = {"action": grammar}           # then: vllm serve ... --logits-processors module:Processor

A request chooses with `SamplingParams(extra_args={"vstar_grammar": "action"})`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from vstar_fast.errors import ConstrainError

from .grammar import Grammar
from .state import DecodeState

ARGUMENT = "vstar_grammar"


class _Request:
    """A request's grammar, its growing list of output ids, and how many of them its state has seen."""

    def __init__(self, grammar: Grammar, output: list[int], budget: int | None, device: torch.device) -> None:
        fits = budget is not None and budget >= max(1, grammar.shortest)
        self.state = DecodeState(grammar, 1, device, max_new_tokens=budget if fits else None)
        self.output = output
        self.seen = 0

    def catch_up(self) -> None:
        """Follow the ids that came since the last step."""
        for token in self.output[self.seen :]:
            self.state.advance_(torch.tensor([token], device=self.state.device), strict=False)
        self.seen = len(self.output)


class VllmLogitsProcessor:
    """Constrains the requests of a vLLM batch that name one of `grammars`; the others stay free."""

    grammars: ClassVar[Mapping[str, Grammar]] = {}

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002 - vLLM's
        self.device = torch.device(device)
        self.requests: dict[int, _Request] = {}

    @classmethod
    def validate_params(cls, params: Any) -> None:
        """ConstrainError when a request names a grammar that is not there."""
        name = (getattr(params, "extra_args", None) or {}).get(ARGUMENT)
        if name is not None and name not in cls.grammars:
            raise ConstrainError(f"no grammar named {name!r}; there are: {', '.join(cls.grammars) or 'none'}")

    def is_argmax_invariant(self) -> bool:
        """A mask may change which token is the likeliest."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Requests that left, came or changed places since the last step; None when none did."""
        if batch_update is not None:
            for index in batch_update.removed:
                self.requests.pop(index, None)
            for index, params, _, output in batch_update.added:
                self._add(index, params, output)
            for first, second, direction in batch_update.moved:
                self._move(first, second, swap=getattr(direction, "name", str(direction)).upper() == "SWAP")
        for request in self.requests.values():
            request.catch_up()

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """-inf in the rows of constrained requests, in place; logits [B, V]."""
        for index, request in self.requests.items():
            request.state.mask_(logits[index : index + 1])
        return logits

    def _add(self, index: int, params: Any, output: list[int]) -> None:
        self.validate_params(params)
        self.requests.pop(index, None)
        name = (getattr(params, "extra_args", None) or {}).get(ARGUMENT)
        if name is not None:
            budget = getattr(params, "max_tokens", None)
            self.requests[index] = _Request(self.grammars[name], output, budget, self.device)

    def _move(self, first: int, second: int, *, swap: bool) -> None:
        one, two = self.requests.pop(first, None), self.requests.pop(second, None)
        if one is not None:
            self.requests[second] = one
        if swap and two is not None:
            self.requests[first] = two
