"""Which base model an adapter was trained on, and whether it is this one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vstar_fast.errors import ModelError
from vstar_fast.files import content_key, file_key
from vstar_fast.models.video_lm import VideoLM

PREFIX = "base_model.model."
BLOCK = 1 << 24
"""Numbers of a tensor that are added up at once; they take 8 bytes each meanwhile."""
SAMPLE = 1 << 6
"""Numbers of a tensor, evenly spaced, that are looked at one by one."""
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> the whole numbers that its bits are read as."""


def weights_key(path: str) -> str:
    """Key of a model folder's or adapter's content; a hub id stands for itself."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model"))
    return content_key([(p.name, file_key(p)) for p in files])


def describe(lm: VideoLM) -> dict[str, str]:
    """What `training.json` keeps of the base model: its path, and a key of its files' content."""
    return {"path": lm.path, "key": weights_key(lm.path)}


def key_of(lm: VideoLM) -> str:
    """Key of what `lm` computes with: its weights as they are in memory, and its folder's files or its hub id.

    So a folder that was moved is the same model, and another one that took its path, or weights that were changed
    after they were loaded, are not. Reads every weight once, on its device: of each tensor the sum of its bits and a
    sample in order. One number that changes is noticed; two that change places may not be. With `finetune.split` all
    processes must call this.
    """
    held = {n: _summed(n, t) for n, t in lm.model.state_dict().items() if isinstance(t, torch.Tensor)}
    return content_key(weights_key(lm.path), held)


def _summed(name: str, tensor: torch.Tensor) -> list[Any]:
    """What a tensor holds in a few numbers, which do not depend on device, threads or how it is split."""
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    if whole.is_meta:
        raise ModelError(f"{name} has no values (it is on the meta device); load the model's weights first")
    said = [str(whole.dtype), list(whole.shape)]
    if hasattr(whole, "__tensor_flatten__"):  # kinds of tensor that are made of others, as torchao's
        return [*said, {n: _summed(f"{name}.{n}", getattr(whole, n)) for n in whole.__tensor_flatten__()[0]}]
    bits = _bits(whole.detach())
    total = sum((block.sum(dtype=torch.int64) for block in bits.split(BLOCK)), torch.zeros((), dtype=torch.int64))
    return [*said, int(total), bits[:: max(1, len(bits) // SAMPLE)].tolist()]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor, one after the other, as whole numbers of their size."""
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.contiguous().view(-1).view(WHOLE[tensor.element_size()])


def check(lm: VideoLM, adapter: Path) -> None:
    """Raise ModelError for an adapter folder that was made for another model than `lm`, which has no adapter on."""
    made_for = _made_for(adapter)
    why = next(_misfits(lm, shapes(adapter)), "")
    known = made_for.get("key")
    if not why and known and known != weights_key(lm.path):
        why = "its layers fit, but the files of the two models differ"
    if why:
        raise ModelError(
            f"{adapter} was made for the base model {made_for.get('path') or '(not named)'}, and this is {lm.path}: "
            f"{why}; use it with the model it was made for, or train an adapter for this one"
        )


def _made_for(adapter: Path) -> dict[str, str]:
    """Path and, where vstar-fast trained it, key of an adapter's base model."""
    training = adapter / "training.json"
    kept = _read(training).get("base", {}) if training.is_file() else {}
    named = _read(adapter / "adapter_config.json").get("base_model_name_or_path") or ""
    return {"path": named, **kept}


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path.parent, f"{path.name}: {error}") from None
    if not isinstance(found, dict):
        raise _damaged(path.parent, f"{path.name} holds no object")
    return found


def _damaged(adapter: Path, why: object) -> ModelError:
    return ModelError(f"{adapter} is damaged ({why}); delete it and run the same command again")


def shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of an adapter; empty where it is not stored as safetensors."""
    from safetensors import SafetensorError, safe_open

    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(adapter, error) from None


def _misfits(lm: VideoLM, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What of an adapter does not fit, in words."""
    modules = dict(lm.model.named_modules())
    for name, shape in shapes.items():
        path = name.removeprefix(PREFIX)
        module, _, kind = path.partition(".lora_")
        if not kind:
            module = path.rpartition(".")[0].removesuffix(".modules_to_save")
        if module not in modules:
            yield f"there is no {module} here"
        elif kind and (odd := _odd_size(modules[module], kind, shape)):
            yield f"{module} {odd}"


def _odd_size(module: Any, kind: str, shape: tuple[int, ...]) -> str:
    """How a LoRA matrix `A [r, in]` or `B [out, r]` differs from its linear layer."""
    named = {"A.weight": ("in_features", "takes", -1), "B.weight": ("out_features", "gives", 0)}
    if kind not in named or not hasattr(module, "in_features"):
        return ""
    attribute, verb, place = named[kind]
    size = getattr(module, attribute)
    return "" if size == shape[place] else f"{verb} {size} values here, and {shape[place]} there"
