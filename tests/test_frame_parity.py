"""Frames resized when they are decoded give a model's processor what the file's own frames give it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vstar_fast import torchvision_compat
from vstar_fast.frames import ModelSize

torchvision_compat.ensure()

TOLERANCE = 1e-6
"""Of normalised pixels: the same resize ran on the same bytes."""


def processors() -> dict[str, Any]:
    from transformers import LlavaOnevisionVideoProcessor, Qwen2VLVideoProcessor

    from vstar_fast.models.vstar_demo.processing import VStarDemoVideoProcessor

    qwen25 = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    return {
        "demo": VStarDemoVideoProcessor(),
        "llava-onevision": LlavaOnevisionVideoProcessor(),
        "qwen2.5-vl": Qwen2VLVideoProcessor(**qwen25, size={"shortest_edge": 56 * 56, "longest_edge": 8 * 112 * 112}),
    }


def pixels(processor: Any, data: torch.Tensor) -> dict[str, torch.Tensor]:
    settings = {"cap_pixels_per_frame": True} if getattr(processor, "cap_pixels_per_frame", False) is None else {}
    video = [[data.permute(0, 3, 1, 2)]]
    return dict(processor(videos=video, do_sample_frames=False, return_tensors="pt", **settings))


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    """Smooth and sharp at once: noise, ramps and an edge."""
    generator = torch.Generator().manual_seed(height)
    data = torch.randint(0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator)
    data[:, : height // 2] = torch.linspace(0, 255, width).to(torch.uint8)[None, None, :, None]
    data[:, :, : width // 3] = 255
    return data


@pytest.mark.parametrize("name", ["demo", "llava-onevision", "qwen2.5-vl"])
@pytest.mark.parametrize(("height", "width"), [(720, 1280), (576, 720), (1080, 608), (417, 593)])
def test_the_processor_gives_the_same_tensors(name: str, height: int, width: int) -> None:
    processor = processors()[name]
    model_size = ModelSize(processor)
    data = clip(4, height, width)
    small = model_size(data)
    assert small.numel() < data.numel() and small.dtype == torch.uint8
    expected, found = pixels(processor, data), pixels(processor, small)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape
        assert (found[key].float() - value.float()).abs().max() <= TOLERANCE, key
    assert "resize" not in vars(processor)


@pytest.mark.parametrize("name", ["demo", "llava-onevision", "qwen2.5-vl"])
def test_small_clips_are_left_alone(name: str) -> None:
    data = clip(4, 30, 40)
    assert ModelSize(processors()[name])(data) is data


def test_a_processor_without_a_resize_step_leaves_frames_alone() -> None:
    processor = processors()["demo"]
    processor.do_resize = False
    data = clip(2, 300, 400)
    assert ModelSize(processor)(data) is data


def test_the_models_own_processor_stays_as_it_is_while_a_size_is_asked(monkeypatch):
    processor = next(iter(processors().values()))
    original, during = type(processor).resize, []

    def seen(self, *args, **kwargs):
        during.append("resize" in vars(processor))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(processor), "resize", seen)
    assert ModelSize(processor).size(2, 720, 1280) is not None
    assert during and not any(during)
