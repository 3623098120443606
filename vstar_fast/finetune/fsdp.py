"""Frozen weights split over the processes (FSDP2), for a base model that leaves no room for training beside it.

Each layer's weights are gathered when it runs, forward and backward, and forgotten behind it. What is trained, and
what is no layer (embeddings, head, projector, tower), every process holds whole.
"""

from __future__ import annotations

from typing import Any

import torch

from vstar_fast.config import FinetuneConfig
from vstar_fast.distributed import Ranks
from vstar_fast.errors import ConfigError, ModelError
from vstar_fast.models.video_lm import VideoLM


def split_layers(lm: VideoLM, config: FinetuneConfig, ranks: Ranks) -> None:
    """Split the layers of the text stack over `ranks`; the model moves to this process's GPU, if it has one.

    Load the model on the CPU where it does not fit on a GPU. It stays split: load it again for anything else.
    Raises ConfigError without several processes, with `tune = "full"`, or for quantized weights.
    """
    if ranks.size == 1:
        raise ConfigError("finetune.split = true needs several processes: start it with torchrun --nproc-per-node N")
    if config.tune == "full":
        raise ConfigError("finetune.split = true splits what is not trained; it needs finetune.tune = lora")
    if any(not p.is_floating_point() for p in lm.text_model.parameters()):
        raise ConfigError("finetune.split = true cannot split weights of 4 bits; set model.quantize = none")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(kind, (ranks.size,))
    for layer in layers_of(lm.text_model):
        if not isinstance(layer, FSDPModule):
            fully_shard(layer, mesh=mesh, ignored_params={p for p in layer.parameters() if p.requires_grad})
    lm.device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)
    lm.model.to(lm.device)
    ranks.lockstep = True


def layers_of(text_model: Any) -> list[Any]:
    """The decoder layers of a text stack: the longest list of modules in it by weight."""
    lists: list[torch.nn.Module] = [m for m in text_model.modules() if isinstance(m, torch.nn.ModuleList)]
    if not lists:
        raise ModelError(f"{type(text_model).__name__} has no list of layers; set finetune.split = false")
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters())).children())
