"""What is trained: PEFT settings for LoRA and its kin, or for the whole language model."""

from __future__ import annotations

import difflib
import dis
import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch

from vstar_fast.config import FinetuneConfig
from vstar_fast.errors import ModelError
from vstar_fast.models.video_lm import VideoLM

NO_LORA = "dummy-target-modules"
"""PEFT's word for an adapter that holds whole modules only."""


def lora_settings(lm: VideoLM, config: FinetuneConfig) -> Any:
    """PEFT settings: LoRA on the text stack's linear layers, or copies of all its layers (`tune = "full"`).

    The projector, if trained, and `modules_to_save` are trained and saved whole. Either way the result is an adapter
    folder. Raises ModelError for a name in `target_modules` or `modules_to_save` that the model does not have.
    """
    from peft import LoraConfig

    whole = _listed(config.modules_to_save)
    _check_saved(lm, whole)
    whole += _projectors(lm) if config.projector else []
    if config.tune == "full":
        return LoraConfig(target_modules=NO_LORA, modules_to_save=[*text_layers(lm), *whole])
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_dora=config.lora == "dora",
        use_rslora=config.lora == "rslora",
        target_modules=_targets(lm, config.target_modules),
        modules_to_save=whole or None,
    )


def _projectors(lm: VideoLM) -> list[str]:
    names = lm.projector_names()
    if not names:
        logging.getLogger(__name__).warning("%s has no projector apart from its tower: none is trained", lm.path)
    return names


def _listed(names: str) -> list[str]:
    return [n.strip() for n in names.split(",") if n.strip()]


def _targets(lm: VideoLM, names: str) -> str | list[str]:
    if names == "auto":
        return lm.language_linears()
    named = _listed(names)
    _check_targets(lm, named)
    return named


def text_layers(lm: VideoLM) -> list[str]:
    """Full names of the text stack's modules that hold weights, but of those in another one, and of the head.

    Where the head is tied to the token embeddings both stay as they are: PEFT would save two different copies.
    """
    names = {module: name for name, module in lm.model.named_modules()}
    modules = {name: module for module, name in names.items()}
    head, table = lm.head, lm.model.get_input_embeddings()
    tied = head.weight is table.weight
    held = [m for m in lm.text_model.modules() if next(m.parameters(recurse=False), None) is not None]
    held = list(dict.fromkeys(_with_state(modules, names[m]) for m in held))
    within = {inner for m in held for inner in m.modules() if inner is not m}
    held = [m for m in held if m not in within]
    return [names[m] for m in held if not (tied and m is table)] + ([] if tied else [names[head]])


def _with_state(modules: dict[str, torch.nn.Module], name: str) -> torch.nn.Module:
    """A module, or the one around it that it can be copied with: where one keeps something from call to call (as in
    RecurrentGemma), others reset that, and would reach PEFT's wrapper in place of the copy."""
    while any(i.opname == "STORE_ATTR" for i in dis.get_instructions(inspect.unwrap(type(modules[name]).forward))):
        name = name.rpartition(".")[0]
    return modules[name]


def _check_targets(lm: VideoLM, named: Sequence[str]) -> None:
    """PEFT takes a name that is a layer's whole name or its last parts."""
    kinds = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    layers = [n for n, m in lm.model.named_modules() if isinstance(m, kinds)]
    for name in named:
        if not any(f".{layer}".endswith(f".{name}") for layer in layers):
            linear = sorted(
                {n.rsplit(".", 1)[-1] for n, m in lm.model.named_modules() if isinstance(m, torch.nn.Linear)}
            )
            raise ModelError(
                f"finetune.target_modules names {name!r}, but no layer of {lm.path} that LoRA can adapt has that "
                f"name{_meant(name, linear)}; use auto, or names such as {', '.join(linear[:12])}"
            )


def _check_saved(lm: VideoLM, named: Sequence[str]) -> None:
    modules = [n for n, _ in lm.model.named_modules() if n]
    for name in named:
        if not any(f".{module}".endswith(f".{name}") for module in modules):
            leaves = sorted({m.rsplit(".", 1)[-1] for m in modules})
            raise ModelError(
                f"finetune.modules_to_save names {name!r}, which {lm.path} does not have{_meant(name, leaves)}; "
                "give the last parts of a module's name, such as lm_head"
            )


def _meant(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
