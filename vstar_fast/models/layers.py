"""What the layers of a text stack keep and ask for, seen in one call of the model on two tokens.

Configs name it in a different way in every family (`head_dim`, `global_head_dim`, `kv_lora_rank`, `per_layer_config`,
`num_kv_shared_layers`) and say nothing of what a layer asks the attention function for. A call of the model says it
all, and what is wrong with handles in place of keys shows there and not in the middle of a run.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache

from vstar_fast.errors import out_of_memory
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.models.model_lock import alone
from vstar_fast.models.modules import attending_by, evaluating

NAME = "vstar_observed"
UNKNOWN = ("softcap", "position_bias", "sinks")
"""Arguments of transformers' attention functions that packed tokens have no form for."""
TOKENS = 2
LOOSE = 1e-2
"""How much of its largest value a key may differ by when it is made beside another one."""


class LayerShape(NamedTuple):
    """What a layer keeps of one token: so many heads of a key and a value."""

    heads: int
    key_width: int
    value_width: int


class Layers(NamedTuple):
    """What each layer keeps (None: nothing), the sliding windows there are, and in words what is not known of.

    `late`: a layer hands the cache something of which it makes keys and values afterwards, token by token (latent
    attention); `shapes` are those of the keys and values.
    """

    shapes: tuple[LayerShape | None, ...]
    windows: tuple[int, ...]
    odd: str
    late: bool = False


_SEEN: WeakKeyDictionary[Any, Layers] = WeakKeyDictionary()
_NOW = threading.local()
"""Who observes the call that this thread makes."""


def layers_of(text_model: Any) -> Layers:
    """The layers of a text stack; the model is called the first time, once or, for latent attention, three times."""
    with alone(text_model):
        if text_model not in _SEEN:
            _SEEN[text_model] = _observed(text_model)
        return _SEEN[text_model]


class _Keys:
    """Stands for all keys or values of a layer."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def to(self, *_args: Any, **_kwargs: Any) -> _Keys:
        """Itself: a layer that attends to another one's keys may ask for them on its own device."""
        return self


class _Observer:
    """Takes notes in place of a cache's `update` and of an attention function; keys are handles."""

    def __init__(self) -> None:
        self.kept: dict[int, LayerShape] = {}
        self.windows: dict[int, set[int | None]] = {}
        self.odd: dict[str, None] = {}

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any) -> Any:
        """Keys and values [1, heads, TOKENS, width] of a layer -> what stands for all of them."""
        self._keep(layer_idx, keys, values)
        return _Keys(layer_idx), _Keys(layer_idx)

    def index(self, keys: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Keys of an index that says which positions a token sees."""
        self.odd["layers that choose what they attend to by an index"] = None
        return keys

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: Any, value: Any, attention_mask: Any = None,
        *_args: Any, sliding_window: int | None = None, **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        """The attention function of the call: zeros [1, TOKENS, heads, value width]."""
        layer = self._layer_of(module, key, value)
        self.windows.setdefault(layer, set()).add(sliding_window)
        asked = [f"attention with {name}" for name in UNKNOWN if kwargs.get(name) is not None]
        asked += ["attention masks of its own"] if attention_mask is not None else []
        asked += ["attention that is not causal"] if not getattr(module, "is_causal", True) else []
        self.odd.update(dict.fromkeys(asked))
        return query.new_zeros(1, query.shape[2], query.shape[1], self.kept[layer].value_width), None

    def _keep(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if layer in self.kept or keys.shape[:3] != values.shape[:3] or keys.shape[2] != TOKENS:
            self.odd["layers that keep more or less than one key and value a head and token"] = None
        self.kept[layer] = LayerShape(keys.shape[1], keys.shape[3], values.shape[3])

    def _layer_of(self, module: torch.nn.Module, keys: Any, values: Any) -> int:
        if not isinstance(keys, _Keys) or not isinstance(values, _Keys) or keys.layer != values.layer:
            raise TypeError(f"{type(module).__name__} attends to something other than a layer's keys and values")
        return keys.layer


class _LateObserver(_Observer):
    """The cache gives back what it was given, with `ahead` further tokens in front; keys are made of that."""

    def __init__(self, ahead: int) -> None:
        super().__init__()
        self.ahead = ahead
        self.made: list[torch.Tensor] = []
        self._updated: int | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any) -> Any:
        """As they are, behind those ahead."""
        self._updated = layer_idx
        return _ahead(self.ahead, keys), _ahead(self.ahead, values)

    def _layer_of(self, module: torch.nn.Module, keys: Any, values: Any) -> int:
        layer, self._updated = self._updated, None
        if layer is None:
            raise TypeError(f"{type(module).__name__} attends to keys that the cache was not asked for")
        own = [t[:, :, self.ahead :] for t in (keys, values)]
        self._keep(layer, *own)
        self.made += own
        return layer


def _ahead(count: int, states: torch.Tensor) -> torch.Tensor:
    """Random states of so many tokens in front of `states` [1, heads, tokens, width]."""
    size = (*states.shape[:2], count, states.shape[3])
    return torch.cat([torch.randn(size, generator=torch.Generator().manual_seed(0)).to(states), states], 2)


def _attend(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    found: tuple[torch.Tensor, None] = _NOW.observer.attend(*args, **kwargs)
    return found


def _observed(text_model: Any) -> Layers:
    seen = _Observer()
    error = _call(text_model, seen)
    elsewhere = text_model.device.type == "meta" and seen.kept.keys() <= seen.windows.keys()  # no experts are chosen
    if not error or elsewhere:
        return _layers(text_model, seen)
    late = _LateObserver(0), _LateObserver(1)
    if not any(_call(text_model, each) for each in late) and _same(late[0].made, late[1].made):
        return _layers(text_model, late[0])._replace(late=True)
    seen.odd[f"layers that fail with handles in place of keys ({error})"] = None
    return _layers(text_model, seen)


def _call(text_model: Any, seen: _Observer) -> str:
    """Call the stack on TOKENS tokens; the error that this ended in, if it did."""
    AttentionInterface.register(NAME, _attend)
    _NOW.observer = seen
    try:
        cache = DynamicCache(config=text_model.config)
        cache.update, cache.update_indexer = seen.update, seen.index
        with attending_by(text_model, NAME), evaluating(text_model), torch.no_grad():
            ids = torch.arange(1, TOKENS + 1, device=text_model.device)[None]
            text_model(input_ids=ids, attention_mask=None, use_cache=True, **{CACHE: cache})
    except Exception as error:  # whatever a layer does with keys that it is not given; the reason is reported
        if out_of_memory(error):
            raise
        return f"{type(error).__name__}: {str(error)[:120]}"
    return ""


def _same(made: Sequence[torch.Tensor], beside: Sequence[torch.Tensor]) -> bool:
    """Whether keys and values are what they were without another token beside them; on meta nothing can be told."""
    pairs = list(zip(made, beside, strict=True))
    return all(
        a.is_meta or bool((a.float() - b.float()).abs().max() <= LOOSE * a.float().abs().max()) for a, b in pairs
    )


def _layers(text_model: Any, seen: _Observer) -> Layers:
    config = text_model.config
    if set(seen.kept) - set(seen.windows):
        seen.odd["attention in code of its own, not through transformers' AttentionInterface"] = None
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        said = {"full_attention": False, "sliding_attention": True}.get(kind)
        if said is not None and any((window is not None) != said for window in seen.windows.get(layer, ())):
            seen.odd["sliding windows that its layers do not hand on as its config says"] = None
    windows = {window for each in seen.windows.values() for window in each if window is not None}
    count = max(config.num_hidden_layers, max(seen.kept, default=-1) + 1)
    return Layers(tuple(map(seen.kept.get, range(count))), tuple(sorted(windows)), ", ".join(seen.odd))
