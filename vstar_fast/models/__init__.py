"""Model families: one adapter a family, chosen by the config's `model_type`, imported when first asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vstar_fast.errors import ModelError

if TYPE_CHECKING:
    from vstar_fast.models.video_lm import VideoLM

GENERIC = "vstar_fast.models.loading"
QWEN = "vstar_fast.models.qwen_vl"
# model_type -> module with `load(path, dtype, device) -> VideoLM`. Those that name the generic one are tested with it;
# anything that is not named here goes through it too.
FAMILIES = {
    "vstar_demo": "vstar_fast.models.demo",
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "llava_onevision": "vstar_fast.models.llava_onevision",
    "llava_next_video": GENERIC,
    "video_llava": GENERIC,
    "smolvlm": GENERIC,
    "internvl": GENERIC,
}


def model_type(path: str) -> str:
    """The `model_type` in the config of a local folder or hub id."""
    folder = Path(path)
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            raise ModelError(f"model folder {path} has no config.json; give a folder written by `save_pretrained`")
        return str(json.loads(config.read_text()).get("model_type", ""))
    if folder.exists() or path.startswith((".", "/")):
        raise ModelError(f"{path} is not a model folder; give a folder written by `save_pretrained` or a hub id")
    from transformers import PretrainedConfig

    return str(PretrainedConfig.get_config_dict(path)[0].get("model_type", ""))


def load(path: str, *, dtype: str = "auto", device: str = "auto", family: str = "auto") -> VideoLM:
    """Load a video-LMM behind the adapter of its family.

    `path`: model folder or hub id. `family`: an entry of FAMILIES, `generic`, or `auto`.
    Raises ModelError when the folder lacks its config, weights or processor.
    """
    import importlib

    if not path:
        raise ModelError("no model given; set model.base to a model folder or hub id")
    kind = model_type(path) if family == "auto" else family
    if family not in ("auto", "generic") and family not in FAMILIES:
        raise ModelError(f"unknown model family {family!r}; known: {', '.join([*FAMILIES, 'generic'])}")
    module = importlib.import_module(FAMILIES.get(kind, GENERIC))
    return module.load(path, dtype=dtype, device=device)
