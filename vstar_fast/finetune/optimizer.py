"""AdamW over what is trained, with fp32 copies of weights that are kept in half precision."""

from __future__ import annotations

from typing import Any

import torch

from vstar_fast.config import FinetuneConfig
from vstar_fast.models.video_lm import VideoLM


class Optimizer:
    """AdamW with warm-up, schedule and clipping; the projector has a rate of its own.

    A small step is lost in bf16 (8 bits): such weights are stepped in fp32 and rounded after.
    """

    def __init__(self, lm: VideoLM, peft: Any, config: FinetuneConfig, steps: int) -> None:
        from transformers import get_scheduler

        named = [(n, p) for n, p in peft.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self._most = config.max_grad_norm
        self._masters = [p.detach().float() if p.dtype.itemsize < 4 else p for p in self.parameters]
        projectors = lm.projector_names()
        rates = [config.projector_lr if _in(n, projectors) else config.lr for n, _ in named]
        groups = [{"params": [m], "lr": rate} for m, rate in zip(self._masters, rates, strict=True)]
        self.adamw = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
        warmup = int(config.warmup_ratio * steps)  # rounded up, a short run would waste its first step at rate 0
        self._schedule = get_scheduler(config.schedule, self.adamw, num_warmup_steps=warmup, num_training_steps=steps)

    def step(self) -> float:
        """Clip, step, forget the gradients; the gradient's norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._most)
        for master, p in zip(self._masters, self.parameters, strict=True):
            if master is not p:
                master.grad = None if p.grad is None else p.grad.float()
        self.adamw.step()
        self._schedule.step()
        with torch.no_grad():
            for master, p in zip(self._masters, self.parameters, strict=True):
                if master is not p:
                    p.copy_(master)
                p.grad = None
                master.grad = None
        return float(norm)


def _in(name: str, modules: list[str]) -> bool:
    """Whether a parameter of this name belongs to one of the modules."""
    return any(f".{module}." in f".{name}" for module in modules)
