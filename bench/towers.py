"""Vision towers of the models by name, random weights: what a clip of so many visual tokens takes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

PATCHES = 28
"""Patches a side of a picture, for towers that take pictures of any size."""


Tower = tuple[Any, Callable[[str], Any], int]


def qwen(module: str, config: str, tower: str, **sizes: Any) -> Callable[[int], Tower]:
    """A Qwen tower with its merger: two frames of 28 x 28 patches are 196 tokens."""

    def make(tokens: int) -> Tower:
        import torch

        found = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
        chosen = getattr(importlib.import_module(f"transformers.models.{module}.configuration_{module}"), config)(
            **sizes
        )
        made = getattr(found, tower)._from_config(chosen)
        merged = (PATCHES // chosen.spatial_merge_size) ** 2
        steps = max(1, round(tokens / merged))
        width = chosen.in_channels * chosen.temporal_patch_size * chosen.patch_size**2

        def see(device: str) -> Any:
            pixels = torch.randn(steps * PATCHES**2, width, device=device, dtype=made.dtype)
            return made(pixels, grid_thw=torch.tensor([[steps, PATCHES, PATCHES]], device=device))

        return made, see, steps * merged

    return make


def _clip(tokens: int) -> Tower:
    """Video-LLaVA's tower: CLIP-L/14 at 224 pixels, 257 tokens a frame."""
    import torch
    import transformers

    config = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )
    tower = transformers.CLIPVisionModel._from_config(config)
    frames = max(1, round(tokens / 257))

    def see(device: str) -> Any:
        return tower(torch.randn(frames, 3, 224, 224, device=device, dtype=tower.dtype), output_hidden_states=True)

    return tower, see, frames * 257


TOWERS: dict[str, Callable[[int], Tower]] = {
    "Qwen2.5-VL-7B": qwen(
        "qwen2_5_vl", "Qwen2_5_VLVisionConfig", "Qwen2_5_VisionTransformerPretrainedModel",
        depth=32, hidden_size=1280, out_hidden_size=3584,
    ),
    "Qwen3-VL-8B": qwen(
        "qwen3_vl", "Qwen3VLVisionConfig", "Qwen3VLVisionModel",
        depth=27, hidden_size=1152, intermediate_size=4304, out_hidden_size=4096,
    ),
    "Video-LLaVA-7B": _clip,
}  # fmt: skip
"""Name -> (tokens wanted -> (tower, a call of it for one clip, tokens it gives))."""


def build(name: str, tokens: int, device: str) -> tuple[Callable[[], Any], int]:
    """(a call that sees one clip, visual tokens it gives); bf16 on a GPU."""
    import torch

    tower, see, given = TOWERS[name](tokens)
    tower.to(device, torch.bfloat16 if device == "cuda" else torch.float32).eval()

    def call() -> Any:
        with torch.inference_mode():
            return see(device)

    return call, given
