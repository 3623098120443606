"""Benchmarks that first prove equality, then time subject and baseline in turn, and name the machine.

A bench is a file of this folder with `def run(bench: Bench, quick: bool) -> None`:

    def run(bench, quick):
        bench.compare("64 x 49152", ours, theirs, equal=same, names=("vstar-fast", "torch"), target=4.0)

`main(name, quick, json_path)` runs one and prints its rows; the JSON holds a header and the rows.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from vstar_fast.bench import cost
from vstar_fast.bench.machine import header

from vstar_fast.errors import ConfigError, VstarError

HELPERS = {
    "compile_kernels",
    "cost",
    "decode_clips",
    "decode_rivals",
    "generate_rivals",
    "generate_split",
    "label_rivals",
    "language_models",
    "machine",
    "roofline",
    "roofline_page",
    "runner",
    "towers",
    "video_models",
}
ABSENT = "absent"
"""`metric` of a row without a figure; its `baseline` says why."""


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` above 1: the subject is better; None where there is nothing to compare with."""

    case: str
    subject: str
    baseline: str
    metric: str
    value: float | None
    unit: str
    ratio: float | None
    equal: bool
    target: float | None
    met: bool | None
    threads: int
    backend: str


@dataclass
class Bench:
    """Collects the rows of one bench. `device` is "cpu" or "cuda"."""

    name: str
    quick: bool = False
    device: str = "cpu"
    echo: bool = True
    rows: list[Row] = field(default_factory=list)
    kept: Callable[[], None] = field(default=lambda: None, repr=False)
    """Called behind each row: what a bench that is cut short leaves."""

    def compare(
        self,
        case: str,
        subject: Callable[[], Any],
        baseline: Callable[[], Any],
        *,
        equal: Callable[[Any, Any], bool],
        names: tuple[str, str],
        work: tuple[int, str] = (1, "call"),
        target: float | None = None,
        metric: str | None = None,
        backend: str = "auto",
        threads: int | None = None,
        graph: str = "",
    ) -> None:
        """Rows "cpu" and "wall" (on a GPU "gpu" and "wall") of one case, in microseconds for each unit of work.

        `equal(subject's result, baseline's result)` must hold, else the row says so and nothing is timed.
        `work` is (how many, of what) one call does. `target` is the ratio wanted of `metric` (default: the first).
        `graph`: on a GPU "both" are timed as CUDA graphs, so that launches from Python do not count, or "ours" alone,
        where the baseline waits for the GPU and no graph can be made of it.
        """
        wanted = metric or self.metrics()[0]
        threads = threads or _threads()
        fixed: dict[str, Any] = {
            "case": case,
            "subject": names[0],
            "baseline": names[1],
            "threads": threads,
            "backend": backend,
        }
        if not equal(subject(), baseline()):
            self.add(metric=wanted, value=None, unit=f"us/{work[1]}", ratio=None, equal=False, target=target, **fixed)
            return
        if graph and self.device == "cuda":
            subject, baseline = cost.replayed(subject), cost.replayed(baseline) if graph == "both" else baseline
        turns = self._turns(subject, baseline)
        for name in self.metrics():
            value = median(mine[name] for mine, _ in turns)
            ratio = median(theirs[name] / max(mine[name], 1e-9) for mine, theirs in turns)
            goal = target if name == wanted else None
            shown = value * 1e6 / work[0]
            self.add(metric=name, value=shown, unit=f"us/{work[1]}", ratio=ratio, equal=True, target=goal, **fixed)

    def add(
        self,
        *,
        case: str,
        subject: str,
        baseline: str,
        metric: str,
        value: float | None,
        unit: str,
        ratio: float | None,
        equal: bool,
        target: float | None = None,
        threads: int | None = None,
        backend: str = "auto",
    ) -> None:
        """A row whose figure was taken elsewhere, such as bytes of memory; `ratio` above 1 is better."""
        met = None if target is None else bool(equal and ratio is not None and ratio >= target)
        row = Row(
            case, subject, baseline, metric, value, unit, ratio, equal, target, met, threads or _threads(), backend
        )
        self._take(row)

    def _take(self, row: Row) -> None:
        self.rows.append(row)
        if self.echo:
            print(describe(row), flush=True)
        self.kept()

    def absent(self, case: str, subject: str, why: str) -> None:
        """A row that says why something could not be measured here."""
        self._take(Row(case, subject, why, ABSENT, None, "-", None, True, None, None, _threads(), "-"))

    def latest(self) -> Row:
        """The last row of the device's time: of what was compared last, timed or not."""
        return next(row for row in reversed(self.rows) if row.metric == self.metrics()[0])

    def metrics(self) -> tuple[str, str]:
        """The times taken: of the device, and of the clock on the wall."""
        return ("gpu", "wall") if self.device == "cuda" else ("cpu", "wall")

    def _turns(
        self, subject: Callable[[], Any], baseline: Callable[[], Any]
    ) -> list[tuple[dict[str, float], dict[str, float]]]:
        """Seconds a call of both, in turn, the first one changing each turn; 7 or more turns, fewer when quick."""
        whole = (0.05, 3.0, 7) if self.device == "cuda" else (0.1, 12.0, 7)
        floor, budget, least = (0.01, 0.3, 3) if self.quick else whole
        calls = [cost.calls_for(function, floor, self.device) for function in (subject, baseline)]
        turns: list[tuple[dict[str, float], dict[str, float]]] = []
        began = time.perf_counter()
        while len(turns) < least or (len(turns) < 25 and time.perf_counter() - began < budget):
            sides = [(subject, calls[0]), (baseline, calls[1])]
            order = (0, 1) if len(turns) % 2 == 0 else (1, 0)
            taken = {i: self._time(*sides[i]) for i in order}
            turns.append((taken[0], taken[1]))
        return turns

    def _time(self, function: Callable[[], Any], calls: int) -> dict[str, float]:
        """Seconds a call, by metric."""
        if self.device == "cuda":
            return cost.time_on_gpu(function, calls)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            function()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return {"cpu": cpu / calls, "wall": wall / calls}


def describe(row: Row) -> str:
    """One line for people."""
    if row.metric == ABSENT:
        return f"{row.case}: {row.subject} is not measured: {row.baseline}"
    if not row.equal:
        return f"{row.case}: {row.subject} and {row.baseline} DIFFER; not timed"
    value = "" if row.value is None else f"{row.value:.4g} {row.unit}"
    ratio = "" if row.ratio is None else f", {row.ratio:.2f}x {row.baseline}"
    goal = "" if row.target is None else f" (target {row.target:g}x: {'met' if row.met else 'MISSED'})"
    return f"{row.case}: {row.subject} {value} {row.metric}{ratio}{goal} [{row.backend}, {row.threads} threads]"


def names() -> tuple[str, ...]:
    """Benches there are: files of this folder that define run(bench, quick)."""
    import vstar_fast.bench as folder

    found = []
    for info in pkgutil.iter_modules(folder.__path__):
        spec = importlib.util.find_spec(f"vstar_fast.bench.{info.name}")
        if info.name not in HELPERS and spec and spec.origin and "\ndef run(" in Path(spec.origin).read_text():
            found.append(info.name)
    return tuple(sorted(found))


def run(
    name: str, quick: bool = False, *, echo: bool = True, arguments: Sequence[str] = (), path: Path | None = None
) -> dict[str, Any]:
    """Run one bench: {"header": ..., "rows": [...], "ran": what backends ran, "seconds": ...}.

    `arguments` go to the bench's `options(bench, arguments)`, where it has one. At `path` stands after each row what
    there is so far, with "cut": true; it stays where the bench breaks or is ended.
    """
    from vstar_fast import backends

    if name not in names():
        raise ConfigError(f"no bench named {name!r}; there are: {', '.join(names())}")
    module = importlib.import_module(f"vstar_fast.bench.{name}")
    bench = Bench(name, quick, backends.device(), echo)
    backends.reset_report()
    began = time.perf_counter()
    head = header(name, quick, bench.device)

    def report() -> dict[str, Any]:
        rows = [asdict(row) for row in bench.rows]
        seconds = round(time.perf_counter() - began, 2)
        return {"header": head, "rows": rows, "ran": backends.report(), "seconds": seconds}

    if path is not None:
        bench.kept = lambda: _write(path, report() | {"cut": True})
    if not arguments:
        module.run(bench, quick)
    elif hasattr(module, "options"):
        module.options(bench, arguments)
    else:
        raise ConfigError(f"bench {name} takes no further options, got: {' '.join(arguments)}")
    return report() | {"header": header(name, quick, bench.device)}


def _write(path: Path, found: Any) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(name: str, quick: bool = False, json_path: str | Path | None = None, arguments: Sequence[str] = ()) -> int:
    """Run bench `name`, or "all"; exit status 1 when results differ or there is no row, 2 on a VstarError."""
    try:
        path = None if json_path is None else Path(json_path)
        if name == "all":
            reports = [run(each, quick, arguments=arguments) for each in names()]
        else:
            reports = [run(name, quick, arguments=arguments, path=path)]
        if path is not None:
            _write(path, reports if name == "all" else reports[0])
    except (VstarError, OSError) as error:
        print(f"bench {name}: {error}")
        return 2
    good = all(report["rows"] and all(row["equal"] for row in report["rows"]) for report in reports)
    return 0 if good else 1


def _threads() -> int:
    import torch

    return torch.get_num_threads()


if __name__ == "__main__":
    import argparse
    import sys

    parser = argparse.ArgumentParser(description="Run a bench of vstar-fast.")
    parser.add_argument("name", help=f"one of {', '.join(names())}, or all")
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--json", metavar="FILE", help="write header and rows here")
    arguments, further = parser.parse_known_args()
    sys.exit(main(arguments.name, arguments.quick, arguments.json, further))
