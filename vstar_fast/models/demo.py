"""Adapter of the demo model: its tower's features are kept, so that a video is encoded once a run."""

from __future__ import annotations

import torch

from vstar_fast.models.video_lm import Features, VideoLM


class DemoLM(VideoLM):
    """`encode` stops before the trained projector; its own forward takes up from there."""

    small_features = True

    @classmethod
    def register(cls) -> None:
        """Make the demo model's classes known to transformers."""
        from vstar_fast.models.vstar_demo import register

        register()

    @torch.inference_mode()
    def encode_pixels(self, features: list[Features]) -> list[Features]:
        """Pixels `[1, F, 3, H, W]` of each clip -> tower features `[1, F, C]`, frozen and in eval mode."""
        pixels = [f.kwargs["pixel_values_videos"] for f in features]
        if self.device.type == "cuda" and len({p.shape for p in pixels}) == 1:
            encoded = self.model.encode(torch.cat(pixels).to(self.device)).split(1)
        else:  # on a CPU the tower is bound by its caches: one clip at a time costs a third of eight at once
            encoded = tuple(self.model.encode(p.to(self.device)) for p in pixels)
        return [Features(f.ids, {"video_features": row.cpu()}) for f, row in zip(features, encoded, strict=True)]
