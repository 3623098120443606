"""Prompts through a flash-attention package: their own tokens, causally, with the log-sum-exp that merging needs.

What stands whole before many rows of a prompt goes there too: the pieces before a piece. A question's few rows behind
a video, and keys of several lengths, are what the op's other backends are for; both results are merged. A package is
used after it gave the reference's values and log-sum-exp on this card, at this head width and number of query heads a
key head.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from vstar_fast.kernels.launch import on

from vstar_fast import backends

from .flash_gpu import takes
from .parts import merge, run_parts
from .segment import Groups, Segment

LEAST = 128
"""Tokens of a call, and rows of a group that sees all keys, from which on they are worth a kernel of their own."""
LOOSE, LOOSE_LSE = 3e-2, 1e-2
"""Largest error of values, as a share of the largest of them, and of the log-sum-exp: 16-bit sums in another order."""
FLAGS = ("return_lse", "return_attn_probs")
"""By which a package is asked for the log-sum-exp; one without such an option always gives it."""

Levels = Sequence[Sequence[Segment]]
Found = tuple[torch.Tensor, torch.Tensor]


def _flash_attention_4() -> Any:
    from flash_attn.cute import flash_attn_func

    return flash_attn_func


def _flash_attention_3() -> Any:
    from flash_attn_interface import flash_attn_func

    return flash_attn_func


def _flash_attention_2() -> Any:
    from flash_attn import flash_attn_func

    return flash_attn_func


FUNCTIONS: dict[str, Callable[[], Any]] = {
    "flash-attn-4": _flash_attention_4,
    "flash-attn-3": _flash_attention_3,
    "flash-attn-2": _flash_attention_2,
}
"""Backend -> its `flash_attn_func`, imported when asked for."""


def prompts(query: torch.Tensor, levels: Levels) -> bool:
    """Whether a call is for whole prompts, and a flash-attention could do their own tokens."""
    return len(query) >= LEAST and any(_own(query, level) and level[0].groups.causal for level in levels)


def best(query: torch.Tensor, levels: Levels) -> str:
    """The first backend of `backends.ORDER["prefill"]` that runs, and gives the right values, for such a call."""
    keys = next(level[0].keys for level in levels if _own(query, level))
    return _best(query.shape[-1], query.shape[1] // keys.shape[1], query.dtype, query.device)


@functools.cache
def _best(width: int, times: int, dtype: torch.dtype, device: torch.device) -> str:
    for name in backends.ORDER["prefill"][device.type]:
        if backends.available(name).ok and not (name in FUNCTIONS and differs(name, width, times, dtype, device)):
            return name
    return backends.choose("prefix_attention", device).name


def run(name: str, query: torch.Tensor, levels: Levels, scale: float) -> Found:
    """As `reference.run`, the levels that it has a form for by the package `name`."""
    from . import prefix_attention

    own = [level for level in levels if _own(query, level)]
    found = run_parts(_part(name), query, own, scale)
    rest = [level for level in levels if level and not _own(query, level)]
    return merge(*found, *prefix_attention(query, rest, scale)) if rest else found


def _own(query: torch.Tensor, level: Sequence[Segment]) -> bool:
    """Whether a level is prompts' own tokens, or all that many rows see, of a form that flash-attention takes."""
    many = all(s.groups.causal or s.groups.tokens.shape[1] >= LEAST for s in level)
    return bool(level) and many and all(takes(query, *s) for s in level)


@functools.cache
def _part(name: str) -> Callable[..., Found]:
    function = FUNCTIONS[name]()
    options = dict.fromkeys([flag for flag in FLAGS if flag in inspect.signature(function).parameters][:1], True)

    def part(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, groups: Groups, scale: float) -> Found:
        rows = query.index_select(0, groups.gather).view(*groups.tokens.shape, *query.shape[1:])
        with on(query.device):
            out, lse, *_ = function(
                rows, keys.transpose(1, 2), values.transpose(1, 2), softmax_scale=scale, causal=groups.causal, **options
            )
        return out.flatten(0, 1), lse.float().transpose(1, 2).flatten(0, 1)

    return part


@functools.cache
def differs(name: str, width: int, times: int, dtype: torch.dtype, device: torch.device) -> str:
    """Why a package cannot be used here, at `times` query heads a key head; empty where it can."""
    from .reference import run as reference

    query, levels = _example(width, times, dtype, device)
    try:
        ours = run_parts(_part(name), query, levels, 0.1)
    except Exception as error:  # a package compiled for other cards fails in ways of its own; the reason is reported
        why = f"it fails at head width {width} ({type(error).__name__}: {str(error)[:120]})"
    else:
        theirs = reference(query, levels, 0.1)
        (out, lse), (want, want_lse) = ((values.float(), lse.float()) for values, lse in (ours, theirs))
        same = bool((out - want).abs().max() <= LOOSE * want.abs().max())
        same_lse = bool((lse - want_lse).abs().max() <= LOOSE_LSE)
        part = "values" if same_lse else "log-sum-exps"
        why = "" if same and same_lse else f"its {part} are not the reference's at head width {width}"
    if why:
        logging.getLogger(__name__).warning("%s is not used for prompts: %s", name, why)
    return why


def _example(width: int, times: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, Levels]:
    """Two prompts of up to 200 tokens in slots of 256, as they lie in the engine's arenas, behind 120 others."""
    made = torch.Generator().manual_seed(width)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=made).to(device, dtype)

    tokens = torch.arange(400).view(2, 200)
    tokens[1, 170:] = -1
    own = Groups(tokens.to(device), causal=True)
    before = Groups(torch.arange(370, device=device)[None])

    def segment(groups: Groups, slots: int, positions: int) -> Segment:
        keys, values = (random(slots, 2, 256, width)[:, :, :positions] for _ in range(2))
        return Segment(keys, values, groups)

    return random(370, 2 * times, width), [[segment(before, 1, 120)], [segment(own, 2, 200)]]
