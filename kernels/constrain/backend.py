"""What a backend of `constrain` is: five functions over `Rows`, in a module of its own that is loaded on use.

advance(rows, tokens) -> lost rows, or None where that would wait      mask(rows, logits)
advance_mask(rows, logits, tokens, tickets), where one launch does both
sample(rows, logits, draw)      forced(rows, tokens, lengths, advance)      fill(rows, out, filled)
"""

from __future__ import annotations

import importlib
import struct
from typing import Any, NamedTuple

import torch
from vstar_fast.kernels.given import address

FREE, DONE, LOST = -1, -2, -3
"""States without a grammar, after the end, and after a token that was not legal (csrc/constrain.h)."""
UNLIMITED = 0x7FFFFFFF
UNKNOWN_FILL = -1000
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Rows(NamedTuple):
    """The arena in host memory and where the rows are, and the rows' state, remaining and step [B] int32."""

    host: torch.Tensor
    block: torch.Tensor
    state: torch.Tensor
    remaining: torch.Tensor
    step: torch.Tensor

    def pointers(self) -> tuple[int, int, int, int]:
        """The rows as the compiled functions take them."""
        return self.state.data_ptr(), self.remaining.data_ptr(), self.step.data_ptr(), self.state.shape[0]

    def distances(self) -> torch.Tensor:
        """[states] int32: fewest tokens from each state to a whole answer."""
        if not self.host.numel():
            return torch.ones(1, dtype=torch.int32, device=self.block.device)
        head = struct.unpack("<18i", self.host[:72].numpy().tobytes())
        states, reach = head[4], head[11]
        pairs = self.block[reach : reach + 4 * states].view(torch.int16).view(-1, 2)
        return pairs[:, 0].int() & 0xFFFF


class Draw(NamedTuple):
    """How to draw: seeds [B] int64, outputs ids [B] int64 and logprobs [B] fp32, and the settings."""

    seeds: torch.Tensor
    ids: torch.Tensor
    logprobs: torch.Tensor
    scale: float
    top_p: int
    """In units of 2^-62."""
    top_k: int

    def pointers(self) -> tuple[int, int, int, float, int, int]:
        """As the compiled functions take them."""
        outputs = (address(self.seeds), self.ids.data_ptr(), self.logprobs.data_ptr())
        return *outputs, self.scale, self.top_p, self.top_k


def logits_pointers(logits: torch.Tensor) -> tuple[int, int, int]:
    """Logits as the compiled functions take them."""
    return address(logits), TYPES[logits.dtype], logits.stride(0)


def load(backend: str) -> Any:
    """The module of a backend."""
    return importlib.import_module(f".{backend}", __package__)
