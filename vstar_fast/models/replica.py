"""A model once more over the same weights, so that two threads may call it at the same time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

OF_ITS_OWN = ("model", "body", "text_model", "tower", "_ready_tower")
"""What hangs together with a model's modules; the rest of an `lm` (processor, vocabulary) is shared."""


@contextmanager
def replicas(lm: Any, count: int) -> Iterator[list[Any]]:
    """So many `lm` more, whose modules, config and hooks are their own, and whose tensors are those of `lm`.

    A call sets attributes on modules and hooks into them (attention, positions, the tower's stand-in); of these copies
    they are nobody else's. They take no memory to speak of, and are of the weights as they are now: a module that is
    put in place later is not in them. They are of no use afterwards: their tensors are taken out, so that what is
    let go of elsewhere is not held until Python looks for cycles.
    """
    made = [_replica(lm) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            for module in each.model.modules():
                _empty(module)


def _replica(lm: Any) -> Any:
    held = [v for module in lm.model.modules() for v in vars(module).values() if isinstance(v, torch.Tensor)]
    memo: dict[int, Any] = {id(t): t for t in (*lm.model.parameters(), *lm.model.buffers(), *held)}
    memo |= {id(value): value for name, value in vars(lm).items() if name not in OF_ITS_OWN}
    return copy.deepcopy(lm, memo)


def _empty(module: torch.nn.Module) -> None:
    module._parameters.clear()
    module._buffers.clear()
    for name in [n for n, v in vars(module).items() if isinstance(v, torch.Tensor)]:
        del vars(module)[name]
