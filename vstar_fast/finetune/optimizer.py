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

    @property
    def rate(self) -> float:
        """The learning rate of the next step, the greatest there is."""
        return float(max(self._schedule.get_last_lr()))

    def clip(self) -> float:
        """Scale the gradients down to the greatest norm allowed; their norm before."""
        return float(torch.nn.utils.clip_grad_norm_(self.parameters, self._most))

    def step(self) -> None:
        """Step, forget the gradients."""
        for master, p in zip(self._masters, self.parameters, strict=True):
            if master is not p:
                master.grad = None if p.grad is None else p.grad.float()
        self.adamw.step()
        self._schedule.step()
        for master, p in zip(self._masters, self.parameters, strict=True):
            p.grad = None
            master.grad = None
        self._round()

    def state(self) -> dict[str, Any]:
        """What `restore` needs beside the parameters."""
        masters = [m if m is not p else None for m, p in zip(self._masters, self.parameters, strict=True)]
        return {"adamw": self.adamw.state_dict(), "schedule": self._schedule.state_dict(), "masters": masters}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; the parameters of half precision are set from it, the others are to be in place."""
        self.adamw.load_state_dict(state["adamw"])
        self._schedule.load_state_dict(state["schedule"])
        with torch.no_grad():
            for master, kept in zip(self._masters, state["masters"], strict=True):
                if kept is not None:
                    master.copy_(kept)
        self._round()

    def _round(self) -> None:
        with torch.no_grad():
            for master, p in zip(self._masters, self.parameters, strict=True):
                if master is not p:
                    p.copy_(master)


def _in(name: str, modules: list[str]) -> bool:
    """Whether a parameter of this name belongs to one of the modules."""
    return any(f".{module}." in f".{name}" for module in modules)
