"""LLaVA-OneVision: frames are pooled 2 x 2 behind the projector, and a newline token closes the video.

Kept of a video is the tower's output before the projector, `[1, F, patches, C]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from vstar_fast.models.tower import Tower
from vstar_fast.models.video_lm import VideoLM


class OneVisionTower(Tower):
    """Repeats the pooling; whether the newline belongs to the features differs between transformers versions."""

    keeps = "what the projector is given"

    def keep(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """The projector's input with a dimension for the video, so that pooled frames of several stay apart."""
        kept, own = super().keep(inputs)
        return kept[None], own

    def tails(self) -> Iterator[Any]:
        """Pooled frames of each video, without its newline (the body adds it) or with it."""
        yield self._pooled
        yield lambda tokens: self._closed(self._pooled(tokens))

    def _pooled(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, F, patches, H]` -> `[B, tokens, H]`."""
        return self.body.apply_pooling(tokens.flatten(0, 1)).reshape(len(tokens), -1, tokens.shape[-1])

    def _closed(self, tokens: torch.Tensor) -> torch.Tensor:
        newline = self.body.image_newline.to(tokens).expand(len(tokens), 1, -1)
        return torch.cat([tokens, newline], 1)


class OneVision(VideoLM):
    """LLaVA-OneVision."""

    tower_class = OneVisionTower
