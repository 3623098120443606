"""`tree_attention`, forward and backward: answers behind one prefix, every form of it against a row an answer.

On a CPU the fused form; on a GPU that, the Triton kernel and the dense mask, at the shapes of 7B models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from vstar_fast.bench import cost
from vstar_fast.kernels.tree_attention import tree_attention
from vstar_fast.kernels.tree_attention.blocks import seen
from vstar_fast.kernels.tree_attention.tree import Node, Tree

from vstar_fast import backends

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

Results = list[torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """`answers` of `tokens` behind a prefix, one layer of a model."""

    model: str
    heads: int
    key_heads: int
    width: int
    prefix: int = 2048
    answers: int = 4
    tokens: int = 128

    def __str__(self) -> str:
        return f"{self.model}, prefix {self.prefix}, {self.answers} answers of {self.tokens}"


LARGE = (Shape("Video-LLaVA 7B", 32, 32, 128), Shape("Qwen2.5-VL 7B", 28, 4, 128))
SMALL = Shape("SmolLM2 135M", 9, 3, 64, 512, 4, 48)
TINY = Shape("tiny", 4, 2, 16, 60, 3, 9)


def tree_of(prefix: int, answers: int, tokens: int) -> Tree:
    """The prefix with the answers behind it."""
    end = prefix + answers * tokens
    starts = range(prefix, end, tokens)
    return Tree([Node(0, prefix, end, 0), *(Node(s, s + tokens, s + tokens, 1) for s in starts)])


def model_cost(shape: Shape) -> cost.Cost:
    """The blocks of 64 x 64 that hold anything: 4 operations a pair forward, 10 backward; inputs and gradients once."""
    tree = tree_of(shape.prefix, shape.answers, shape.tokens)
    pairs = float(seen(tree, 64, 64).sum()) * 64 * 64
    tokens = tree.tokens * shape.width * 2.0
    moved = 3 * tokens * (2 * shape.heads + 2 * shape.key_heads)
    blocks = -(-tree.tokens // 64)
    return cost.Cost(moved, 14.0 * pairs * shape.heads * shape.width, blocks * shape.heads, 1)


def run(bench: Bench, quick: bool) -> None:
    """Every form there is for the device."""
    shapes = LARGE if bench.device == "cuda" else (TINY,) if quick else (SMALL,)
    card = cost.card_here() or cost.CARDS["H200"]
    names = ("flash", "triton", "sdpa") if bench.device == "cuda" else ("flash",)
    for shape in shapes:
        if bench.echo:
            print(model_cost(shape).line(card))
        for name in names:
            backends.require(name, "the bench")
            compare(bench, shape, name)


def compare(bench: Bench, shape: Shape, backend: str) -> None:
    """One form against a row of prefix and answer for each answer."""
    dtype = torch.bfloat16 if bench.device == "cuda" else torch.float32
    tree = tree_of(shape.prefix, shape.answers, shape.tokens)
    row = tree_of(shape.prefix, 1, shape.tokens)
    made = torch.Generator(bench.device).manual_seed(0)
    sizes = [(tree.tokens, heads, shape.width) for heads in (shape.heads, shape.key_heads, shape.key_heads)]
    inputs = [torch.randn(s, device=bench.device, generator=made).to(dtype).requires_grad_() for s in sizes]

    def of(tensors: Results, tree: Tree) -> Results:
        out = tree_attention(tensors[0], tensors[1], tensors[2], tree, backend=backend)
        return [out, *torch.autograd.grad(out.sum(), tensors)]

    def packed() -> Results:
        return of(inputs, tree)

    def rows() -> Results:
        """Outputs of the answers, one behind the other, and the sums over all rows of the gradients of the prefix."""
        found = []
        for start in range(shape.prefix, tree.tokens, shape.tokens):
            index = torch.cat([torch.arange(shape.prefix), torch.arange(start, start + shape.tokens)]).to(bench.device)
            found.append(of([t.detach()[index].requires_grad_() for t in inputs], row))
        return [torch.cat([f[0][shape.prefix :] for f in found]), *(sum_of(f[i] for f in found) for i in (1, 2, 3))]

    def same(ours: Results, theirs: Results) -> bool:
        loose = 1e-4 if dtype == torch.float32 else 3e-2
        return torch.allclose(ours[0][shape.prefix :].float(), theirs[0].float(), atol=loose, rtol=loose)

    bench.compare(
        str(shape), packed, rows, equal=same, names=(f"packed ({backend})", "a row an answer"), work=(1, "layer"),
        target=3.0 if shape in LARGE and backend != "sdpa" else None, backend=backend,
    )  # fmt: skip


def sum_of(parts: object) -> torch.Tensor:
    """The sum of tensors."""
    return torch.stack(list(parts)).sum(0)  # type: ignore[call-overload]
