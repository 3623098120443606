"""A training step of a text stack, forward and backward: answers packed behind one prefix against a row an answer.

A few layers of 7B models on a GPU, a tiny stack on a CPU. The random weights are frozen, as LoRA leaves them; gradients
go down to the embeddings. No head and no optimizer: neither does more for rows than for what is packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vstar_fast.bench.tree_attention import tree_of

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

TARGET = 3.0
"""Ratio wanted on a GPU at 4 answers."""
LOOSE = {"cpu": 1e-4, "cuda": 6e-2}
"""Largest error, as a share of the largest value: fp32, and bf16 through several layers."""

Results = list[torch.Tensor]


@dataclass(frozen=True)
class Case:
    """`answers` of `tokens` behind a prefix, in the first `layers` of a model."""

    model: str
    layers: int
    prefix: int
    answers: int = 4
    tokens: int = 128

    def __str__(self) -> str:
        shape = f"prefix {self.prefix}, {self.answers} answers of {self.tokens}"
        return f"{self.layers} layers of {self.model}, {shape}"


CASES = {
    "cuda": (Case("Qwen2.5-VL-7B", 4, 2048), Case("Video-LLaVA-7B", 4, 2048), Case("Qwen2.5-VL-7B", 4, 2048, 1)),
    "cpu": (Case("tiny", 2, 90, 4, 8),),
}


def run(bench: Bench, quick: bool) -> None:
    """Time and memory of a step."""
    for case in CASES[bench.device][: 1 if quick else None]:
        measure(bench, case)


def measure(bench: Bench, case: Case) -> None:
    """Rows of one case: outputs of the answers and all gradients are equal first."""
    from vstar_fast.bench.generate import cost_of

    from vstar_fast import backends

    step = Step(case, bench.device)
    names, wanted = ("packed", "a row an answer"), TARGET if bench.device == "cuda" and case.answers == 4 else None
    backend = backends.choose("tree_attention", bench.device).name
    bench.compare(
        str(case), step.packed, step.rows, equal=step.same, names=names, work=(1, "step"), target=wanted,
        backend=backend,
    )  # fmt: skip
    ours, theirs = (cost_of(work, bench.device)[1].mib for work in (step.packed, step.rows))
    bench.add(
        case=f"{case}, memory on top of the model", subject=names[0], baseline=names[1], metric="memory",
        value=max(ours, 1.0), unit="MiB", ratio=max(theirs, 1.0) / max(ours, 1.0), equal=True, backend=backend,
    )  # fmt: skip


class Step:
    """Both forms of a step over the same embeddings."""

    def __init__(self, case: Case, device: str) -> None:
        from vstar_fast.bench import language_models

        from vstar_fast.engine import TextLM

        self.case, self.device = case, device
        self.lm: Any = TextLM(language_models.build(case.model, device, layers=case.layers).requires_grad_(False))
        self.tree = tree_of(case.prefix, case.answers, case.tokens)
        made, width = torch.Generator().manual_seed(0), self.lm.model.config.hidden_size
        self.embeds = torch.randn(self.tree.tokens, width, generator=made).to(device, self.lm.model.dtype)
        self.weights = torch.randn(case.answers, case.tokens, width, generator=made).to(device)
        own = torch.arange(case.tokens).repeat(case.answers)
        self.positions = torch.cat([torch.arange(case.prefix), case.prefix + own])[None].to(device)
        starts = case.prefix + case.tokens * torch.arange(case.answers)[:, None]
        prefix = torch.arange(case.prefix).expand(case.answers, -1)
        self.index = torch.cat([prefix, starts + torch.arange(case.tokens)], 1).to(device)

    def packed(self) -> Results:
        """Outputs of the answers [A, T, H], and the gradient of the embeddings [N, H]."""
        from vstar_fast.finetune.loss import packed_rows

        leaf = self.embeds.detach().requires_grad_()
        with packed_rows(self.lm):
            hidden = self._hidden(leaf[None], position_ids=self.positions, vstar_tree=self.tree)[0, self.case.prefix :]
            return self._results(hidden.view(self.weights.shape), leaf)

    def rows(self) -> Results:
        """The same outputs, and gradients [A, P + T, H]."""
        leaf = self.embeds[self.index].requires_grad_()
        return self._results(self._hidden(leaf)[:, self.case.prefix :], leaf)

    def _hidden(self, embeds: torch.Tensor, **more: Any) -> torch.Tensor:
        found: torch.Tensor = self.lm.text_model(
            inputs_embeds=embeds, attention_mask=None, use_cache=False, **more
        ).last_hidden_state
        return found

    def _results(self, hidden: torch.Tensor, leaf: torch.Tensor) -> Results:
        return [hidden.detach(), *torch.autograd.grad((hidden.float() * self.weights).sum(), leaf)]

    def same(self, ours: Results, theirs: Results) -> bool:
        """Equal to the rounding of the dtype; gradients of the prefix are summed over the rows."""
        prefix = self.case.prefix
        summed = torch.cat([theirs[1][:, :prefix].float().sum(0), theirs[1][:, prefix:].float().flatten(0, 1)])
        pairs = ((ours[0].float(), theirs[0].float()), (ours[1].float(), summed))
        return all(bool((a - b).abs().max() <= LOOSE[self.device] * b.abs().max()) for a, b in pairs)
