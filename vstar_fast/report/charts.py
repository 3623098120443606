"""The one drawn chart of the report: accuracy over the cycles, as SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

WIDTH, HEIGHT = 1024, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 22, 34


class Mark(NamedTuple):
    """One estimate in the chart; `kind` is "test", "dev" or "control" and a CSS class."""

    name: str
    kind: str
    estimate: Mapping[str, float]


def accuracy(columns: Sequence[Sequence[Mark]]) -> str:
    """Estimates with their 95 % intervals, one column of marks a model; test marks are joined by a line."""
    columns = [[m for m in column if math.isfinite(m.estimate["value"])] for column in columns]
    columns = [column for column in columns if column]
    top = _top([m.estimate["high"] for column in columns for m in column])
    step = (WIDTH - LEFT - RIGHT) / max(1, len(columns))
    parts = [_grid(top)]
    trail: list[tuple[float, float]] = []
    for i, column in enumerate(columns):
        x = LEFT + step * (i + 0.5)
        if i and column[0].kind == "control" != columns[i - 1][0].kind:
            parts.append(f'<path class="apart" d="M{LEFT + step * i:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(_text(x, HEIGHT - 12, column[0].name, "name"))
        for mark in column:
            at = x + (22 if mark.kind == "dev" else 0)
            parts.append(_mark(at, mark, top))
            if mark.kind == "test":
                trail.append((at, _y(mark.estimate["value"], top)))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in trail)
    body = "".join(parts)
    label = "Accuracy of each model with its 95 % interval"
    return (
        f'<svg class="accuracy" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<polyline class="trail" points="{line}"/>{body}</svg>'
    )


def _top(highs: Sequence[float]) -> float:
    """Upper end of the scale: the next tenth above every interval."""
    return min(1.0, math.ceil(max([*highs, 0.1]) * 10 + 0.2) / 10)


def _y(value: float, top: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)


def _grid(top: float) -> str:
    tick = 0.1 if top <= 0.6 else 0.2
    lines = []
    for i in range(int(top / tick + 1e-9) + 1):
        y = _y(i * tick, top)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(_text(LEFT - 8, y + 4, f"{100 * i * tick:.0f} %", "tick"))
    return "".join(lines)


def _mark(x: float, mark: Mark, top: float) -> str:
    e = mark.estimate
    low, value, high = (_y(e[k], top) for k in ("low", "value", "high"))
    told = f"{mark.name}, {mark.kind}: {percent(e)} (n = {e['n']:g})"
    whisker = f'<path class="whisker" d="M{x - 5:.1f} {low:.1f}h10m-5 0V{high:.1f}m-5 0h10"/>'
    if mark.kind == "control":
        dot = f'<rect class="dot" x="{x - 4.5:.1f}" y="{value - 4.5:.1f}" width="9" height="9"/>'
    else:
        dot = f'<circle class="dot" cx="{x:.1f}" cy="{value:.1f}" r="{3.5 if mark.kind == "dev" else 5.5}"/>'
    label = "" if mark.kind == "dev" else _text(x - 12, value - 6, f"{100 * e['value']:.1f} %", "value")
    return f'<g class="{mark.kind}"><title>{escape(told)}</title>{whisker}{dot}{label}</g>'


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def percent(estimate: Mapping[str, Any]) -> str:
    """An accuracy with its interval, e.g. `41.3 % [36.0, 46.7]`."""
    value, low, high = (100 * estimate[k] for k in ("value", "low", "high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"
