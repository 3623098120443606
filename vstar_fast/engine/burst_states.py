"""States of the rows of a burst in buffers that keep their addresses, which all recordings of a batch share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from vstar_fast.models.recurrent import Held, Source, States, Wave, Waves, gathered, sources

if TYPE_CHECKING:
    from vstar_fast.engine.batch import Row


class Buffers:
    """Room for the states of so many rows, shaped as that of `like`."""

    def __init__(self, like: Held, rows: int) -> None:
        self.states = States(rows)
        for number, tensors in like.states.layers.items():
            new = [None if t is None else t.new_zeros(rows, *t.shape[1:]) for t in tensors]
            self.states.layers[number] = new

    def waves(self, rows: int) -> Waves:
        """One token of each of the first rows, whose states are moved where they lie."""
        own = self._first(rows)
        return Waves([Wave(slice(0, rows), rows, [Source(own, None)], own, fixed=True)], None)

    def load(self, rows: Sequence[Row]) -> None:
        """Put the states of rows into the first places, where they are not there yet; they are the rows' from now."""
        held = [row.state for row in rows]
        if all(each is not None and each == (self.states, i) for i, each in enumerate(held)):
            return
        own = self._first(len(rows))
        device = next(t.device for tensors in own.layers.values() for t in tensors if t is not None)
        wave = Wave(slice(0, 0), len(rows), sources(held, device), None)
        for number, tensors in own.layers.items():
            _write(tensors, gathered(wave, number, {}))
        for i, row in enumerate(rows):
            row.state = Held(self.states, i)

    @contextlib.contextmanager
    def as_they_are(self, rows: int) -> Iterator[None]:
        """Whatever is done inside, the first rows' states are afterwards what they were."""
        own = self._first(rows)
        before = {n: [None if t is None else t.clone() for t in tensors] for n, tensors in own.layers.items()}
        yield
        for number, tensors in own.layers.items():
            _write(tensors, before[number])

    def _first(self, rows: int) -> States:
        """A view of the first rows; nobody else looks at them while a burst lasts."""
        layers = self.states.layers.items()
        return States(rows, True, {n: [None if t is None else t[:rows] for t in tensors] for n, tensors in layers})


def _write(tensors: Sequence[torch.Tensor | None], values: Sequence[torch.Tensor | None] | None) -> None:
    for mine, theirs in zip(tensors, values or (), strict=True):
        if mine is not None and theirs is not None:
            mine.copy_(theirs)
