"""A prefix shared by several answers inside Hugging Face's own `generate`.

    model.set_attn_implementation("vstar_prefix")
    cache = SharedPrefixCache()
    model(input_ids=prompts[:, :-1], past_key_values=cache)      # each of V prompts once
    cache.fork(n)
    model.generate(prompts.repeat_interleave(n, 0), past_key_values=cache, ...)

From transformers 5.24 on the argument is called `cache`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from vstar_fast.engine.cache import register
from vstar_fast.errors import ModelError
from vstar_fast.kernels.prefix_attention import Groups, Segment, prefix_attention


class SharedLayer(CacheLayerMixin):
    """Keys and values of V prompts, [V, heads, P, width], and of the tokens of V * n rows behind them."""

    is_sliding = False
    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.prefix: tuple[torch.Tensor, torch.Tensor] | None = None
        self.own: tuple[torch.Tensor, torch.Tensor] | None = None
        self.rows = 0
        """Rows a prompt; 0 before `fork`."""

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: memory is taken by `update`."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """Add keys and values [rows, heads, q, width]; before `fork` all of them, then a handle."""
        new = (key_states, value_states)
        self.is_initialized = True
        if not self.rows:
            self.prefix = new if self.prefix is None else _longer(self.prefix, new)
            return self.prefix
        assert self.prefix is not None
        if key_states.shape[0] != self.rows * self.prefix[0].shape[0]:
            raise ModelError(
                f"{key_states.shape[0]} rows behind {self.prefix[0].shape[0]} prompts forked {self.rows} times; repeat "
                "each prompt so many times, one after the other"
            )
        self.own = new if self.own is None else _longer(self.own, new)
        handle = SharedHandle(self)
        return handle, handle

    def get_seq_length(self) -> int:
        """Tokens of a row so far."""
        return sum(part[0].shape[-2] for part in (self.prefix, self.own) if part is not None)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys of a row, 0)."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class SharedHandle:
    """Stands for all keys of a layer whose prefix is shared."""

    def __init__(self, layer: SharedLayer) -> None:
        self.layer = layer

    def attend(self, query: torch.Tensor, scale: float | None, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Query [rows, heads, q, width] -> [rows, q, heads, width]."""
        prefix, own = self.layer.prefix, self.layer.own
        assert prefix is not None and own is not None
        if mask is not None and not bool(_seen(mask[..., : prefix[0].shape[-2]]).all()):
            raise ModelError("prompts that are padded cannot be shared; give prompts of one length")
        rows, heads, count, width = query.shape
        tokens = torch.arange(rows * count, device=query.device)
        stored = own[0].shape[-2]
        visible = (torch.arange(count, device=query.device) + stored - count + 1).expand(rows, count)
        causal = torch.arange(stored, device=query.device) < visible[0, :, None]
        if mask is not None and bool((_seen(mask[..., -stored:]) != causal).any()):
            raise ModelError("rows that are padded behind a shared prompt see too much; give rows of one length")
        levels = [
            [Segment(*prefix, Groups(tokens.view(prefix[0].shape[0], -1)))],
            [Segment(*own, Groups(tokens.view(rows, count), visible=visible))],
        ]
        out, _ = prefix_attention(query.transpose(1, 2).reshape(rows * count, heads, width), levels, scale)
        return out.view(rows, count, heads, -1)


class SharedPrefixCache(Cache):
    """A cache whose first part is stored once for all rows behind it."""

    def __init__(self) -> None:
        register()
        super().__init__(layer_class_to_replicate=SharedLayer)

    def fork(self, rows: int) -> None:
        """From now on there are `rows` rows behind each prompt."""
        if not self.layers or rows < 1:
            raise ModelError(f"fork({rows}) of {len(self.layers)} layers; run the prompts through the model first")
        for layer in self.layers:
            layer.rows = rows

    def has_previous_state(self, layer_idx: int | None = None, **_kwargs: Any) -> bool:
        """For layers with a running state (linear attention, convolutions) a ModelError: this cache shares keys."""
        if layer_idx is None:
            return False
        raise ModelError(
            f"layer {layer_idx} keeps a running state, which SharedPrefixCache does not share; use the engine"
        )

    def get_conv_state(self, layer_idx: int, *_args: Any, **_kwargs: Any) -> Any:
        """As `has_previous_state`."""
        return self.has_previous_state(layer_idx)

    update_conv_state = get_conv_state


def _longer(before: tuple[torch.Tensor, torch.Tensor], new: tuple[torch.Tensor, torch.Tensor]) -> Any:
    return torch.cat([before[0], new[0]], -2), torch.cat([before[1], new[1]], -2)


def _seen(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype == torch.bool else mask == 0
