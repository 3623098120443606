"""Layers that keep a running state in place of keys: gated delta nets, short convolutions, Mamba.

Which submodule of a layer that is, and what its state is like, is seen from the module and from the cache that
transformers makes for the model's config; no family is named here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from vstar_fast.errors import ModelError
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.models.modules import evaluating

CACHES = (CACHE, "past_key_values", "cache_params")
"""What mixers call the argument that their cache comes in."""
MASK = "attention_mask"
NO_MIXER = ("moe", "mlp")
"""Layer types whose place in a cache is of no use; some versions make it one for a state."""
TOLERANCE = 0.05
"""Of the size of a layer's output: more than rounding."""

Tensors = list[torch.Tensor | None]
"""States of B sequences in one layer, dimension 0 is B: those of its convolutions, then those of its recurrences."""


class StateLayer(LinearAttentionLayer):
    """A layer's states, replaced and not written over: gradients pass, and whoever else holds them keeps them.

    Only what updates a state in place itself, as the kernels for a single token do, changes what was `put`.
    """

    def put(self, given: Tensors | None) -> None:
        """Stand at these states; None: at the beginning."""
        count = self.number_of_states
        tensors = given or [None] * (2 * count)
        conv, recurrent = tensors[:count], tensors[count:]
        self.conv_states, self.recurrent_states = dict(enumerate(conv)), dict(enumerate(recurrent))
        self.is_conv_states_initialized = {i: t is not None for i, t in enumerate(conv)}
        self.is_recurrent_states_initialized = {i: t is not None for i, t in enumerate(recurrent)}
        self.has_previous_state = {i: given is not None for i in range(count)}
        self.conv_kernel_size = {i: None if t is None else t.shape[-1] for i, t in enumerate(conv)}
        there = next((t for t in conv if t is not None), None)
        self.dtype, self.device = (None, None) if there is None else (there.dtype, there.device)

    def take(self) -> Tensors:
        """The states as they stand, which are let go of."""
        found = [*self.conv_states.values(), *self.recurrent_states.values()]
        self.put(None)
        return found

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **_kwargs: Any
    ) -> torch.Tensor:
        """Inputs [B, C, T] of a convolution -> with those before them; the last `conv_kernel_size` are the state."""
        before = self.conv_states[state_idx]
        size = conv_kernel_size or (conv_states if before is None else before).shape[-1]
        if before is None:
            full = torch.nn.functional.pad(conv_states, (max(0, size - conv_states.shape[-1]), 0))
        else:
            full = torch.cat([before, conv_states], -1)
        self.dtype, self.device = full.dtype, full.device
        self.conv_kernel_size[state_idx] = size
        self.conv_states[state_idx] = full[..., -size:].clone(memory_format=torch.contiguous_format)
        self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True
        return full

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, state_idx: int = 0, **_kwargs: Any
    ) -> torch.Tensor:
        """The new state, in the dtype of the one before it."""
        before = self.recurrent_states[state_idx]
        found = recurrent_states if before is None else recurrent_states.to(before.dtype)
        self.recurrent_states[state_idx] = found
        self.is_recurrent_states_initialized[state_idx] = True
        return found


class Mixer:
    """The token mixer of one layer, called by hand on batches of sequences of one length."""

    def __init__(self, module: torch.nn.Module, layer: int, states: int) -> None:
        self.module, self.layer = module, layer
        self.names = _parameters(module)
        self._cache_name = next(name for name in CACHES if name in self.names)
        self._layer = StateLayer(number_of_states=states)
        self._cache = Cache(layers=[self._layer] * (layer + 1))

    def call(
        self, forward: Callable[..., Any], hidden: torch.Tensor, before: Tensors | None, given: dict[str, Any]
    ) -> tuple[Any, Tensors]:
        """(what `forward` makes of hidden states [B, L, H] behind states, the states after them).

        `forward`: the module, or its own forward. States of a single token may be changed in place.
        """
        self._layer.put(before)
        out = forward(hidden, **{self._cache_name: self._cache}, **given)
        return out, self._layer.take()

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        """(hidden states, all other arguments) of a call, without its cache."""
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        hidden = given.pop(self.names[0])
        given.pop(self._cache_name, None)
        if given.pop(MASK, None) is not None:
            raise ModelError(f"{type(self.module).__name__} is given an attention mask, which packed tokens have not")
        return hidden, given


class Mixers:
    """All mixers of a text stack, in the order of its layers; the `types` of layers that have one, by their config.

    `odd`: in words, what is not known of them. `hidden` [1, 4, H]: to try them on.
    """

    def __init__(self, found: list[Mixer], types: frozenset[str], hidden: torch.Tensor) -> None:
        self.found, self.types = found, types
        self.odd = ""
        self._hidden = hidden

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Mixer]:
        return iter(self.found)

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of the states of one sequence in all layers."""
        return sum(self.each_bytes)

    @cached_property
    def each_bytes(self) -> list[int]:
        """Bytes of the states of one sequence in each layer."""
        sizes: dict[Any, int] = {}
        for mixer in self.found:
            if (kind := _kind(mixer.module)) not in sizes:
                _, after = mixer.call(mixer.module, self._hidden[:, :1], None, {})
                sizes[kind] = sum(t.nbytes for t in after if t is not None)
        return [sizes[_kind(mixer.module)] for mixer in self.found]

    def forgetful(self) -> str:
        """The first kind of mixer that takes no heed of a state before several tokens; empty where all do."""
        seen = set()
        for mixer in self.found:
            if (kind := _kind(mixer.module)) not in seen and not self._goes_on(mixer):
                return type(mixer.module).__name__
            seen.add(kind)
        return ""

    def _goes_on(self, mixer: Mixer) -> bool:
        """Whether two tokens behind the state of two others come out as those of four together."""
        x = self._hidden
        whole, _ = mixer.call(mixer.module, x, None, {})
        _, state = mixer.call(mixer.module, x[:, :2], None, {})
        rest, _ = mixer.call(mixer.module, x[:, 2:], state, {})
        if not isinstance(whole, torch.Tensor) or whole.shape != x.shape or rest.shape != x[:, 2:].shape:
            return False
        wanted = whole[:, 2:].float()
        same = (rest.float() - wanted).norm() <= TOLERANCE * wanted.norm()
        return bool(same) and all(self._reads(mixer, state, n, rest) for n, t in enumerate(state) if t is not None)

    def _reads(self, mixer: Mixer, state: Tensors, number: int, rest: torch.Tensor) -> bool:
        """Whether what comes behind a state, `rest`, is another thing where one of its tensors is."""
        other = [None if t is None else t + (n == number) for n, t in enumerate(state)]
        changed, _ = mixer.call(mixer.module, self._hidden[:, 2:], other, {})
        return not torch.equal(changed, rest)


_FOUND: WeakKeyDictionary[Any, Mixers] = WeakKeyDictionary()


def mixers_of(text_model: Any) -> Mixers:
    """The mixers of a text stack; each kind of them is called on a few tokens, the first time."""
    if text_model not in _FOUND:
        found = _looked_up(text_model)
        if len(found):
            with torch.no_grad(), evaluating(text_model):
                odd = found.forgetful()
            found.odd = odd and f"layers of {odd}, which take up a state one token at a time"
        _FOUND[text_model] = found
    return _FOUND[text_model]


def _looked_up(text_model: Any) -> Mixers:
    config = text_model.config
    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, AttributeError, TypeError):  # a layer type, or config, that transformers has no cache for
        layers = []
    found, odd = [], set()
    for number, layer in enumerate(layers):
        if not isinstance(layer, LinearAttentionCacheLayerMixin) or _type_of(config, number) in NO_MIXER:
            continue
        modules = _mixers_in(text_model, number)
        if len(modules) == 1 and not isinstance(layer, CacheLayerMixin):
            found.append(Mixer(modules[0], number, layer.number_of_states))
        else:
            odd.add(_type_of(config, number))
    types = {_type_of(config, mixer.layer) for mixer in found} - odd
    hidden = torch.randn(1, 4, config.hidden_size, generator=torch.Generator().manual_seed(0))
    return Mixers(found, frozenset(types), hidden.to(text_model.device, text_model.dtype))


def _mixers_in(text_model: Any, layer: int) -> list[torch.nn.Module]:
    """Modules of a layer that are given a cache and hold no other such module."""
    taking = [m for m in text_model.modules() if getattr(m, "layer_idx", None) == layer and _takes_cache(m)]
    return [m for m in taking if not any(o is not m and o in taking for o in m.modules())]


def _takes_cache(module: torch.nn.Module) -> bool:
    return any(name in _parameters(module) for name in CACHES)


def _parameters(module: torch.nn.Module) -> list[str]:
    """Names of the arguments of a module's forward, as its class has it."""
    return list(inspect.signature(type(module).forward).parameters)[1:]


def _type_of(config: Any, layer: int) -> str:
    kinds = getattr(config, "layer_types", None) or ()
    return kinds[layer] if layer < len(kinds) else "a state"


def _kind(module: torch.nn.Module) -> Any:
    """Modules of one kind have states of one shape."""
    return type(module), tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
