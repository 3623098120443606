"""Packed tokens through layers with a running state: the layer's own mixer, run by run, in waves.

Attention sees the tokens that a plan names; a state is where it is. So the packed tokens are cut into runs that stand
behind one state each, and a wave is a batch of runs of one length that depend on earlier waves only. States are rows
of batches: forked by naming a row again, and copied when a wave does not go on from a batch as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch

from vstar_fast.errors import ModelError
from vstar_fast.models.mixers import Mixer, Mixers, Tensors, mixers_of
from vstar_fast.models.model_lock import alone

WAVE_BYTES = 256 << 20
"""States of one layer in a wave whose states are let go of behind the layer; a tree of more is walked part by part."""
STEPS = {"cpu": 4, "cuda": 1}
"""Runs of so many tokens of answers go token by token: kernels for several round them up to a chunk. On a GPU each
call of a layer costs more than that. A prompt's do not: its model reads it at once, and some have kernels for one token
that compute something else (Nemotron-H clamps its time steps in the other alone)."""
TREE = "vstar_tree"
"""The argument that names the tree of packed rows in training."""


@dataclass(slots=True, eq=False)
class States:
    """The states of `rows` sequences by layer; `moving`: nobody looks at them after the next wave behind them."""

    rows: int
    moving: bool = False
    layers: dict[int, Tensors] = field(default_factory=dict)


class Held(NamedTuple):
    """The state of one sequence: a row of a batch."""

    states: States
    row: int

    def alone(self) -> Held:
        """The same in a batch of its own, so that the others can go."""
        if self.states.rows == 1:
            return self
        own = States(1)
        for number, tensors in self.states.layers.items():
            own.layers[number] = [None if t is None else t[self.row : self.row + 1].clone() for t in tensors]
        return Held(own, 0)


Run = tuple[int, "Held | None"]
"""So many tokens behind a state (None: nothing before them); the next run's tokens follow."""


class Source(NamedTuple):
    """Rows of a batch, in this order; None: all of them as they are."""

    states: States
    rows: torch.Tensor | None


@dataclass(slots=True)
class Wave:
    """Runs of one length: `tokens` int64 [B * L], or a slice of them; `after`: where their states go, if anywhere.

    `kept`: beyond this call. `fixed`: at the address where they are. `drops`: what no later wave needs.
    """

    tokens: torch.Tensor | slice
    rows: int
    before: list[Source]
    after: States | None
    kept: bool = True
    fixed: bool = False
    drops: list[States] = field(default_factory=list)


@dataclass(slots=True)
class Waves:
    """All of one call; `order` int64 [N]: where each token's output stands among those of the waves, None: there."""

    waves: list[Wave]
    order: torch.Tensor | None
    over: list[States] = field(default_factory=list)
    """What nobody needs once a layer has been called."""


def mixers_in(text_model: Any) -> Mixers:
    """The mixers of a text stack, which nobody calls meanwhile."""
    with alone(text_model):
        return mixers_of(text_model)


def gathered(wave: Wave, number: int, made: dict[int, Tensors]) -> Tensors | None:
    """The states that a wave starts from in a mixer; a copy unless they are moving as a whole."""
    if not wave.before:
        return None
    parts = [(source, made.get(id(source.states)) or source.states.layers[number]) for source in wave.before]
    (first, tensors), *others = parts
    if not others and first.rows is None:
        return tensors if first.states.moving else [None if t is None else t.clone() for t in tensors]
    return [None if t is None else _joined(parts, n) for n, t in enumerate(tensors)]


def _joined(parts: list[tuple[Source, Tensors]], n: int) -> torch.Tensor:
    found = []
    for source, tensors in parts:
        held = tensors[n]
        assert held is not None
        found.append(held if source.rows is None else held.index_select(0, source.rows))
    return found[0] if len(found) == 1 else torch.cat(found)


def mixed(
    mixer: Mixer, forward: Callable[..., Any], hidden: torch.Tensor, waves: Waves, given: dict[str, Any]
) -> torch.Tensor:
    """What a mixer makes of packed tokens [1, N, H], wave by wave."""
    number, packed, outs = mixer.layer, hidden[0], []
    made: dict[int, Tensors] = {}
    for wave in waves.waves:
        tokens = packed[wave.tokens] if isinstance(wave.tokens, slice) else packed.index_select(0, wave.tokens)
        states = gathered(wave, number, made)
        x = tokens.view(wave.rows, -1, packed.shape[-1])
        out, states = mixer.call(forward, x, states, given)
        outs.append(out.reshape(-1, out.shape[-1]))
        if wave.fixed:
            _write_over(gathered(wave, number, made), states)
        elif wave.after is not None:
            (wave.after.layers if wave.kept else made)[number if wave.kept else id(wave.after)] = states
        for dropped in wave.drops:
            made.pop(id(dropped), None)
    for left in waves.over:
        left.layers.pop(number, None)
    joined = outs[0] if len(outs) == 1 else torch.cat(outs)
    return (joined if waves.order is None else joined.index_select(0, waves.order))[None]


def _write_over(held: Tensors | None, new: Tensors) -> None:
    """Move states that were not moved in place."""
    for mine, theirs in zip(held or (), new, strict=True):
        if mine is not None and theirs is not None and theirs is not mine:
            mine.copy_(theirs)


@contextlib.contextmanager
def running(mixers: Mixers, waves_of: Callable[[], Waves | None]) -> Iterator[None]:
    """Inside, mixers take packed tokens; `waves_of` says in which waves.

    Each mixer's own forward is called, with a cache that holds its own states.
    """
    before = [mixer.module.__dict__.get("forward") for mixer in mixers]
    try:
        for mixer in mixers:
            mixer.module.forward = _stand_in(mixer, mixer.module.forward, waves_of)
        yield
    finally:
        for mixer, own in zip(mixers, before, strict=True):
            mixer.module.__dict__.pop("forward", None)
            if own is not None:
                mixer.module.forward = own


def _stand_in(
    mixer: Mixer, own: Callable[..., Any], waves_of: Callable[[], Waves | None]
) -> Callable[..., torch.Tensor]:
    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        hidden, given = mixer.arguments(args, kwargs)
        waves = waves_of()
        if waves is None:
            raise ModelError(f"{type(mixer.module).__name__} has a state, and nothing says whose tokens these are")
        given.pop(TREE, None)
        by_token = [name for name, value in given.items() if isinstance(value, torch.Tensor) and value.ndim]
        if by_token:
            name = type(mixer.module).__name__
            raise ModelError(f"{name} is given {', '.join(by_token)}, which cannot be told apart by run")
        return mixed(mixer, own, hidden, waves, given)

    return forward


def in_waves(runs: Sequence[Run], device: torch.device, moving: bool = False) -> tuple[Waves, list[Held]]:
    """Runs that depend on none of each other, a wave for each length; and where their states are afterwards.

    `moving`: the runs are answers', and take the states before and behind them along, nobody else has them; those of
    few tokens go token by token, all together.
    """
    few = STEPS[device.type] if moving else 1
    spans = list(pairwise(accumulate((tokens for tokens, _ in runs), initial=0)))
    held = [before for _, before in runs]
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, (tokens, before) in enumerate(runs):
        groups.setdefault((0 if before and tokens <= few else tokens, before is None), []).append(i)
    going = groups.pop((0, False), [])
    made = _Made(device)
    for members in groups.values():
        states = made.wave([spans[i] for i in members], [held[i] for i in members], moving, True)
        held = _moved(held, members, states)
    step = 0
    while going:
        on = [i for i in going if runs[i][0] > step + 1]
        at = [(spans[i][0] + step, spans[i][0] + step + 1) for i in going]
        states = made.wave(at, [held[i] for i in going], moving, len(on) < len(going))
        held = _moved(held, going, states)
        going, step = on, step + 1
    return made.waves(), [each for each in held if each is not None]


def _moved(held: list[Held | None], members: Sequence[int], states: States) -> list[Held | None]:
    """The same with `members` at the rows of a batch."""
    found = list(held)
    for row, i in enumerate(members):
        found[i] = Held(states, row)
    return found


class _Made:
    """Waves in the making."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._waves: list[Wave] = []
        self._spans: list[tuple[int, int]] = []

    def wave(self, spans: Sequence[tuple[int, int]], held: Sequence[Held | None], moving: bool, kept: bool) -> States:
        """A wave of `spans` behind states; where theirs go. Moving states that go on as a whole stay where they are."""
        before = sources(held, self.device)
        whole = len(before) == 1 and before[0].rows is None and before[0].states.moving
        states = before[0].states if whole and kept and moving else States(len(spans), moving or not kept)
        earlier = self._waves[-1] if self._waves else None
        drops = [earlier.after] if earlier is not None and earlier.after is not None and not earlier.kept else []
        self._waves.append(Wave(_tokens(spans, self.device), len(spans), before, states, kept, drops=drops))
        self._spans += spans
        return states

    def waves(self) -> Waves:
        """All of them."""
        kept = {id(wave.after) for wave in self._waves}
        moved = {id(s.states): s.states for wave in self._waves for s in wave.before if s.states.moving}
        over = [states for key, states in moved.items() if key not in kept]
        return Waves(self._waves, _order(self._spans, self.device), over)


def sources(held: Sequence[Held | None], device: torch.device) -> list[Source]:
    """Where the states of a wave's runs are; neighbours in one batch together. Nothing where there are none."""
    parts: list[tuple[States, list[int]]] = []
    for each in held:
        if each is None:
            continue
        if not parts or parts[-1][0] is not each.states:
            parts.append((each.states, []))
        parts[-1][1].append(each.row)
    return [
        Source(states, None if rows == list(range(states.rows)) else torch.tensor(rows, device=device))
        for states, rows in parts
    ]


def _tokens(spans: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor | slice:
    """Tokens `start` to `stop` of spans, one after the other."""
    if all(stop == start for (_, stop), (start, _) in pairwise(spans)):
        return slice(spans[0][0], spans[-1][1])
    return torch.cat([torch.arange(*span) for span in spans]).to(device)


def _order(spans: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor | None:
    """Where each token stands among spans in this order, which hold all of them; None: at its place."""
    if all(stop == start for (_, stop), (start, _) in pairwise(spans)):
        return None
    return torch.cat([torch.arange(*span) for span in spans]).argsort().to(device)
