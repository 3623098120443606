"""Waves of packed trees: labels in a trie behind a prompt, one token a node, and training rows in branches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from vstar_fast.errors import ModelError
from vstar_fast.models.recurrent import TREE, Held, States, Wave, Waves, mixers_in, running, sources

if TYPE_CHECKING:
    from vstar_fast.kernels.tree_attention.tree import Tree
    from vstar_fast.models.mixers import Mixers

CHUNK = 64
"""Layers in chunks round a run up to so many tokens."""
PADDED, HALF = 0.8, 0.5
"""Branches go into a wave whose longest they are this share of, or, up to CHUNK tokens, this."""


class Trie:
    """Nodes of one token: `parents` [M] counts from 1, 0 is the prompt; node 1 stands at token `first` of the call."""

    def __init__(self, prompt: Held | None, parents: Sequence[int], first: int) -> None:
        self.prompt, self.first = prompt, first
        self.children: list[list[int]] = [[] for _ in range(len(parents) + 1)]
        for node, parent in enumerate(parents, 1):
            self.children[parent].append(node)


def of_tries(tries: Sequence[Trie], most: int, device: torch.device) -> Waves:
    """Tries depth by depth, all together; where a depth has more than `most` nodes, so many and what is behind them.

    No state outlives the call of a layer.
    """
    waves: list[Wave] = []
    places: list[int] = []

    def walk(level: list[tuple[Trie, int, Held | None]]) -> None:
        for start in range(0, len(level), most):
            part = level[start : start + most]
            after = States(len(part)) if any(trie.children[node] for trie, node, _ in part) else None
            behind: list[tuple[Trie, int, Held | None]] = [
                (trie, child, Held(after, row))
                for row, (trie, node, _) in enumerate(part)
                for child in trie.children[node]
                if after is not None
            ]
            at = [trie.first + node - 1 for trie, node, _ in part]
            places.extend(at)
            before = sources([held for _, _, held in part], device)
            waves.append(Wave(torch.tensor(at, device=device), len(part), before, after, kept=False))
            walk(behind)
            if after is not None:
                waves[-1].drops.append(after)

    walk([(trie, node, trie.prompt) for trie in tries for node in trie.children[0]])
    return Waves(waves, torch.tensor(places).argsort().to(device))


@dataclass(slots=True, eq=False)
class _Branch:
    """Tokens behind the state of another branch. `shown`: the first of them whose output is this branch's to give."""

    tokens: list[int]
    shown: int
    parent: _Branch | None
    leaf: bool
    after: Held | None = None

    @property
    def level(self) -> int:
        """Branches before it."""
        return 0 if self.parent is None else self.parent.level + 1


@contextlib.contextmanager
def along_trees(text_model: Any) -> Iterator[None]:
    """Inside, layers with a state follow the tree that a call of the text stack is given as `vstar_tree`.

    Nothing is kept from one call of a layer to another, so that a layer which is run again does the same again.
    """
    mixers = mixers_in(text_model)
    known: WeakKeyDictionary[Tree, Waves] = WeakKeyDictionary()
    given: list[Tree] = []
    """The tree of the layer that is being called: some hand it on to their attention only."""

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if TREE in kwargs:
            given[:] = [kwargs[TREE]]

    def waves_of() -> Waves:
        if not given:
            raise ModelError("layers are not handed on what the text stack is given; set finetune.pack = false")
        if given[0] not in known:
            known[given[0]] = of_tree(given[0], text_model.device)
        return known[given[0]]

    with contextlib.ExitStack() as stack:
        for module in _around(text_model, mixers):
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        stack.enter_context(running(mixers, waves_of))
        yield


def _around(text_model: Any, mixers: Mixers) -> list[torch.nn.Module]:
    """The modules of a text stack that mixers are in."""
    inside = {mixer.module for mixer in mixers}
    modules = text_model.modules()
    return [m for m in modules if m is not text_model and m not in inside and not inside.isdisjoint(m.modules())]


def of_tree(tree: Tree, device: torch.device) -> Waves:
    """A training tree: branches with others behind them by depth and length, then all ends, padded.

    A single token behind a state is never a run of its own: the kernels for one token have no gradient. It goes along
    with what is behind it, or is padded.
    """
    branches = _branches(tree)
    waves: list[Wave] = []
    places = [0] * tree.tokens
    at = 0
    for group in [*_inner(branches), *_ends(branches)]:
        length = max(len(b.tokens) for b in group)
        if group[0].parent is not None:
            length = max(length, 2)
        padded = [b.tokens + b.tokens[-1:] * (length - len(b.tokens)) for b in group]
        before = sources([None if b.parent is None else b.parent.after for b in group], device)
        after = None if group[0].leaf else States(len(group))
        waves.append(Wave(torch.tensor(padded, device=device).flatten(), len(group), before, after, kept=False))
        for row, branch in enumerate(group):
            branch.after = None if after is None else Held(after, row)
            for i in range(branch.shown, len(branch.tokens)):
                places[branch.tokens[i]] = at + row * length + i
        at += len(group) * length
    return Waves(waves, torch.tensor(places, device=device))


def _branches(tree: Tree) -> list[_Branch]:
    found: list[_Branch] = []
    path: list[tuple[int, _Branch]] = []
    short: dict[int, bool] = {}
    """Single tokens that go along with what is behind them -> whether their output is given already."""
    for node in tree.nodes:
        while path and path[-1][0] <= node.start:
            path.pop()
        parent, own = path[-1][1] if path else None, list(range(node.start, node.stop))
        shown = 0
        if parent is not None and id(parent) in short:
            shown = len(parent.tokens) if short[id(parent)] else 0
            short[id(parent)] = True
            own, parent = parent.tokens + own, parent.parent
        branch = _Branch(own, shown, parent, node.stop == node.end)
        if not branch.leaf and parent is not None and len(own) == 1:
            short[id(branch)] = False
        else:
            found.append(branch)
        path.append((node.end, branch))
    return found


def _inner(branches: Sequence[_Branch]) -> list[list[_Branch]]:
    """Branches whose states are needed: of one depth and length together."""

    def kind(branch: _Branch) -> tuple[int, int]:
        return branch.level, len(branch.tokens)

    inner = sorted((b for b in branches if not b.leaf), key=kind)
    return [list(group) for _, group in groupby(inner, kind)]


def _ends(branches: Sequence[_Branch]) -> list[list[_Branch]]:
    """Branches with nothing behind them: of nearly one length together, those behind a state apart from others."""
    found: list[list[_Branch]] = []
    ends = sorted((b for b in branches if b.leaf), key=lambda b: (b.parent is None, -len(b.tokens)))
    for branch in ends:
        if found and (found[-1][0].parent is None) == (branch.parent is None) and _near(found[-1][0], branch):
            found[-1].append(branch)
        else:
            found.append([branch])
    return found


def _near(longest: _Branch, branch: _Branch) -> bool:
    size, most = len(branch.tokens), len(longest.tokens)
    return size >= (PADDED if most > CHUNK else HALF) * most
