"""A model once more over the same weights, so that two threads may call it at the same time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch

from vstar_fast.errors import ModelError
from vstar_fast.kernels.linear import PACKED

OF_ITS_OWN = ("model", "body", "text_model", "tower", "_ready_tower")
"""What hangs together with a model's modules; the rest of an `lm` (processor, vocabulary) is shared."""


@contextmanager
def replicas(lm: Any, count: int) -> Iterator[list[Any]]:
    """So many `lm` more, whose modules, config and hooks are their own, and whose tensors are those of `lm`.

    A call sets attributes on modules and hooks into them (attention, positions, the tower's stand-in); of these copies
    they are nobody else's. They take no memory to speak of, and are of the weights as they are now: a module that is
    put in place later is not in them. They are of no use afterwards: their tensors are taken out, so that what is
    let go of elsewhere is not held until Python looks for cycles. Hooks that are objects, or methods of some, are
    shared: they are of whoever registered them.

    Raises ModelError for a model that cannot be copied.
    """
    made = [_replica(lm) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            for module in each.model.modules():
                _empty(module)


def _replica(lm: Any) -> Any:
    modules = list(lm.model.modules())
    held = [v for m in modules for n, v in vars(m).items() if isinstance(v, torch.Tensor) or n == PACKED]
    shared = [*lm.model.parameters(), *lm.model.buffers(), *held, *_hooks(modules)]
    shared += [value for name, value in vars(lm).items() if name not in OF_ITS_OWN]
    for module in modules:
        if isinstance(vars(module).get("forward"), FunctionType):  # it may well call the module it was made for
            raise ModelError(f"{type(module).__name__} has a function in place of its forward, which has no copy")
    try:
        return copy.deepcopy(lm, {id(each): each for each in shared})
    except Exception as error:  # whatever lies in a module is asked to copy itself
        raise ModelError(f"{type(lm.model).__name__} cannot be copied: {type(error).__name__}: {error}") from error


def _hooks(modules: list[torch.nn.Module]) -> Iterator[Any]:
    """Objects, other than modules, that are called at calls of modules."""
    for module in modules:
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            found = getattr(hook, "__self__", hook)
            if not isinstance(found, (torch.nn.Module, partial)):
                yield found


def _empty(module: torch.nn.Module) -> None:
    module._parameters.clear()
    module._buffers.clear()
    for name in [n for n, v in vars(module).items() if isinstance(v, torch.Tensor) or n == PACKED]:
        del vars(module)[name]
