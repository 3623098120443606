"""One training step over several processes (torchrun): packs are dealt out, gradients summed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


class Ranks:
    """The processes of this run (joined through accelerate where `torchrun` started them); one alone is rank 0 of 1.

    Every rank knows the whole batch, so losses and gradients are summed as they are: a rank with fewer packs, or none,
    holds nobody up and changes nothing.
    """

    def __init__(self) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
            from accelerate import PartialState

            PartialState(cpu=not torch.cuda.is_available())
        joined = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if joined else 0
        self.size = distributed.get_world_size() if joined else 1
        self.lockstep = False
        """Whether all ranks must go through the model equally often (sharded weights)."""

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, things: Sequence[T]) -> list[tuple[T, float]]:
        """This rank's part of what all ranks know, and what each counts.

        In lockstep every rank has as many: those that run short do the first thing again, which counts nothing.
        """
        mine = [(thing, 1.0) for thing in things[self.rank :: self.size]]
        missing = -(-len(things) // self.size) - len(mine) if self.lockstep else 0
        return mine + [(things[0], 0.0)] * missing

    def same_start(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give every rank the first rank's values."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    distributed.broadcast(tensor, 0)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""
        if self.size > 1:
            device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
            value = value.to(device)
            distributed.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replace each gradient by its sum over all ranks, in one message a kind of number."""
        if self.size == 1:
            return
        for p in parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        for kind in sorted({p.dtype for p in parameters}, key=str):
            grads = [p.grad for p in parameters if p.dtype == kind and p.grad is not None]
            flat = torch.cat([g.flatten() for g in grads])
            distributed.all_reduce(flat)
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            distributed.barrier()
