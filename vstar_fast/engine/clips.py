"""What a caller shows the engine: frames as they come from a reader, or what the model made of them before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from vstar_fast.errors import DataError, ModelError
from vstar_fast.models.features import Features
from vstar_fast.records import FrameBatch, Frames, Rejected


class Kept:
    """Features of the clips seen last, by their frames, at most `budget` bytes of them."""

    def __init__(self, budget: int) -> None:
        self.budget, self.nbytes = budget, 0
        self._held: OrderedDict[bytes, Features] = OrderedDict()

    def features(self, lm: Any, video: Any) -> Features | None:
        """The model's features of a `Frames`, of uint8 [F, H, W, 3] (a second each), of Features or None, as they are.

        A clip that is kept is not encoded again. Raises DataError for anything else, such as a path: `FrameSource`
        reads files.
        """
        if video is None or isinstance(video, Features):
            return video
        data, times = frames_of(lm, video)
        key = _key(data, times)
        found = self._held.pop(key, None)
        if found is None:
            (found,) = lm.encode(FrameBatch([data], [times], []))
            self.nbytes += _size(found)
        self._held[key] = found
        while self.nbytes > self.budget:
            self.nbytes -= _size(self._held.popitem(last=False)[1])
        return found


def _key(data: torch.Tensor, times: tuple[float, ...]) -> bytes:
    seen = hashlib.blake2b(repr((tuple(data.shape), times)).encode(), digest_size=16)
    seen.update(data.cpu().contiguous().numpy().data)
    return seen.digest()


def _size(features: Features) -> int:
    return sum(value.nbytes for value in features.kwargs.values())


def frames_of(lm: Any, video: Any) -> tuple[torch.Tensor, tuple[float, ...]]:
    """Frames uint8 [F, H, W, 3] and the second of each. Raises DataError for what are none."""
    if not hasattr(lm, "encode"):
        raise ModelError("this is a model of text alone; give None in place of a video")
    if isinstance(video, Rejected):
        raise DataError(f"{video.id} gave no frames: {video.reason}: {video.detail}")
    if isinstance(video, Frames):
        data, times = video.data, video.times_s
    elif isinstance(video, (torch.Tensor, np.ndarray)):
        data, times = torch.as_tensor(video), tuple(float(i) for i in range(len(video)))
    else:
        raise DataError(
            f"a video is frames, features or None, not a {type(video).__name__}; read files with vstar_fast.frames"
        )
    if data.dtype != torch.uint8 or data.ndim != 4 or not len(data) or data.shape[-1] != 3:
        kind = f"{str(data.dtype).removeprefix('torch.')} {list(data.shape)}"
        raise DataError(f"frames must be uint8 [F, H, W, 3] with at least one frame, got {kind}")
    return data, times
