"""Writes ROOFLINE.md: what every hot kernel and a whole decode step must cost on a card, beside what was measured.

python -m vstar_fast.bench.roofline_page            # predictions alone
python -m vstar_fast.bench.roofline_page OUTDIR     # with the figures of bench/on_gpu.sh in that folder
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vstar_fast.bench import cost

CARDS = ("A100", "H100", "H200")
BENCHES = ("prefix_attention", "tree_attention", "attention", "patchify", "decode_step", "train_step", "sample")
HEAD = """# Roofline

Written by `python -m vstar_fast.bench.roofline_page`; do not edit by hand. Predictions come from bytes and operations
alone: {bytes:.0%} of a data sheet's bandwidth, {flops:.0%} of its dense 16-bit rate, and multiprocessors left idle by a
last wave that is not full. **A prediction is not a measurement.**
"""
UNMEASURED = "**No card has run this yet: nothing below the predictions.** `bench/on_gpu.sh OUTDIR` fills it in.\n"


def kernels() -> Iterator[tuple[str, cost.Card, cost.Cost]]:
    """(case, card, cost) of each kernel at the shapes of 7B models; one layer."""
    from vstar_fast.bench import attention, prefix_attention, tree_attention

    for card in (cost.CARDS[name] for name in CARDS):
        for base in (prefix_attention.MHA, prefix_attention.GQA):
            for positions in (500, 2000, 8000):
                shape = prefix_attention.Shape(base.model, base.heads, base.key_heads, base.width, positions=positions)
                yield f"decode attention, {shape}", card, prefix_attention.model_cost(shape, card)
        for tree in tree_attention.LARGE:
            yield f"training attention and gradients, {tree}", card, tree_attention.model_cost(tree)
        for name, size in attention.SHAPES.items():
            yield f"flash-attention and gradients, {name}", card, attention.model_cost(size)
        numbers = 32 * 3 * 448 * 448
        yield "patchify, 32 frames of 448 x 448", card, cost.Cost(3.0 * numbers, 2.0 * numbers, numbers // 1024, 8)


def step_bytes(model: str, videos: int = 32, k: int = 8, prefix: int = 2000, own: int = 96) -> float:
    """Bytes of a decode step: linear weights and head, each prefix and each row's own tokens once, 16 bits a number."""
    from vstar_fast.bench.language_models import SHAPES

    s = SHAPES[model]
    width = s.get("head_dim", s["hidden_size"] // s["num_attention_heads"])
    heads = 2 * s["num_attention_heads"] + 2 * s["num_key_value_heads"]
    layer = s["hidden_size"] * (heads * width + 3 * s["intermediate_size"])
    weights = s["num_hidden_layers"] * layer + s["vocab_size"] * s["hidden_size"]
    token = 2 * s["num_hidden_layers"] * s["num_key_value_heads"] * width
    return 2.0 * (weights + token * (videos * prefix + videos * k * own))


def page(folder: Path | None = None) -> str:
    """The whole text; with a folder, its measurements below the predictions."""
    lines = [HEAD.format(bytes=cost.REACHED_BYTES, flops=cost.REACHED_FLOPS)]
    lines += [
        "## Kernels, predicted\n",
        *_table(("kernel", "card", "MB", "GFLOP", "programs", "waves", "us"), _kernels()),
    ]
    lines += ["\n## A decode step, predicted (32 videos x 8 answers, P = 2000, 96 tokens so far)\n"]
    lines += _table(("model", "GB", *(f"{name}, ms" for name in CARDS)), _steps())
    lines += ["\n## Measured\n"]
    reports = _reports(folder) if folder else []
    if not reports:
        return "\n".join([*lines, UNMEASURED])
    for report in reports:
        lines += _measured(report)
    return "\n".join([*lines, ""])


def _kernels() -> Iterator[Sequence[str]]:
    for case, card, c in kernels():
        figures = (c.bytes / 1e6, c.flops / 1e9)
        times = (f"{c.programs}", f"{c.waves(card):.2f}", f"{c.seconds(card) * 1e6:.0f}")
        yield case, card.name, *(f"{f:.1f}" for f in figures), *times


def _steps() -> Iterator[Sequence[str]]:
    from vstar_fast.bench.language_models import SHAPES

    for model in (name for name in SHAPES if "VL" in name or "LLaVA" in name):
        moved = step_bytes(model)
        rates = (cost.REACHED_BYTES * cost.CARDS[name].bytes_s for name in CARDS)
        yield model, f"{moved / 1e9:.1f}", *(f"{moved / rate * 1e3:.1f}" for rate in rates)


def _reports(folder: Path) -> list[dict[str, Any]]:
    files = [folder / f"bench-{name}.json" for name in BENCHES]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]
    return [report for report in found if report["header"]["gpu"]]


def _measured(report: dict[str, Any]) -> Iterator[str]:
    head = report["header"]
    versions = ", ".join(f"{name} {number}" for name, number in head["versions"].items() if number)
    card = ", ".join(f"{name} {value}" for name, value in (head.get("card") or {}).items())
    cut = ", cut short" if report.get("cut") else ""
    yield f"### {head['bench']}: {head['gpu']}, {head['date']}{cut}\n\n{versions}{'; ' if card else ''}{card}\n"
    yield from _table(("case", "subject", "metric", "figure", "ratio", "target"), map(_row, report["rows"]))
    yield ""


def _row(row: dict[str, Any]) -> Sequence[str]:
    value = "results differ" if row["value"] is None else f"{row['value']:.4g} {row['unit']}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}x {row['baseline']}"
    goal = "" if row["target"] is None else f"{row['target']:g}x {'met' if row['met'] else 'MISSED'}"
    return row["case"], f"{row['subject']} [{row['backend']}]", row["metric"], value, ratio, goal


def _table(names: Sequence[str], rows: Any) -> Iterator[str]:
    yield "| " + " | ".join(names) + " |"
    yield "|" + " --- |" * len(names)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


if __name__ == "__main__":
    print(page(Path(sys.argv[1]) if len(sys.argv) > 1 else None), end="")
