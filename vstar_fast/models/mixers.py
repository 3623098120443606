"""Layers that keep a running state in place of keys: gated delta nets, short convolutions, Mamba.

Which submodule of a layer that is, and what its state is like, is seen from the module and from the cache that
transformers makes for the model's config; no family is named here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from vstar_fast.errors import ModelError, out_of_memory
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.models.modules import evaluating

CACHES = (CACHE, "past_key_values", "cache_params")
"""What mixers call the argument that their cache comes in."""
MASK = "attention_mask"
NO_MIXER = ("moe", "mlp")
"""Layer types whose place in a cache is of no use; some versions make it one for a state."""
COPIES = re.compile(r"\.(original_module|modules_to_save\.[^.]+)$")
"""End of the names of a module and its copies inside PEFT's wrapper, one of which is called."""
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
        self.has_previous_state = dict.fromkeys(range(count), given is not None)
        self.conv_kernel_size = {i: None if t is None else t.shape[-1] for i, t in enumerate(conv)}
        there = next((t for t in conv if t is not None), None)
        self.dtype: torch.dtype | None = None if there is None else there.dtype
        self.device: torch.device | None = None if there is None else there.device

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
    """The token mixer of a layer, or its copy in an adapter, called by hand on batches of sequences of one length."""

    def __init__(self, module: torch.nn.Module, layer: int, states: int) -> None:
        self.module, self.layer = module, layer
        self.names = _parameters(type(module).forward)
        self._cache_name = next(name for name in CACHES if name in self.names)
        self._layer = StateLayer(number_of_states=states)
        self._cache = Cache(layers=[self._layer] * (layer + 1))

    @property
    def kind(self) -> Any:
        """Mixers of one kind have states of one shape and dtype."""
        parameters = self.module.named_parameters()
        return type(self.module), tuple((name, tuple(p.shape), p.dtype) for name, p in parameters)

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
    """The mixers of a text stack as it is now: an adapter may put others in place.

    `types`: what the config calls them; `odd`: in words, what is not known of them;
    `each_bytes`: of the states of one sequence, by layer.
    """

    def __init__(self, found: Sequence[Mixer], types: Iterable[str], odd: str, each_bytes: Sequence[int]) -> None:
        self.found, self.types, self.odd, self.each_bytes = tuple(found), frozenset(types), odd, tuple(each_bytes)
        self.row_bytes = sum(each_bytes)

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Mixer]:
        return iter(self.found)


class _Tried(NamedTuple):
    """What a few tokens show of a kind of mixer."""

    state_bytes: int
    odd: str
    """Why it cannot go on from a state with several tokens; empty where it can."""


_TRIED: WeakKeyDictionary[Any, dict[Any, _Tried]] = WeakKeyDictionary()


def mixers_of(text_model: Any) -> Mixers:
    """The mixers of a text stack; each kind of them is called on a few tokens, the first time."""
    config = text_model.config
    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, AttributeError, TypeError):  # a layer type, or config, that transformers has no cache for
        layers = []
    places = [n for n, layer in enumerate(layers) if isinstance(layer, LinearAttentionCacheLayerMixin)]
    places = [n for n in places if _type_of(config, n) not in NO_MIXER]
    by_layer = _by_layer(text_model) if places else {}
    found, types, odd, sizes = [], set(), set(), []
    for number in places:
        own = by_layer.get(number, {})
        if len(own) != 1 or isinstance(layers[number], CacheLayerMixin):
            odd.add(f"layers of {_type_of(config, number)}")
            continue
        mixers = [Mixer(module, number, layers[number].number_of_states) for module in next(iter(own.values()))]
        tried = _tried(text_model, mixers[0])
        if tried.odd:
            odd.add(f"layers of {_type_of(config, number)} ({type(mixers[0].module).__name__} {tried.odd})")
            continue
        found += mixers
        types.add(_type_of(config, number))
        sizes.append(tried.state_bytes)
    return Mixers(found, types, ", ".join(sorted(odd)), sizes)


def _by_layer(text_model: Any) -> dict[int, dict[str, list[torch.nn.Module]]]:
    """By layer, modules that are given a cache and hold no other such module; copies of one under one name."""
    taking = {m: name for name, m in text_model.named_modules() if _takes_cache(m)}
    found: dict[int, dict[str, list[torch.nn.Module]]] = {}
    for module, name in taking.items():
        if not any(inner is not module and inner in taking for inner in module.modules()):
            found.setdefault(module.layer_idx, {}).setdefault(COPIES.sub("", name), []).append(module)
    return found


def _takes_cache(module: torch.nn.Module) -> bool:
    named = isinstance(getattr(module, "layer_idx", None), int)
    return named and any(name in _parameters(type(module).forward) for name in CACHES)


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the arguments of a module's forward, as its class has it."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _type_of(config: Any, layer: int) -> str:
    kinds = getattr(config, "layer_types", None) or ()
    return kinds[layer] if layer < len(kinds) else "a state"


def _tried(text_model: Any, mixer: Mixer) -> _Tried:
    known = _TRIED.setdefault(text_model, {})
    if mixer.kind not in known:
        made = torch.randn(1, 4, text_model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad(), evaluating(text_model):
                known[mixer.kind] = _try(mixer, made.to(text_model.device, text_model.dtype))
        except Exception as error:  # whatever a module does with hidden states and a cache alone; it is reported
            if out_of_memory(error):
                raise
            known[mixer.kind] = _Tried(0, f"cannot be called by itself: {type(error).__name__}: {str(error)[:120]}")
    return known[mixer.kind]


def _try(mixer: Mixer, x: torch.Tensor) -> _Tried:
    """Four tokens [1, 4, H] together, and two behind the state of the other two; without weights, sizes alone."""

    def rest(state: Tensors | None) -> torch.Tensor:
        return mixer.call(mixer.module, x[:, 2:], state and [None if t is None else t.clone() for t in state], {})[0]

    whole, _ = mixer.call(mixer.module, x, None, {})
    _, state = mixer.call(mixer.module, x[:, :2], None, {})
    size = sum(t.nbytes for t in state if t is not None)
    found = rest(state)
    if not isinstance(whole, torch.Tensor) or whole.shape != x.shape or found.shape != x[:, 2:].shape:
        return _Tried(size, "gives something other than hidden states")
    if found.is_meta:
        return _Tried(size, "")
    wanted = whole[:, 2:].float()
    same = bool((found.float() - wanted).norm() <= TOLERANCE * wanted.norm())
    others = ([None if t is None else t + (i == n) for i, t in enumerate(state)] for n in range(len(state)))
    read = all(state[n] is None or not torch.equal(rest(other), found) for n, other in enumerate(others))
    return _Tried(size, "" if same and read else "takes up a state one token at a time")
