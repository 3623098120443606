"""`patchify` against what transformers' video processors do in torch: normalise, pad, view, permute, cast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vstar_fast.bench import cost
from vstar_fast.kernels.patchify import Layout, patchify
from vstar_fast.kernels.patchify.reference import run as reference

from vstar_fast import backends

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

MEAN, STD = (122.77, 116.75, 104.09), (68.50, 66.63, 70.32)
BLOCK = 1024
"""Numbers a program writes."""


def model_cost(frames: torch.Tensor, itemsize: int) -> cost.Cost:
    """A byte in and a number out for each; every program writes BLOCK of them."""
    return cost.Cost(frames.numel() * (1 + itemsize), 2.0 * frames.numel(), -(-frames.numel() // BLOCK), 8)


def run(bench: Bench, quick: bool) -> None:
    """32 frames of 336 x 336 (Video-LLaVA's kind) and of 448 x 448 in Qwen2-VL's patches; small ones on a CPU."""
    card = cost.card_here() or cost.CARDS["H200"]
    dtype = torch.bfloat16 if bench.device == "cuda" else torch.float32
    large = bench.device == "cuda" and not quick
    backend = backends.choose("patchify", bench.device).name
    for name, layout, side in (("plain", Layout(MEAN, STD), 336), ("Qwen2-VL", Layout(MEAN, STD, 14, 2, 2), 448)):
        made = torch.Generator(bench.device).manual_seed(side)
        shape = (32 if large else 4, side, side, 3)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device, generator=made).permute(
            0, 3, 1, 2
        )
        expected = model_cost(frames, dtype.itemsize)
        if bench.echo:
            print(expected.line(card))

        def ours(frames: torch.Tensor = frames, layout: Layout = layout) -> torch.Tensor:
            return patchify(frames, layout, dtype)

        def theirs(frames: torch.Tensor = frames, layout: Layout = layout) -> torch.Tensor:
            return reference(frames, layout, dtype)

        def same(a: torch.Tensor, b: torch.Tensor) -> bool:
            return torch.allclose(a.float(), b.float(), atol=2e-2 if dtype == torch.bfloat16 else 1e-5)

        bench.compare(
            f"{name}, {len(frames)} frames of {side} x {side}", ours, theirs, equal=same,
            names=("patchify", "torch, pass by pass"), work=(len(frames), "frame"), backend=backend, graph="ours",
        )  # fmt: skip
