"""Vision towers of the models by name, random weights: what a clip of so many visual tokens takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

PATCHES = 28
"""Patches a side of a picture, for towers that take pictures of any size."""


def _qwen(kind: str, size: str, **vision: Any) -> Callable[[int], tuple[Any, Callable[..., Any], int]]:
    """A Qwen tower and its merger: two frames of 28 x 28 patches are 196 tokens."""

    def make(tokens: int) -> tuple[Any, Callable[..., Any], int]:
        import torch
        import transformers

        config = getattr(transformers, f"{kind}Config")(vision_config=vision).vision_config
        module = __import__(f"transformers.models.{size}.modeling_{size}", fromlist=["x"])
        cls = next(
            getattr(module, n) for n in dir(module) if n.startswith(kind) and "Vision" in n and _is_tower(module, n)
        )
        tower = cls._from_config(config)
        merged = (PATCHES // config.spatial_merge_size) ** 2
        steps = max(1, round(tokens / merged))
        width = config.in_channels * config.temporal_patch_size * config.patch_size**2

        def see(device: str) -> Any:
            pixels = torch.randn(steps * PATCHES**2, width, device=device, dtype=tower.dtype)
            grid = torch.tensor([[steps, PATCHES, PATCHES]], device=device)
            return tower(pixels, grid_thw=grid)

        return tower, see, steps * merged

    return make


def _is_tower(module: Any, name: str) -> bool:
    """Whether a class is the whole tower: it is given patches and their grid."""
    import inspect

    found = getattr(module, name)
    return (
        inspect.isclass(found)
        and hasattr(found, "_from_config")
        and "grid_thw" in inspect.signature(found.forward).parameters
    )


def _clip(tokens: int) -> tuple[Any, Callable[..., Any], int]:
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


TOWERS: dict[str, Callable[[int], tuple[Any, Callable[..., Any], int]]] = {
    "Qwen2.5-VL-7B": _qwen("Qwen2_5_VL", "qwen2_5_vl", depth=32, hidden_size=1280, out_hidden_size=3584),
    "Qwen3-VL-8B": _qwen(
        "Qwen3VL", "qwen3_vl", depth=27, hidden_size=1152, intermediate_size=4304, out_hidden_size=4096
    ),
    "Video-LLaVA-7B": _clip,
}
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
