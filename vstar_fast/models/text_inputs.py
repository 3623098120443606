"""What a model's body hands to its text stack: read off by stopping the body at that call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from vstar_fast.errors import ModelError

NOT_EXTRA = frozenset(
    {
        "input_ids",
        "inputs_embeds",
        "position_ids",
        "attention_mask",
        "cache",
        "past_key_values",
        "use_cache",
        "cache_position",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
    }
)


@dataclass(slots=True)
class TextInputs:
    """What the text stack is called with for one row of T tokens.

    `inputs_embeds` `[1, T, H]`; `position_ids` int64 `[R, T]` (R = 1, or 3 for M-RoPE: pass `[R, 1, T]`);
    `extras`: further arguments of the same call, needed for these tokens only (Qwen3-VL's deep-stack embeddings).
    `mask`: the call's `attention_mask` where tokens also see others behind them, else None.
    """

    inputs_embeds: torch.Tensor
    position_ids: torch.Tensor
    extras: dict[str, Any] = field(default_factory=dict)
    mask: Any = None

    @property
    def next_position(self) -> int:
        """Position of text that follows in the same row, on every one of the R rows, in a forward pass and `generate`.

        A video's time positions may be larger (Qwen2.5-VL, frames far apart); text does not start behind them.
        """
        last = self.position_ids[:, -1]
        return int((last if bool((last == last[0]).all()) else self.position_ids).max()) + 1

    @property
    def stack_positions(self) -> torch.Tensor:
        """`position_ids` as the text stack takes them for a batch of one: `[1, T]` or `[R, 1, T]`."""
        return self.position_ids if len(self.position_ids) == 1 else self.position_ids[:, None]


class _Reached(Exception):
    def __init__(self, kwargs: dict[str, Any]) -> None:
        super().__init__("text stack reached")
        self.kwargs = kwargs


def call_of(text_model: torch.nn.Module, body: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The arguments with which `body(**inputs)` calls `text_model`, by name; the call itself is not made."""

    def stop(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(module.forward).parameters)
        raise _Reached({**dict(zip(names, args, strict=False)), **kwargs})

    handle = text_model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        body(**inputs, use_cache=False)
    except _Reached as reached:
        return reached.kwargs
    finally:
        handle.remove()
    raise ModelError(f"{type(body).__name__} does not call its text stack {type(text_model).__name__}")


def from_call(kwargs: dict[str, Any], rows: int) -> TextInputs:
    """The arguments of a call of the text stack as TextInputs; `rows` of positions where the call has none."""
    embeds = kwargs["inputs_embeds"]
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(embeds.shape[1], device=embeds.device).expand(rows, -1)
    elif positions.ndim == 3:
        positions = positions[:, 0]
    extras = {k: v for k, v in kwargs.items() if k not in NOT_EXTRA and v is not None}
    return TextInputs(embeds, positions, extras)


@contextmanager
def forward_of(modules: list[torch.nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Within, the modules compute `forward` in place of their own."""
    own = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            del module.forward
            if before is not None:
                module.forward = before
