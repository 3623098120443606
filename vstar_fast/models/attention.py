"""Which attention a model's tower and text stack run outside the engine: flash-attention where it works, else SDPA.

transformers has the code for flash-attention 2, 3 and 4; here it is decided, for each part of a model, which of them
to ask it for. "auto" takes the first of `backends.ORDER["attention"]` that is installed, that the part's class
supports, and that gives torch's values and gradients on this card at the part's head width.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from vstar_fast import backends
from vstar_fast.errors import BackendError
from vstar_fast.kernels.prefix_attention.flash_attn import FUNCTIONS

IMPLEMENTATION = {
    "flash-attn-4": "flash_attention_4",
    "flash-attn-3": "flash_attention_3",
    "flash-attn-2": "flash_attention_2",
    "sdpa": "sdpa",
}
"""Backend -> `attn_implementation` of transformers."""
LOOSE = 3e-2
"""Largest error of values or gradients, as a share of the largest of them: 16-bit sums in another order."""


def use(model: Any, backend: str = "auto") -> dict[str, backends.Choice]:
    """Switch every part of a Hugging Face model that can be; part (a key of its config) -> what it will run, and why.

    `model` lies on its device in its dtype. On a CPU nothing is changed. Raises BackendError for a backend asked for by
    name that is missing, or that a part cannot run.
    """
    choice = backends.choose("attention", model.device, backend)
    if choice.name == "sdpa" and backend == "auto":
        return {part: backends.Choice(running(config), choice.reason) for part, config in parts(model).items()}
    return {part: _switch(model, part, config, backend) for part, config in parts(model).items()}


def parts(model: Any) -> dict[str, Any]:
    """Key in the model's config -> config of each part with attention; the model's own under "" without parts."""
    config = model.config
    found = {key: getattr(config, key, None) for key in getattr(config, "sub_configs", {})}
    held = {key: part for key, part in found.items() if part is not None and _head_width(part)}
    return held or {"": config}


def running(config: Any) -> str:
    """The backend that a part with this config runs; what transformers calls it where it is none of ours."""
    name = config._attn_implementation
    return next((ours for ours, theirs in IMPLEMENTATION.items() if theirs == name), str(name))


def ran_in_tower(body: Any) -> None:
    """Note which attention the vision tower of a model body has just run."""
    config = getattr(body.config, "vision_config", None) or body.config
    if config._attn_implementation is not None:  # a tower of convolutions has none
        backends.ran("attention", running(config))


def _switch(model: Any, part: str, config: Any, backend: str) -> backends.Choice:
    kind = str(model.device).split(":")[0]
    names = backends.ORDER["attention"][kind] if backend == "auto" else (backend,)
    missed: list[str] = []
    for name in names:
        why = _obstacle(model, part, config, name)
        if not why:
            return backends.Choice(name, "; ".join([f"{part or 'model'} runs {name}", *missed]))
        missed.append(f"not {name}: {why}")
    if backend != "auto":
        raise BackendError(f"{type(model).__name__} cannot run {backend!r} in {part or 'itself'}: {'; '.join(missed)}")
    return backends.Choice(running(config), "; ".join(missed))


def _obstacle(model: Any, part: str, config: Any, name: str) -> str:
    """Switch a part to a backend; why that is not possible, empty where it was."""
    probe = backends.available(name)
    if not probe.ok:
        return probe.why
    if name != "sdpa":
        if part in ("", "text_config") and not getattr(model, "_supports_flash_attn", True):
            return f"{type(model).__name__} does not support it"  # Gemma 4's masks would be dropped, not refused
        if model.dtype not in (torch.float16, torch.bfloat16):
            return f"it takes fp16 and bf16, the model is {str(model.dtype).removeprefix('torch.')}"
        why = differs(name, _head_width(config), model.dtype, model.device)
        if why:
            return why
    before = model.config._attn_implementation
    wanted = {"": before, part: IMPLEMENTATION[name]} if part else IMPLEMENTATION[name]
    try:
        model.set_attn_implementation(wanted)
    except (ValueError, ImportError) as error:
        return str(error).split("\n", 1)[0]
    got = running(config)
    return "" if got == name else f"transformers kept {got}"


def _head_width(config: Any) -> int:
    """Width of an attention head; 0 for a part without attention."""
    if getattr(config, "is_heterogeneous", False):
        return max(_head_width(config.per_layer_config[i]) for i in range(config.num_hidden_layers))
    width = getattr(config, "head_dim", None)
    if width:
        return int(width)
    size = getattr(config, "hidden_size", None) or getattr(config, "embed_dim", None)
    heads = getattr(config, "num_attention_heads", None) or getattr(config, "num_heads", None)
    return int(size) // int(heads) if isinstance(size, int) and isinstance(heads, int) and heads else 0


@functools.cache
def differs(name: str, width: int, dtype: torch.dtype, device: torch.device) -> str:
    """Why a flash-attention cannot be used here: its values or gradients are not torch's, or it does not run at all."""
    try:
        attend = load(name)
        ours = _values_and_gradients(attend, width, dtype, device)
    except Exception as error:  # a package compiled for other cards fails in ways of its own; the reason is reported
        logging.getLogger(__name__).warning("%s does not run here at width %d: %s", name, width, error)
        return f"it fails at head width {width} ({type(error).__name__}: {str(error)[:120]})"
    theirs = _values_and_gradients(sdpa, width, dtype, device)
    for what, a, b in zip(("values", "query", "key", "value"), ours, theirs, strict=True):
        if not bool((a - b).abs().max() <= LOOSE * b.abs().max()):
            kind = "" if what == "values" else " gradients"
            return f"its {what}{kind} are not torch's at head width {width}"
    return ""


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Causal attention of [B, T, H, D]."""


def load(name: str) -> Attend:
    """Causal attention by a flash-attention package."""
    function = FUNCTIONS[name]()

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        found = function(query, key, value, causal=True)
        out: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return out

    return attend


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The same by torch."""
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


def _values_and_gradients(
    attend: Attend, width: int, dtype: torch.dtype, device: torch.device, tokens: int = 200
) -> list[torch.Tensor]:
    made = torch.Generator().manual_seed(width)
    shapes = [(2, tokens, heads, width) for heads in (4, 2, 2)]
    inputs = [torch.randn(s, generator=made).to(device, dtype).requires_grad_() for s in shapes]
    weights = torch.randn(shapes[0], generator=made).to(device)
    with torch.enable_grad():
        out = attend(*inputs)
        found = [out, *torch.autograd.grad((out.float() * weights).sum(), inputs)]
    return [t.detach().float() for t in found]
