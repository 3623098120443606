"""What the layers of a text stack keep and ask for, seen in one call of the model on two tokens.

Configs name it in a different way in every family (`head_dim`, `global_head_dim`, `kv_lora_rank`, `per_layer_config`,
`num_kv_shared_layers`) and say nothing of what a layer asks the attention function for. A call of the model says it
all, and what is wrong with handles in place of keys shows there and not in the middle of a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache

from vstar_fast.engine import memory
from vstar_fast.engine.store import LayerShape, Shape
from vstar_fast.engine.turn import alone
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.models.modules import evaluating

NAME = "vstar_observed"
UNKNOWN = ("softcap", "s_aux", "position_bias", "sinks")
"""Arguments of transformers' attention functions that shared prefixes have no form for."""


class Layers(NamedTuple):
    """What each layer keeps (None: nothing), the sliding windows there are, and in words what is not known of."""

    shapes: tuple[LayerShape | None, ...]
    windows: tuple[int, ...]
    odd: str


_SEEN: WeakKeyDictionary[Any, Layers] = WeakKeyDictionary()


def layers_of(text_model: Any) -> Layers:
    """The layers of a text stack; the model is called once, the first time."""
    with alone(text_model):
        if text_model not in _SEEN:
            _SEEN[text_model] = _observed(text_model)
        return _SEEN[text_model]


def shape_of(text_model: Any, device: torch.device) -> Shape:
    """The keys and values of one token in all layers."""
    return Shape.of(layers_of(text_model).shapes, text_model.dtype, device)


@contextlib.contextmanager
def attending_by(text_model: Any, name: str) -> Iterator[None]:
    """The text stack attends by the function registered under `name` inside, and as before afterwards."""
    config = text_model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


class _Keys:
    """Stands for all keys or values of a layer."""

    def __init__(self, layer: int, observer: _Observer) -> None:
        self.layer, self.observer = layer, observer

    def to(self, *_args: Any, **_kwargs: Any) -> _Keys:
        """Itself: a layer that attends to another one's keys may ask for them on its own device."""
        return self


class _Observer:
    """Takes notes in place of a cache's `update` and of an attention function."""

    def __init__(self) -> None:
        self.kept: dict[int, LayerShape] = {}
        self.attended: set[int] = set()
        self.windows: set[int] = set()
        self.odd: dict[str, None] = {}

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any) -> Any:
        """Keys and values [1, heads, 2, width] of a layer -> what stands for all of them."""
        shape = LayerShape(keys.shape[1], keys.shape[3], values.shape[3])
        if layer_idx in self.kept or values.shape[1] != shape.heads:
            self.odd["layers that keep more than one key and value a head"] = None
        self.kept[layer_idx] = shape
        return _Keys(layer_idx, self), _Keys(layer_idx, self)

    def index(self, keys: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Keys of an index that says which positions a token sees."""
        self.odd["layers that choose what they attend to by an index"] = None
        return keys

    def attend(
        self, module: torch.nn.Module, keys: _Keys, mask: Any, sliding_window: int | None = None, **kwargs: Any
    ) -> None:
        """A layer attends to keys that `update` gave."""
        self.attended.add(keys.layer)
        if sliding_window is not None:
            self.windows.add(sliding_window)
        asked = [f"attention with {name}" for name in UNKNOWN if kwargs.get(name) is not None]
        asked += ["attention masks of its own"] if mask is not None else []
        asked += ["attention that is not causal"] if not getattr(module, "is_causal", True) else []
        self.odd.update(dict.fromkeys(asked))


def _attend(
    module: torch.nn.Module, query: torch.Tensor, keys: Any, values: Any, mask: Any, *_args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """The attention function of the call: zeros [1, 2, heads, value width]."""
    if not isinstance(keys, _Keys) or not isinstance(values, _Keys) or keys.layer != values.layer:
        raise TypeError(f"{type(module).__name__} attends to something other than a layer's keys and values")
    keys.observer.attend(module, keys, mask, **kwargs)
    heads, tokens = query.shape[1:3]
    return query.new_zeros(1, tokens, heads, keys.observer.kept[keys.layer].value_width), None


def _observed(text_model: Any) -> Layers:
    seen = _Observer()
    cache = DynamicCache(config=text_model.config)
    cache.update = seen.update
    cache.update_indexer = seen.index
    AttentionInterface.register(NAME, _attend)
    embed = text_model.get_input_embeddings()
    try:
        with attending_by(text_model, NAME), evaluating(text_model), torch.no_grad():
            embeds = embed(torch.arange(1, 3, device=text_model.device)[None])
            text_model(inputs_embeds=embeds, attention_mask=None, use_cache=True, **{CACHE: cache})
    except Exception as error:  # whatever a layer does with keys that it is not given; the reason is reported
        if memory.ran_out(error):
            raise
        seen.odd[f"layers that do not take handles for keys ({type(error).__name__}: {str(error)[:120]})"] = None
    if set(seen.kept) - seen.attended:
        seen.odd["attention in code of its own, not through transformers' AttentionInterface"] = None
    count = max(text_model.config.num_hidden_layers, max(seen.kept, default=-1) + 1)
    return Layers(tuple(map(seen.kept.get, range(count))), tuple(sorted(seen.windows)), ", ".join(seen.odd))
