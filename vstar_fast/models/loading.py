"""Loads a model folder with its processor behind an adapter; every piece that is missing is named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from vstar_fast import backends
from vstar_fast.config.ranges import DEVICE
from vstar_fast.errors import BackendError, ModelError
from vstar_fast.models import attention
from vstar_fast.models.video_lm import VideoLM


def load(path: str, cls: type[VideoLM], *, dtype: str, device: str, quantize: str = "none") -> VideoLM:
    """Load any model folder of `AutoModelForImageTextToText` that has a processor with a video token."""
    prepare(cls)
    from transformers import AutoModelForImageTextToText

    target = pick_device(device)
    kind, mixed = pick_dtype(dtype, target)
    processor = load_processor(path)
    packed = (
        {"quantization_config": four_bit(path, cls, kind), "device_map": {"": target}} if quantize == "4bit" else {}
    )
    try:
        model = AutoModelForImageTextToText.from_pretrained(path, config=_config(path), dtype=kind, **packed)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load the model in {path}: {str(error).strip()}") from None
    model = (model if packed else model.to(target)).eval()
    for part, choice in attention.use(model).items():
        logging.getLogger(__name__).info("attention of %s: %s (%s)", part or path, choice.name, choice.reason)
    lm = cls(str(Path(path)) if Path(path).exists() else path, model, processor, target)
    lm.mixed = mixed
    return lm


def _config(path: str) -> Any:
    """The configuration of a folder; of a model that also speaks (Qwen Omni), of the part that answers in words."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    return getattr(config, "thinker_config", config)


def four_bit(path: str, cls: type[VideoLM], kind: torch.dtype) -> Any:
    """Settings that load the linear layers of the text stack in NF4, and all else as it is.

    Raises BackendError without bitsandbytes.
    """
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackendError("model.quantize = 4bit needs bitsandbytes, which is not installed; pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    lm = without_weights(path, cls)
    others = [
        n for n, m in lm.model.named_modules() if isinstance(m, torch.nn.Linear) and not _within(n, lm.stack_name)
    ]
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=kind, llm_int8_skip_modules=others
    )


def _within(name: str, stack: str) -> bool:
    return name.startswith(f"{stack}.")


def without_weights(path: str, cls: type[VideoLM]) -> VideoLM:
    """The same with the modules of the model but no weights: it can be looked at, and makes prompts."""
    prepare(cls)
    from transformers import AutoModelForImageTextToText

    processor = load_processor(path)
    target = torch.device("meta")
    try:
        with target:
            # experts have no products of 32-bit numbers there
            model = AutoModelForImageTextToText.from_config(_config(path), dtype=torch.bfloat16)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot build the model of {path}: {str(error).strip()}") from None
    return cls(path, model, processor, target)


def prepare(cls: type[VideoLM]) -> None:
    """Make transformers' video processors importable, and known to it what a family brings itself."""
    from vstar_fast import torchvision_compat

    torchvision_compat.ensure()
    cls.register()


def load_processor(path: str) -> Any:
    """The processor of a model folder. Raises ModelError where it is missing or takes no videos."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"no usable processor in {path}: {error}; copy the processor files beside the weights"
        ) from None
    name = type(processor).__name__
    if not hasattr(processor, "tokenizer"):
        raise ModelError(f"{path} has a {name} but no video processor; is it a video-LMM folder?")
    if hasattr(processor, "qformer_tokenizer"):
        raise ModelError(
            f"{name} of {path} gives the question to a Q-Former that reads the video: a video's features then are of "
            "one question only, and none can be kept; take a model whose tower sees the video alone"
        )
    if getattr(processor, "video_processor", None) is None:
        raise ModelError(f"{name} of {path} has no video processor, only one for images; this model takes no videos")
    return processor


def pick_device(device: str) -> torch.device:
    """`auto` -> the first CUDA device if there is one, else the CPU. Raises ModelError for one that is not there."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if there else "cpu")
    if not DEVICE.fullmatch(device):
        raise ModelError(f"model.device = {device!r} is no device; use auto, cpu, cuda or cuda:N")
    number = int(device.partition(":")[2] or 0)
    if device != "cpu" and number >= there:
        found = f"torch sees {there} CUDA device{'' if there == 1 else 's'}"
        remedy = f"or cuda:0 to cuda:{there - 1}" if there else "or install a CUDA build of torch"
        raise ModelError(f"model.device = {device!r}, but {found}; use auto, cpu, {remedy}")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> tuple[torch.dtype, bool]:
    """(what the weights are in, whether linear layers of fp32 weights multiply in bf16).

    `auto`: bf16 on a GPU; on a CPU `mixed` where it has bf16 instructions, else fp32. A CPU's other layers, attention
    above all, are slower in bf16. Raises ModelError for what is no float type, and for `mixed` on a GPU; BackendError
    for `mixed` on a CPU without such instructions.
    """
    if dtype == "auto":
        on_gpu = device.type == "cuda"
        return (torch.bfloat16, False) if on_gpu else (torch.float32, backends.available("onednn-bf16").ok)
    if dtype == "mixed":
        if device.type != "cpu":
            raise ModelError(f"model.dtype = mixed is for a CPU, the device is {device}; use bfloat16")
        backends.require("onednn-bf16", "model.dtype = mixed")
        return torch.float32, True
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ModelError(f"model.dtype = {dtype!r} is no kind of float; use auto, float32, mixed, bfloat16 or float16")
    return kind, False
