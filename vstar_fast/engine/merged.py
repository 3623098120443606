"""An adapter's weights merged for as long as answers are drawn; the model is bit for bit what it was afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from vstar_fast.models import memory


@contextlib.contextmanager
def merged(model: Any, device: torch.device) -> Iterator[bool]:
    """Inside, each LoRA layer of `model` is one linear layer with the sum of its weights, a copy.

    Two small products a layer and step are saved. False, and nothing is changed, when there is no adapter or not
    enough memory for the copies.
    """
    layers = {name: module for name, module in model.named_modules() if _plain(module)} if _has_peft(model) else {}
    size = sum(module.base_layer.weight.nbytes for module in layers.values())
    if not layers or not memory.room_for_copies(size, device):
        yield False
        return
    parents = {name: model.get_submodule(name.rpartition(".")[0]) for name in layers}
    for name, module in layers.items():
        setattr(parents[name], name.rpartition(".")[2], _sum(module))
    try:
        yield True
    finally:
        for name, module in layers.items():
            setattr(parents[name], name.rpartition(".")[2], module)


def _has_peft(model: Any) -> bool:
    return hasattr(model, "peft_config") or any("lora_" in name for name, _ in model.named_parameters())


def _plain(module: torch.nn.Module) -> bool:
    """A LoRA layer over an ordinary linear one that is nothing but weight + B A."""
    from peft.tuners.lora import Linear

    if not isinstance(module, Linear) or type(module.base_layer) is not torch.nn.Linear:
        return False
    odd = any(module.use_dora.get(a) or module.lora_bias.get(a) for a in module.active_adapters)
    return not (module.merged or module.disable_adapters or odd)


@torch.no_grad()
def _sum(module: Any) -> torch.nn.Linear:
    base = module.base_layer
    weight = base.weight.detach()
    for adapter in module.active_adapters:
        if adapter in module.lora_A:
            weight = _with_delta(weight, module, adapter)
    linear = torch.nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    linear.bias = base.bias
    return linear.eval()


def _with_delta(weight: torch.Tensor, module: Any, adapter: str) -> torch.Tensor:
    """The weight with an adapter's share added; one pass over it where nothing is to be cast or turned."""
    a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    if a.dtype == b.dtype == weight.dtype and not module.fan_in_fan_out:
        return torch.addmm(weight, b, a, alpha=module.scaling[adapter])
    return weight + module.get_delta_weight(adapter).to(weight)
