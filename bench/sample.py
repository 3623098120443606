"""`sample` against what generation loops do with torch: argmax, or softmax and multinomial; both with logprobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vstar_fast import backends
from vstar_fast.ops import sample

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

Drawn = tuple[torch.Tensor, torch.Tensor]


def torch_sample(logits: torch.Tensor, temperature: float) -> Drawn:
    """The straightforward way; one global random stream, so a row's draw depends on the rows before it."""
    if temperature == 0:
        ids = logits.argmax(-1)
    else:
        ids = torch.multinomial((logits.float() / temperature).softmax(-1), 1)[:, 0]
    return ids, logits.float().log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def same_greedy(ours: Drawn, theirs: Drawn) -> bool:
    """Same ids and, to rounding, the same log-probabilities."""
    return torch.equal(ours[0], theirs[0]) and torch.allclose(ours[1], theirs[1], atol=1e-4)


def fits(ids: torch.Tensor, probabilities: torch.Tensor) -> bool:
    """Whether draws have the given distribution: chi-square below its mean + 6 standard deviations."""
    expected = probabilities.double() * ids.numel()
    seen = torch.bincount(ids, minlength=probabilities.numel()).double()
    freedom = probabilities.numel() - 1
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    return chi_square < freedom + 6 * (2 * freedom) ** 0.5


def draws_alike(device: str, temperature: float, rows: int = 20_000) -> bool:
    """Both draw from softmax(logits / temperature), seen on a vocabulary small enough to count."""
    few = torch.linspace(-2, 2, 50, device=device)
    logits, seeds = few.expand(rows, -1), torch.arange(rows, device=device)
    probabilities = (few / temperature).softmax(-1).cpu()
    ours, theirs = sample(logits, seeds, 0, temperature)[0], torch_sample(logits, temperature)[0]
    return fits(ours.cpu(), probabilities) and fits(theirs.cpu(), probabilities)


def run(bench: Bench, quick: bool) -> None:
    """Decode steps of SmolLM2's and Qwen's vocabulary."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if bench.device == "cuda" else torch.float32
    shapes = [(64, 49_152)] if quick else [(8, 49_152), (64, 49_152), (64, 151_936), (256, 151_936)]
    backend = backends.choose("sample", bench.device).name
    for rows, columns in shapes:
        logits = (3 * torch.randn(rows, columns, device=bench.device)).to(dtype)
        seeds = torch.arange(rows, device=bench.device)
        shape = f"{rows} x {columns} {str(dtype).removeprefix('torch.')}"

        def greedy_ours(logits: torch.Tensor = logits, seeds: torch.Tensor = seeds) -> Drawn:
            return sample(logits, seeds, 0, 0.0)

        def greedy_torch(logits: torch.Tensor = logits) -> Drawn:
            return torch_sample(logits, 0.0)

        def drawn_ours(logits: torch.Tensor = logits, seeds: torch.Tensor = seeds) -> Drawn:
            return sample(logits, seeds, 3, 0.7)

        def drawn_torch(logits: torch.Tensor = logits) -> Drawn:
            return torch_sample(logits, 0.7)

        def same_draw(ours: Drawn, theirs: Drawn, logits: torch.Tensor = logits) -> bool:
            logprobs = logits.float().log_softmax(-1)
            scored = (torch.allclose(p, logprobs.gather(-1, i[:, None])[:, 0], atol=1e-4) for i, p in (ours, theirs))
            return all(scored) and draws_alike(bench.device, 0.7)

        names = ("vstar-fast", "torch argmax")
        bench.compare(
            f"greedy {shape}", greedy_ours, greedy_torch,
            equal=same_greedy, names=names, work=(rows, "row"), backend=backend, graph="both",
        )  # fmt: skip
        bench.compare(
            f"T=0.7 {shape}", drawn_ours, drawn_torch,
            equal=same_draw, names=("vstar-fast", "torch multinomial"), work=(rows, "row"), backend=backend,
            graph="ours",
        )  # fmt: skip
