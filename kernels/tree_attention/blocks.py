"""Which blocks of a tree's mask hold anything: what the training kernel visits, made once a tree on the host.

Token i sees token j when j <= i and i < end[j], `end` being where everything behind j's node ends: tokens of a node's
ancestors and its own up to itself. So one number a key is the whole mask.
"""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from .tree import Tree


class Blocks(NamedTuple):
    """`end` [N] int32; query block b visits the key blocks `keys[of_query[b] : of_query[b + 1]]`, and back likewise."""

    end: torch.Tensor
    of_query: torch.Tensor
    keys: torch.Tensor
    of_key: torch.Tensor
    queries: torch.Tensor

    @property
    def visited(self) -> int:
        """Blocks that hold anything."""
        return self.keys.numel()


_MADE: WeakKeyDictionary[Tree, dict[tuple[str, int, int], Blocks]] = WeakKeyDictionary()


def blocks(tree: Tree, device: torch.device, rows: int, columns: int) -> Blocks:
    """The blocks of rows x columns tokens, on `device`; kept for as long as the tree."""
    made = _MADE.setdefault(tree, {})
    key = (str(device), rows, columns)
    if key not in made:
        found = _lists(tree, rows, columns)
        made[key] = Blocks(*(torch.from_numpy(x.astype(np.int32)).to(device) for x in found))
    return made[key]


def seen(tree: Tree, rows: int, columns: int) -> np.ndarray:
    """Bool [query blocks, key blocks]: whether any token of the one may see any of the other."""
    end = _ends(tree)
    first_row = np.arange(0, tree.tokens, rows)
    first_column = np.arange(0, tree.tokens, columns)
    reach = np.maximum.reduceat(end, first_column)
    last_row = np.minimum(first_row + rows, tree.tokens) - 1
    shown: np.ndarray = (first_column[None] <= last_row[:, None]) & (reach[None] > first_row[:, None])
    return shown


def _ends(tree: Tree) -> np.ndarray:
    return np.repeat([n.end for n in tree.nodes], [n.stop - n.start for n in tree.nodes])


def _lists(tree: Tree, rows: int, columns: int) -> tuple[np.ndarray, ...]:
    shown = seen(tree, rows, columns)
    found = [_ends(tree)]
    for side in (shown, shown.T):
        found += [np.concatenate([[0], side.sum(1).cumsum()]), side.nonzero()[1]]
    return tuple(found)
