"""Adapter of the demo model: its tower's features are kept, so that a video is encoded once a run."""

from __future__ import annotations

import torch

from vstar_fast.models import video_lm
from vstar_fast.models.video_lm import Features, VideoLM


class DemoLM(VideoLM):
    """`encode` stops before the trained projector; training and sampling start from there."""

    small_features = True

    @torch.inference_mode()
    def encode_pixels(self, features: list[Features]) -> list[Features]:
        """Pixels `[1, F, 3, H, W]` of each clip -> tower features `[1, F, C]`, one forward for equal sizes."""
        pixels = [f.kwargs["pixel_values_videos"].to(self.device) for f in features]
        sizes = {p.shape for p in pixels}
        stacked = self.model.encode(torch.cat(pixels)) if len(sizes) == 1 else None
        rows = stacked.split(1) if stacked is not None else [self.model.encode(p) for p in pixels]
        return [Features(f.ids, {"video_features": row.cpu()}) for f, row in zip(features, rows, strict=True)]


def load(path: str, *, dtype: str, device: str) -> VideoLM:
    """Load the demo model folder."""
    from vstar_fast.models.vstar_demo import register

    register()
    return video_lm.load(path, dtype=dtype, device=device, cls=DemoLM)
