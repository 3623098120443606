"""How the engine's attention gets into unmodified Hugging Face models: a cache layer and an attention function.

A layer's `update` writes the new keys and values where the step's plan wants them, and returns a handle in place of
all keys; the attention function, registered as `vstar_prefix`, takes handles and plain tensors alike.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vstar_fast.engine.layers import UNKNOWN, attending_by, layers_of
from vstar_fast.engine.plan import Plan
from vstar_fast.engine.store import LayerShape, Shape
from vstar_fast.engine.turn import alone
from vstar_fast.errors import ModelError
from vstar_fast.kernels.prefix_attention import prefix_attention
from vstar_fast.models.modules import odd_layers

NAME = "vstar_prefix"
"""`attn_implementation` for any model: plain caches go to torch's attention, those of this module are shared."""
PACKED = "vstar_prefix_packed"
"""The same without masks, as the engine calls it: what a token sees is in the plan."""
REFUSED = (*UNKNOWN, "sliding_window")


class Handle:
    """Stands for all keys (or values) of a layer in the engine's store."""

    def __init__(self, plan: Plan, layer: int) -> None:
        self.plan = plan
        self.layer = layer

    def to(self, *_args: Any, **_kwargs: Any) -> Handle:
        """Itself: a layer that attends to another one's keys may ask for them on its own device."""
        return self

    def attend(self, query: torch.Tensor, scale: float | None) -> torch.Tensor:
        """Query [1, heads, N, width] -> [1, N, heads, width]."""
        out, _ = prefix_attention(query[0].transpose(0, 1), self.plan.segments(self.layer), scale)
        return out[None]


class PackedLayer(CacheLayerMixin):
    """One layer of the engine's cache; `plan` is set before each call of the model."""

    is_sliding = False
    is_compileable = False

    def __init__(self, layer: int, shape: LayerShape | None) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape
        self.plan = Plan()
        self.is_initialized = True

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the store holds the memory."""

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_kwargs: Any) -> Any:
        """Keys and values [1, heads, N, width] of packed tokens -> handles."""
        given = (key_states.shape[1], key_states.shape[3], value_states.shape[3])
        if given != self.shape:
            raise ModelError(
                f"layer {self.layer} has keys and values of (heads, key width, value width) {given} where it had "
                f"{self.shape and tuple(self.shape)} when the model was looked at; it may not change between calls"
            )
        self.plan.write(self.layer, key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))
        handle = Handle(self.plan, self.layer)
        return handle, handle

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """No mask is made for packed tokens."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Positions are always given, so nothing is counted."""
        return 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class PackedCache(Cache):
    """Cache of packed tokens: `cache.plan = plan`, then call the text stack with it."""

    def __init__(self, shape: Shape) -> None:
        kinds = [None if place is None else shape.kinds[place[0]] for place in shape.layers]
        super().__init__(layers=[PackedLayer(n, kind) for n, kind in enumerate(kinds)])

    def set_plan(self, plan: Plan) -> None:
        """The plan of the next call."""
        for layer in self.layers:
            layer.plan = plan


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function behind `vstar_prefix`, with the signature of transformers' own."""
    if not hasattr(key, "attend"):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    odd = [name for name in REFUSED if kwargs.get(name) is not None]
    if odd:
        raise ModelError(
            f"{type(module).__name__} asks for {', '.join(odd)}, which shared prefixes do not have; use a plain cache"
        )
    if attention_mask is not None and not getattr(key, "takes_mask", False):
        raise ModelError("packed tokens take no attention mask; use the engine, or a cache of vstar_fast.engine")
    return key.attend(query, scaling) if attention_mask is None else key.attend(query, scaling, attention_mask), None


def register() -> None:
    """Make `vstar_prefix` known to transformers; again is harmless."""
    AttentionInterface.register(NAME, attention)
    AttentionInterface.register(PACKED, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attending(text_model: Any) -> contextlib.AbstractContextManager[None]:
    """The text stack attends to packed tokens inside, and as before afterwards."""
    register()
    return attending_by(text_model, PACKED)


def refusal(text_model: Any) -> str:
    """Why a text stack cannot be called with packed tokens, in words; empty where it can. Cheap from the second call
    on."""
    with alone(text_model):
        odd = odd_layers(text_model)
    if not odd:
        layers = layers_of(text_model)
        odd = layers.odd
        if not odd and layers.windows:
            odd = f"layers with a sliding window of {', '.join(map(str, layers.windows))} tokens"
    return f"{type(text_model).__name__} has {odd}, which the engine does not know" if odd else ""


def check(text_model: Any) -> None:
    """Raise ModelError for a text stack whose layers do something that packed tokens have no form for."""
    reason = refusal(text_model)
    if reason:
        raise ModelError(f"{reason}; use a model with full attention")
