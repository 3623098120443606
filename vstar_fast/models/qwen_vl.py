"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: the projector sits inside the tower, as `visual.merger` and its deep-stack kin.

Kept of a video is what the mergers are given, 2 x 2 patches side by side in one row a token: `[tokens, M * 4C]` for M
mergers. A trained merger therefore changes nothing that is kept. That is about as many bytes as the pixels are, and
three times as many for Qwen3-VL's four mergers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch

from vstar_fast.models.text_inputs import forward_of
from vstar_fast.models.tower import Projected, Tower
from vstar_fast.models.video_lm import VideoLM


class QwenTower(Tower):
    """Takes the mergers out of the tower while it runs, so that its own code restores the order of the patches."""

    keeps = "what the mergers in the tower are given"

    @cached_property
    def projector_names(self) -> list[str]:
        """The merger, then those of the deep stack (Qwen3-VL)."""
        stack = getattr(self.body.visual, "deepstack_merger_list", ())
        return ["visual.merger", *(f"visual.deepstack_merger_list.{i}" for i in range(len(stack)))]

    def keep(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """What each merger is given, side by side: `[tokens, M * 4C]`."""
        patches = self.body.visual.spatial_merge_size**2
        mergers = [self.projector(name) for name in self.projector_names]
        with forward_of(mergers, lambda x: x.reshape(-1, patches * x.shape[-1])):
            features = self.run(inputs)
        deep = getattr(features, "deepstack_features", None) or ()
        parts = (features.pooler_output, *deep)
        kept = [part if isinstance(part, torch.Tensor) else torch.cat(list(part)) for part in parts]
        return torch.cat(kept, -1), None

    def tails(self) -> Iterator[Any]:
        """Deep-stack features as one tensor a layer, or (transformers 5.24) as a list of them a layer."""
        yield lambda deep: deep or None
        yield lambda deep: [[layer] for layer in deep]

    def project(self, kept: torch.Tensor) -> Projected:
        """Merged tokens of all videos in one list entry, and those of the deep stack."""
        mergers = [self.projector(name) for name in self.projector_names]
        width = kept.shape[-1] // (len(mergers) * self.body.visual.spatial_merge_size**2)
        parts = kept.chunk(len(mergers), -1)
        merged = [m(part.reshape(-1, width)) for m, part in zip(mergers, parts, strict=True)]
        return Projected(pooler_output=[merged[0]], deepstack_features=self._tail(merged[1:]))


class QwenVL(VideoLM):
    """Qwen's video-LMMs."""

    tower_class = QwenTower
