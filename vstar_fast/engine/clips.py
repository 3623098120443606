"""What a caller shows the engine: frames as they come from a reader, or what the model made of them before."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vstar_fast.errors import DataError, ModelError
from vstar_fast.models.features import Features
from vstar_fast.records import FrameBatch, Frames, Rejected


def encode(lm: Any, video: Any) -> Features | None:
    """The model's features of a `Frames`, of uint8 [F, H, W, 3] (a second each), of Features or None, as they are.

    Raises DataError for anything else, such as a path: `FrameSource` reads files.
    """
    if video is None or isinstance(video, Features):
        return video
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
    found: Features = lm.encode(FrameBatch([data], [times], []))[0]
    return found
