"""How far a run is: bars on a terminal, a line now and then elsewhere, or JSON lines for programs."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

LINE_EVERY_S = 10.0
"""Least seconds between two plain lines of one task."""
EVENT_EVERY_S = 1.0
"""Least seconds between two JSON events of one task."""


class Progress:
    """Where tasks report: `quiet` says nothing, `json` writes JSON lines to `out`, else text to `err`."""

    def __init__(
        self, quiet: bool = False, json: bool = False, *, out: TextIO | None = None, err: TextIO | None = None
    ) -> None:
        self.quiet = quiet
        self.json = json
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._rich: RichProgress | None = None

    def task(self, name: str, total: int = 0) -> Bar:
        """Start a task of `total` items (0: not known yet)."""
        return Bar(self, name, total)

    def note(self, text: str) -> None:
        """Tell the user one thing in words."""
        if self.json:
            self.event("note", text=text)
        elif not self.quiet:
            if self._rich is not None:
                self._rich.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=self._err, flush=True)

    def event(self, name: str, **values: Any) -> None:
        """Write one JSON line, under `--json` only."""
        if self.json:
            print(jsonlib.dumps({"event": name, **values}, ensure_ascii=False), file=self._out, flush=True)

    def close(self) -> None:
        """Take bars off the terminal."""
        if self._rich is not None:
            self._rich.stop()
            self._rich = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def bars(self) -> RichProgress | None:
        """The live bars; None when this is no terminal, or nothing may be shown."""
        if self.quiet or self.json or not self._err.isatty():
            return None
        if self._rich is None:
            from rich import progress as rich
            from rich.console import Console

            self._rich = rich.Progress(
                rich.TextColumn("{task.description}"),
                rich.BarColumn(),
                rich.MofNCompleteColumn(),
                rich.TextColumn("{task.fields[rate]}"),
                rich.TimeRemainingColumn(),
                rich.TextColumn("{task.fields[note]}"),
                console=Console(file=self._err),
            )
            self._rich.start()
        return self._rich


class Bar:
    """One task: `advance(n)` as items are done, `close()` (or leaving `with`) at the end."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self.name, self.total, self.done, self.note = name, total, 0, ""
        self._progress = progress
        self._began = self._said = time.monotonic()
        self._bars = progress.bars()
        if self._bars is not None:
            self._id = self._bars.add_task(name, total=total or None, rate="", note="")
        self._closed = False

    def advance(self, n: int = 1) -> None:
        """`n` more items are done."""
        self.done += n
        self._show()

    def step(self, done: int, total: int, loss: float) -> None:
        """Step `done` of `total` of a training run, and its loss."""
        self.done, self.total, self.note = done, total, f"loss {loss:.3f}"
        self._show()

    def update(self, done: int, total: int) -> None:
        """`done` of `total` items are done."""
        self.done, self.total = done, total
        self._show()

    def close(self) -> None:
        """The task has ended; says so once."""
        if self._closed:
            return
        self._closed = True
        if self._bars is not None:
            self._bars.update(self._id, completed=self.done, total=self.done, **self._fields())
        elif self.done or self._progress.json:
            self._say(final=True)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    @property
    def rate(self) -> float:
        """Items a second so far."""
        return self.done / max(time.monotonic() - self._began, 1e-9)

    @property
    def left_s(self) -> float | None:
        """Seconds left at this rate, where the total is known."""
        return (self.total - self.done) / self.rate if self.total and self.done else None

    def _fields(self) -> dict[str, Any]:
        return {"rate": f"{self.rate:.1f}/s" if self.done else "", "note": self.note}

    def _show(self) -> None:
        if self._bars is not None:
            self._bars.update(self._id, completed=self.done, total=self.total or None, **self._fields())
            return
        every = EVENT_EVERY_S if self._progress.json else LINE_EVERY_S
        if time.monotonic() - self._said >= every:
            self._say()

    def _say(self, final: bool = False) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._began
        if self._progress.json:
            values = {"done": self.done, "total": self.total, "seconds": round(seconds, 2), "rate": round(self.rate, 2)}
            note = {"note": self.note} if self.note else {}
            self._progress.event("done" if final else "progress", task=self.name, **values, **note)
        else:
            self._progress.note(self._line(seconds, final))

    def _line(self, seconds: float, final: bool) -> str:
        of = f"/{self.total}" if self.total else ""
        parts = [f"{self.done}{of}", f"{self.rate:.1f}/s", *([self.note] if self.note else [])]
        if final:
            parts.append(f"done in {clock(seconds)}")
        elif self.left_s is not None:
            parts.append(f"{clock(self.left_s)} left")
        return f"{self.name}: {', '.join(parts)}"


def clock(seconds: float) -> str:
    """Seconds in words: `8.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60):02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
