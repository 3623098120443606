"""One call of a model's own processor: for sampling, training and evaluation alike."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from vstar_fast.models import frame_path


def preprocess(
    processor: Any, text: str, data: torch.Tensor, times_s: tuple[float, ...], *, special: bool
) -> dict[str, Any]:
    """Prompt and frames uint8 `[F, H, W, 3]` seen at `times_s` -> the processor's output, tensors of batch size 1.

    Frames are taken as they are (no sampling). Their numbers are given as fractions, so that number / fps is each
    frame's time exactly: that is what Qwen3-VL and SmolVLM print. `special`: let the tokenizer add its first token.
    Where a folder leaves Qwen's `cap_pixels_per_frame` open it is on, as in Qwen's own code: its default, and with it
    the number of tokens, differs between transformers versions. Frames on a GPU go through `patchify` there.
    """
    if data.device.type != "cpu":
        tried = partial(_probed, text=text, device=data.device, special=special)
        processor = frame_path.processor_for(processor, data.device, tried)
    return _call(processor, text, data, times_s, special=special)


def _probed(processor: Any, *, text: str, device: torch.device, special: bool) -> dict[str, Any]:
    """What a processor gives for the probe on a device."""
    data, times_s = probe_clip()
    return _call(processor, text, data.to(device), times_s, special=special)


def _call(
    processor: Any, text: str, data: torch.Tensor, times_s: tuple[float, ...], *, special: bool
) -> dict[str, Any]:
    from transformers.video_utils import VideoMetadata

    span_s = times_s[-1] - times_s[0]
    fps = (len(times_s) - 1) / span_s if span_s > 0 else 1.0
    meta = VideoMetadata(
        total_num_frames=len(times_s),
        fps=fps,
        duration=len(times_s) / fps,
        frames_indices=[t * fps for t in times_s],
    )
    capped = getattr(processor.video_processor, "cap_pixels_per_frame", False)
    settings = {"cap_pixels_per_frame": True} if capped is None else {}
    out = processor(
        text=[text],
        videos=[[data.permute(0, 3, 1, 2)]],
        return_tensors="pt",
        video_metadata=[meta],
        do_sample_frames=False,
        add_special_tokens=special,
        **settings,
    )
    return dict(out)


def probe_clip() -> tuple[torch.Tensor, tuple[float, ...]]:
    """A small random clip, to learn from it what a processor and a model do with any clip."""
    noise = torch.randint(0, 256, (4, 96, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return noise, (0.5, 1.5, 2.5, 3.5)
