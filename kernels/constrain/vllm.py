"""What a custom logits processor of vLLM (V1) does; vLLM itself is not imported, so its base class comes from you.

    from vllm.v1.sample.logits_processor import LogitsProcessor

    class Processor(VllmLogitsProcessor, LogitsProcessor):
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
    """A request's grammar, vLLM's own list of its output ids, and those of them that its state has followed."""

    def __init__(self, grammar: Grammar, output: list[int], budget: int | None, device: torch.device) -> None:
        fits = budget is not None and budget >= max(1, grammar.shortest)
        self.state = DecodeState(grammar, 1, device, max_new_tokens=budget if fits else None)
        self.output = output
        self.followed: list[int] = []

    def catch_up(self) -> None:
        """Follow the ids that came since the last step; from the start where vLLM took some back."""
        seen = len(self.followed)
        if self.output[:seen] != self.followed:
            self.state.reset()
            seen = 0
        for token in self.output[seen:]:
            if token < 0:
                raise ConstrainError("vLLM does not know the output ids yet; start it with --no-async-scheduling")
            self.state.advance_(torch.tensor([token], device=self.state.device), strict=False)
        self.followed = list(self.output)


class VllmLogitsProcessor:
    """Constrains the requests of a vLLM batch that name one of `grammars`; the others stay free."""

    grammars: ClassVar[Mapping[str, Grammar]] = {}

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002 - vLLM's
        self.device = torch.device(device)
        self.requests: dict[int, _Request] = {}

    @classmethod
    def validate_params(cls, params: Any) -> None:
        """ConstrainError, which vLLM answers the request with, for an unknown grammar or too small a `max_tokens`."""
        name = _name(params)
        if name is None:
            return
        if not isinstance(name, str) or name not in cls.grammars:
            raise ConstrainError(f"no grammar named {name!r}; there are: {', '.join(cls.grammars) or 'none'}")
        least, most = cls.grammars[name].shortest, getattr(params, "max_tokens", None)
        if most is not None and most < least:
            raise ConstrainError(f"max_tokens is {most}, below the {least} that {name!r} needs at least; raise it")

    def is_argmax_invariant(self) -> bool:
        """A mask may change which token is the likeliest."""
        return False

    def needs_output_token_ids(self) -> bool:
        """The ids themselves: with asynchronous scheduling vLLM fills them in between `update_state` and `apply`."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Requests that left, came or changed places since the last step; None when none did."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.requests.pop(index, None)
        for index, params, _, output in batch_update.added:
            self._add(index, params, output)
        for first, second, direction in batch_update.moved:
            self._move(first, second, swap=direction.name == "SWAP")

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """-inf in the rows of constrained requests, in place; logits [B, V]."""
        for index, request in self.requests.items():
            request.catch_up()
            request.state.mask_(logits[index : index + 1])
        return logits

    def _add(self, index: int, params: Any, output: list[int]) -> None:
        self.requests.pop(index, None)
        name = _name(params)
        if name is not None:
            budget = getattr(params, "max_tokens", None)
            self.requests[index] = _Request(self.grammars[name], output, budget, self.device)

    def _move(self, first: int, second: int, *, swap: bool) -> None:
        one, two = self.requests.pop(first, None), self.requests.pop(second, None)
        if one is not None:
            self.requests[second] = one
        if swap and two is not None:
            self.requests[first] = two


def _name(params: Any) -> Any:
    """The grammar that a request asks for; pooling requests have no `extra_args`."""
    return (getattr(params, "extra_args", None) or {}).get(ARGUMENT)
