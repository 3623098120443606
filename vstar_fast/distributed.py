"""Several processes at one run (`torchrun`): work is dealt out by content, what they learn is summed.

Neither order nor a restart moves a piece of work from one process to another. torch is imported when there are
several only.
"""

from __future__ import annotations

import atexit
import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long a process waits for the others: shares of the work are equal up to chance only. torchrun ends all of them
at once when one dies."""


def rank() -> int:
    """Number of this process among those of `torchrun`, from 0."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def mine(keys: Sequence[str], rank: int, size: int) -> list[int]:
    """Indices of the keys that process `rank` of `size` does; equal keys go to the same process.

    Every key goes to exactly one process. Shares are equal up to chance.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} is not one of {size} processes; it counts from 0")
    return [i for i, key in enumerate(keys) if _number(key) % size == rank]


def _number(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


class Ranks:
    """The processes of this run (joined through accelerate where `torchrun` started them); one alone is rank 0 of 1.

    In training every rank knows the whole batch, so losses and gradients are summed as they are: a rank with fewer
    packs, or none, holds nobody up and changes nothing.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.lockstep = False
        """Whether all ranks must go through the model equally often (split weights)."""
        if size() > 1:
            self._join()

    def _join(self) -> None:
        import torch
        from torch import distributed

        if not distributed.is_initialized():
            from accelerate import PartialState

            PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
            atexit.register(_leave)
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    @property
    def first(self) -> bool:
        """Whether this process writes files that all would write alike."""
        return self.rank == 0

    def mine(self, keys: Sequence[str]) -> list[int]:
        """Indices of the keys that this process does."""
        return mine(keys, self.rank, self.size)

    def share(self, things: Sequence[T]) -> list[tuple[T, float]]:
        """This rank's part of what all ranks know, and what each counts.

        In lockstep every rank has as many: those that run short do the first thing again, which counts nothing.
        """
        own = [(thing, 1.0) for thing in things[self.rank :: self.size]]
        missing = -(-len(things) // self.size) - len(own) if self.lockstep else 0
        return own + [(things[0], 0.0)] * missing

    def merged(self, found: Mapping[str, T]) -> dict[str, T]:
        """What all ranks found, by key; waits for all."""
        if self.size == 1:
            return dict(found)
        from torch import distributed

        each: list[Any] = [None] * self.size
        distributed.all_gather_object(each, dict(found))
        return {key: value for part in each for key, value in part.items()}

    def same_start(self, tensors: Sequence[torch.Tensor]) -> None:
        """Give every rank the first rank's values."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

        with torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""
        if self.size > 1:
            from torch import distributed

            value = value.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
            distributed.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Sequence[torch.Tensor]) -> None:
        """Replace each gradient by its sum over all ranks, in one message a kind of number."""
        if self.size == 1:
            return
        import torch
        from torch import distributed

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
            from torch import distributed

            distributed.barrier()


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
