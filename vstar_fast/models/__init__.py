"""Model families: one adapter a family, chosen by the config's `model_type`, imported when first asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vstar_fast.errors import ModelError

if TYPE_CHECKING:
    from vstar_fast.models.video_lm import VideoLM

GENERIC = "vstar_fast.models.video_lm:VideoLM"
TESTED = (
    "cohere_compass cosmos3_edge cosmos3_omni dots3_note ernie4_5_vl_moe exaone4_5 gemma4 gemma4_unified glm46v glm4v "
    "glm4v_moe glm5_next glm_ocr glmga hy_v4_vl hyperclovax_vision_v2 internvl kimi_k25 lfm3_vl llava_next_video "
    "llava_onevision minicpm_ocr minicpmv4_6 minicpmv4_7 minimax_m3_vl molmo2 muse_glimmer muse_spark nemotron_h_omni "
    "perception_lm qwen2_5_omni qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_omni_moe "
    "qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe qwen4_exp smolvlm video_llama_3 video_llava"
)
FAMILIES = {"vstar_demo": "vstar_fast.models.demo:DemoLM", **dict.fromkeys(TESTED.split(), GENERIC)}
"""model_type -> adapter class. Those with the generic one are tested with it; what is not named here has it too."""


def model_type(path: str) -> str:
    """The `model_type` in the config of a local folder or hub id."""
    folder = Path(path)
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            raise ModelError(f"model folder {path} has no config.json; give a folder written by `save_pretrained`")
        return _type_in(config)
    if folder.exists() or path.startswith((".", "/")):
        raise ModelError(f"{path} is not a model folder; give a folder written by `save_pretrained` or a hub id")
    from transformers import PretrainedConfig

    try:
        return str(PretrainedConfig.get_config_dict(path)[0].get("model_type", ""))
    except OSError as error:
        raise ModelError(f"cannot read the config of {path} from the hub: {str(error).strip()}") from None


def _type_in(config: Path) -> str:
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type", ""))
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{config} is damaged ({error}); copy or download the model again") from None


def adapter_name(path: str) -> str:
    """Name of the adapter that a model folder or hub id will get; nothing heavy is imported for it."""
    entry = FAMILIES.get(model_type(path), GENERIC)
    return "generic" if entry == GENERIC else entry.partition(":")[2]


def adapter(path: str, family: str = "auto") -> type[VideoLM]:
    """The adapter class of a model folder or hub id. `family`: an entry of FAMILIES, `generic`, or `auto`."""
    import importlib

    if not path:
        raise ModelError("no model given; set model.base to a model folder or hub id")
    kind = model_type(path) if family == "auto" else family
    if family not in ("auto", "generic") and family not in FAMILIES:
        raise ModelError(f"unknown model family {family!r}; known: {', '.join([*FAMILIES, 'generic'])}")
    module, _, name = FAMILIES.get(kind, GENERIC).partition(":")
    found: type[VideoLM] = getattr(importlib.import_module(module), name)
    return found


def load(
    path: str, *, dtype: str = "auto", device: str = "auto", family: str = "auto", quantize: str = "none"
) -> VideoLM:
    """Load a video-LMM behind the adapter of its family.

    `path`: model folder or hub id. `quantize`: `4bit` for NF4 weights in the text stack's layers (BackendError without
    bitsandbytes). Raises ModelError when the folder lacks its config, weights, processor or chat
    template, or when the model takes no videos.
    """
    found = adapter(path, family)
    from vstar_fast.models import loading

    return loading.load(path, found, dtype=dtype, device=device, quantize=quantize)


def without_weights(path: str, family: str = "auto") -> VideoLM:
    """The same without its weights: it can be looked at, and makes prompts; raises as `load` does."""
    found = adapter(path, family)
    from vstar_fast.models import loading

    return loading.without_weights(path, found)
