"""How the engine's attention gets into unmodified Hugging Face models: a cache layer and an attention function.

A layer's `update` writes the new keys and values where the step's plan wants them, and returns a handle in place of
all keys; the attention function, registered as `vstar_prefix`, takes handles and plain tensors alike.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from vstar_fast.engine.plan import Plan
from vstar_fast.errors import ModelError
from vstar_fast.kernels.prefix_attention import prefix_attention
from vstar_fast.kernels.prefix_attention.sinks import with_sinks
from vstar_fast.models.layers import UNKNOWN, Layers, LayerShape, layers_of
from vstar_fast.models.model_lock import alone
from vstar_fast.models.modules import attending_by, odd_layers

NAME = "vstar_prefix"
"""`attn_implementation` for any model: plain caches go to torch's attention, those of this module are shared."""
PACKED = "vstar_prefix_packed"
"""The same without masks, as the engine calls it: what a token sees is in the plan."""
WINDOW_AND_SINKS = ("sliding_window", "s_aux")
_LATE = threading.local()
"""The layer whose keys are about to come to the attention function, made of what `update` was given."""


class Handle:
    """Stands for all keys (or values) of a layer in the engine's store."""

    def __init__(self, plan: Plan, layer: int) -> None:
        self.plan = plan
        self.layer = layer

    def to(self, *_args: Any, **_kwargs: Any) -> Handle:
        """Itself: a layer that attends to another one's keys may ask for them on its own device."""
        return self

    def attend(
        self, query: torch.Tensor, scale: float | None, window: int | None = None, sinks: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Query [1, heads, N, width] -> [1, N, heads, value width]; `sinks` [heads] are scores of nothing."""
        out, lse = prefix_attention(query[0].transpose(0, 1), self.plan.segments(self.layer, window), scale)
        if sinks is not None:
            out, _ = with_sinks(out, lse, sinks.flatten())
        return out[None]


class PackedLayer(CacheLayerMixin):
    """One layer of the engine's cache; `plan` is set before each call of the model."""

    is_sliding = False
    is_compileable = False

    def __init__(self, layer: int, shape: LayerShape | None, late: bool = False) -> None:
        super().__init__()
        self.layer, self.shape, self.late = layer, shape, late
        self.plan = Plan()
        self.is_initialized = True

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the store holds the memory."""

    def update(self, key_states: Any, value_states: Any, *_args: Any, **_kwargs: Any) -> Any:
        """Keys and values [1, heads, N, width] of packed tokens -> handles; of a late layer as they are."""
        if self.late:
            _LATE.layer = self
            return key_states, value_states
        handle = self.keep(key_states, value_states)
        return handle, handle

    def keep(self, keys: torch.Tensor, values: torch.Tensor) -> Handle:
        """Put keys and values [1, heads, N, width] of packed tokens in their places."""
        given = (keys.shape[1], keys.shape[3], values.shape[3])
        if given != self.shape:
            raise ModelError(
                f"layer {self.layer} has keys and values of (heads, key width, value width) {given} where it had "
                f"{self.shape and tuple(self.shape)} when the model was looked at; it may not change between calls"
            )
        self.plan.write(self.layer, keys[0].transpose(0, 1), values[0].transpose(0, 1))
        return Handle(self.plan, self.layer)

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

    def __init__(self, layers: Layers) -> None:
        super().__init__(layers=[PackedLayer(n, shape, layers.late) for n, shape in enumerate(layers.shapes)])

    def set_plan(self, plan: Plan) -> None:
        """The plan of the next call."""
        _LATE.layer = None
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
    late = getattr(_LATE, "layer", None)
    if late is not None:
        _LATE.layer = None
        key = value = late.keep(key, value)
    if not hasattr(key, "attend"):
        _refuse(module, ("softcap", "s_aux", "sinks"), kwargs, "torch's attention does not have; use eager attention")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    packed = isinstance(key, Handle)
    names = UNKNOWN if packed else (*UNKNOWN, *WINDOW_AND_SINKS)
    _refuse(module, names, kwargs, "shared prefixes do not have; use a plain cache")
    if not packed:
        return key.attend(query, scaling, attention_mask), None
    if attention_mask is not None:
        raise ModelError("packed tokens take no attention mask; use the engine, or a cache of vstar_fast.engine")
    return key.attend(query, scaling, *(kwargs.get(name) for name in WINDOW_AND_SINKS)), None


def _refuse(module: torch.nn.Module, names: Sequence[str], given: dict[str, Any], why: str) -> None:
    odd = [name for name in names if given.get(name) is not None]
    if odd:
        raise ModelError(f"{type(module).__name__} asks for {', '.join(odd)}, which {why}")


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
    """Why a text stack cannot be called with packed tokens, in words; empty where it can. The first time it is called
    for that, the next ones cost nothing."""
    with alone(text_model):
        odd = odd_layers(text_model) or layers_of(text_model).odd
    return f"{type(text_model).__name__} has {odd}, which the engine does not know" if odd else ""


def check(text_model: Any) -> None:
    """Raise ModelError for a text stack whose layers do something that packed tokens have no form for."""
    reason = refusal(text_model)
    if reason:
        raise ModelError(f"{reason}; use a model with full attention")
