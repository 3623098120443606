"""Fifty labels behind one prompt: one packed call over their trie against a full row a label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

CLOSE = {"cpu": 1e-4, "cuda": 0.2}
"""Of log-likelihoods: fp32 on a CPU; on a GPU bf16, whose logits are steps of 0.01 and more."""
TARGET = 25.0
"""Ratio wanted for 50 labels of 4 tokens behind 512 tokens of a 135M model on a CPU."""


def run(bench: Bench, quick: bool) -> None:
    """One case: equal to 1e-4 in log-probability first (1e-5 a token), then CPU seconds of both."""
    import torch
    from vstar_fast.bench import language_models
    from vstar_fast.bench.generate import cost_of

    from vstar_fast.engine import Scorer, TextLM

    name, labels, prefix = ("tiny", 6, 40) if quick else ("SmolLM2-135M", 50, 512)
    model = language_models.build(name, bench.device)
    made = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    prompt = torch.randint(6, vocabulary, (prefix,), generator=made)
    spelled = torch.randint(6, vocabulary, (labels, 4), generator=made)
    lm = TextLM(model)

    def ours() -> Any:
        return Scorer(lm).score([_request(prompt)], [[row.tolist()] for row in spelled])[0].cpu()

    ours()
    mine, cost = cost_of(ours, bench.device)
    theirs, rows = cost_of(lambda: _rows(model, prompt, spelled), bench.device)
    bench.add(
        case=f"{name}, {labels} labels of 4 tokens, P={prefix}",
        subject="one packed call",
        baseline="a row a label",
        metric="cpu" if bench.device == "cpu" else "wall",
        value=cost.seconds / labels * 1e6,
        unit="us/label",
        ratio=rows.seconds / cost.seconds,
        equal=bool((mine - theirs).abs().max() < CLOSE[bench.device]),
        target=None if quick else TARGET,
    )


def _request(prompt: Any) -> Any:
    from vstar_fast.engine import Request

    return Request(prompt[:0], prompt, None, [0])


def _rows(model: Any, prompt: Any, spelled: Any) -> Any:
    """Log-likelihood of each label from a forward pass of prompt and label, several rows at once."""
    import torch

    found = []
    with torch.inference_mode():
        for part in spelled.split(10):
            ids = torch.cat([prompt.expand(len(part), -1), part], 1).to(model.device)
            count = spelled.shape[1]
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=count + 1).logits[:, :-1].float()
            found.append(logits.log_softmax(-1).gather(2, ids[:, -count:, None])[..., 0].sum(1).cpu())
    return torch.cat(found)
