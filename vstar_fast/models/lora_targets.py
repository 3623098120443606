"""Which layers of a text stack LoRA goes on: linear ones that are called as layers."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch

READ = r"self\.(\w+)\.weight\b(?!\.(?:dtype|device))"
"""In a module's code: a layer's weight is read past the layer, and what LoRA adds to its output with it."""


def targets_of(text_model: Any) -> list[str]:
    """Patterns of the last parts of names, such as `q_proj`; with the part before (`mixer\\.out_proj`) where a name
    is that of other layers too, which LoRA cannot adapt or would have no effect on.
    """
    modules = dict(text_model.named_modules())
    fit = {n: isinstance(m, torch.nn.Linear) and not _without_effect(modules, n) for n, m in modules.items()}
    others = {_numberless(name) for name, ok in fit.items() if not ok}
    wanted = {_numberless(name) for name, ok in fit.items() if ok} - others
    return sorted({pattern for name in wanted if (pattern := _shortest(name, others))})


def _numberless(name: str) -> tuple[str, ...]:
    """The parts of a name as patterns, whatever its layer's number."""
    return tuple(r"\d+" if part.isdigit() else re.escape(part) for part in name.split("."))


def _shortest(name: tuple[str, ...], others: set[tuple[str, ...]]) -> str:
    """The shortest pattern of a name's last parts that no other name ends in; empty where there is none."""
    counts = (n for n in range(1, len(name)) if not any(other[-n:] == name[-n:] for other in others))
    return r"\.".join(name[-n:]) if (n := next(counts, 0)) else ""


def _without_effect(modules: dict[str, Any], name: str) -> bool:
    """Whether what LoRA adds to a layer's output goes nowhere, or is never trained: indexers give numbers of keys,
    which have no gradient."""
    around = (name[:at] for at, letter in enumerate(name) if letter == ".")
    picks = any(type(modules[module]).__name__.endswith("Indexer") for module in around)
    return picks or _read_past(modules, name)


def _read_past(modules: dict[str, Any], name: str) -> bool:
    """Whether the module that a layer is in reads its weight itself, as fused kernels of Mamba layers do."""
    parent, _, leaf = name.rpartition(".")
    try:
        code = inspect.getsource(type(modules[parent]))
    except (OSError, TypeError):  # a class without a file: nothing is known of it
        return False
    return leaf in re.findall(READ, code)
