"""Results as short tables for a terminal or a log."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vstar_fast.progress import clock

NOT_MEASURED = "not measured (no clips)"

SHOWN = ("videos", "examples", "answers", "tokens")
"""What a stage's row counts; `summary.json` has the other counters, too."""


def show_run(summary: Mapping[str, Any], run_dir: Path, out: TextIO | None = None) -> None:
    """Print what `summary.json` of a run, or of several seeds, says, and where to read on."""
    console = _console(out)
    runs = summary.get("runs")
    for run in runs or [summary]:
        if runs:
            console.print(f"\nseed {run['seed']}", style="bold")
        console.print(_cycles(run))
        console.print(_stages(run["stages"]))
    if runs:
        console.print(_pooled(summary))
    console.print(f"gain on test: {points(summary['gain'])}", highlight=False)
    if summary.get("stopped"):
        console.print(f"stopped: {summary['stopped']}", markup=False, highlight=False)
    first = run_dir / f"seed-{runs[0]['seed']}" if runs else run_dir
    console.print(f"\n{run_dir / 'summary.json'}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"read the samples: vstar-fast report {first}", markup=False, highlight=False, soft_wrap=True)


def show_values(values: Mapping[str, Any], out: TextIO | None = None) -> None:
    """Print what one stage returned, nested names joined with dots."""
    console = _console(out)
    for name, value in _flat(values):
        console.print(f"{name}: {value}", markup=False, highlight=False, soft_wrap=True)


def show_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], out: TextIO | None = None) -> None:
    """Print a plain table of texts."""
    table = _table(title, *columns)
    table.show_header = any(columns)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _console(out).print(table)


def percent(estimate: Mapping[str, Any]) -> str:
    """An accuracy with its interval: `41.3 % [36.0, 46.7]`."""
    if not estimate["n"]:
        return NOT_MEASURED
    value, low, high = (100 * estimate[k] for k in ("value", "low", "high"))
    return f"{value:.1f} % \\[{low:.1f}, {high:.1f}]"


def points(estimate: Mapping[str, Any]) -> str:
    """A difference of accuracies in points with its interval and number of clips."""
    if not estimate["n"]:
        return NOT_MEASURED
    value, low, high = (100 * estimate[k] for k in ("value", "low", "high"))
    return f"{value:+.1f} points \\[{low:+.1f}, {high:+.1f}], {estimate['n']} clips"


def _console(out: TextIO | None) -> Console:
    file = out or sys.stdout
    return Console(file=file) if file.isatty() else Console(file=file, width=110)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _cycles(run: Mapping[str, Any]) -> Table:
    table = _table("", "", "test accuracy", "dev", "kept direct", "kept rationalized", "most rejected for")
    table.add_row("base", percent(run["base"]["accuracy"]), _value(run["base"]["dev"]["accuracy"]))
    for i, cycle in enumerate(run["cycles"]):
        kept = [f"{cycle['kept'][m]} of {cycle['asked'][m]}" for m in ("direct", "rationalized")]
        reasons = ", ".join(f"{r} {n}" for r, n in list(cycle["rejected"].items())[:3])
        table.add_row(
            f"cycle {i}", percent(cycle["accuracy"]), _value(cycle["dev"]["accuracy"]), *kept, reasons or "nothing"
        )
    for name, control in (run.get("controls") or {}).items():
        table.add_row(name.replace("_", " "), percent(control["accuracy"]), style="dim")
    return table


def _pooled(summary: Mapping[str, Any]) -> Table:
    table = _table(f"over {len(summary['seeds'])} seeds", "", "test accuracy")
    controls = {name.replace("_", " "): c for name, c in (summary.get("controls") or {}).items()}
    for name, part in ({"base": summary["base"], "last cycle": summary["last"]} | controls).items():
        table.add_row(name, percent(part["accuracy"]))
    return table


def _stages(stages: Mapping[str, Any]) -> Table:
    total = sum(s["seconds"] for s in stages.values()) or 1.0
    table = _table(f"time: {clock(total)}", "stage", "seconds", "share", "CPU s", "peak MiB", "done")
    for name, stage in sorted(stages.items(), key=lambda item: -item[1]["seconds"]):
        counted = {what: stage["items"].get(what) for what in SHOWN}
        items = [f"{n:g} {what} ({_rate(stage['per_second'].get(what, 0))}/s)" for what, n in counted.items() if n]
        numbers = [f"{stage['seconds']:.1f}", f"{100 * stage['seconds'] / total:.0f} %", f"{stage['cpu_seconds']:.1f}"]
        table.add_row(name, *numbers, f"{stage['peak_mib']:.0f}", ", ".join(items))
    return table


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _value(estimate: Mapping[str, Any]) -> str:
    return f"{100 * estimate['value']:.1f} %" if estimate["n"] else NOT_MEASURED


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        rows += _flat(value, f"{prefix}{name}.") if nested else [(f"{prefix}{name}", value)]
    return rows
