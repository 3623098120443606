"""LLaVA-OneVision: frames are pooled 2 x 2 behind the projector, and a newline token closes the video.

Kept of a video is the tower's output before the projector, `[1, F, patches, C]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vstar_fast.models.tower import Projected, Tower
from vstar_fast.models.video_lm import VideoLM


class OneVisionTower(Tower):
    """Repeats the pooling; whether the newline belongs to the features differs between transformers versions."""

    keeps = "what the projector is given"

    def keep(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The projector's input with a dimension for the video, so that pooled frames of several stay apart."""
        return super().keep(inputs)[None]

    def tails(self) -> Iterator[Any]:
        """Pooled frames of each video, without its newline (the body adds it) or with it."""
        yield self._pooled
        yield lambda tokens: self._closed(self._pooled(tokens))

    def project(self, kept: torch.Tensor) -> Projected:
        """`[B, F, patches, C]` -> `[B, tokens, H]`."""
        self._videos = len(kept)
        return super().project(kept.flatten(0, 1))

    def _pooled(self, tokens: torch.Tensor) -> torch.Tensor:
        pooled = self.body.apply_pooling(tokens)
        return pooled.reshape(self._videos, -1, pooled.shape[-1])

    def _closed(self, tokens: torch.Tensor) -> torch.Tensor:
        newline = self.body.image_newline.to(tokens).expand(len(tokens), 1, -1)
        return torch.cat([tokens, newline], 1)


class OneVision(VideoLM):
    """LLaVA-OneVision."""

    tower_class = OneVisionTower
