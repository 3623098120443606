"""One call of a model's own processor: for sampling, training and evaluation alike."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch

from vstar_fast.models import frame_path


class How(NamedTuple):
    """How a processor is called. `special`: let its tokenizer add its first token. `whole`: frames have whole numbers.

    Numbers are fractions else, so that number / fps is each frame's time exactly at the fps at which they were taken:
    that is what Qwen3-VL and SmolVLM print. Nemotron cuts what stands behind the point.
    """

    special: bool
    whole: bool = False


TICKS = 1000.0
"""Whole numbers of frames are counted at so many a second."""


def preprocess(processor: Any, text: str, data: torch.Tensor, times_s: tuple[float, ...], how: How) -> dict[str, Any]:
    """Prompt and frames uint8 `[F, H, W, 3]` seen at `times_s` -> the processor's output, tensors of batch size 1.

    Frames are taken as they are (no sampling).
    Where a folder leaves Qwen's `cap_pixels_per_frame` open it is on, as in Qwen's own code: its default, and with it
    the number of tokens, differs between transformers versions. Frames on a GPU go through `patchify` there. A single
    frame is shown twice to a processor that takes no fewer than two.
    """
    if len(data) == 1:
        try:
            return _placed(processor, text, data, times_s, how)
        except ValueError:  # Qwen3-VL and its kin pair frames and take no single one
            data, times_s = torch.cat([data, data]), times_s * 2
    return _placed(processor, text, data, times_s, how)


def _placed(processor: Any, text: str, data: torch.Tensor, times_s: tuple[float, ...], how: How) -> dict[str, Any]:
    """The call where the frames are."""
    if data.device.type != "cpu":
        tried = partial(_probed, text=text, device=data.device, how=how)
        processor = frame_path.processor_for(processor, data.device, tried)
    return _call(processor, text, data, times_s, how)


def _probed(processor: Any, *, text: str, device: torch.device, how: How) -> dict[str, Any]:
    """What a processor gives for the probe on a device."""
    data, times_s = probe_clip()
    return _call(processor, text, data.to(device), times_s, how)


def _call(
    processor: Any, text: str, data: torch.Tensor, times_s: tuple[float, ...], how: How, rows: int = 1
) -> dict[str, Any]:
    """The processor's output for `rows` rows of the same."""
    from transformers.video_utils import VideoMetadata

    span_s = times_s[-1] - times_s[0]
    fps = (len(times_s) - 1) / span_s if span_s > 0 else 1.0
    numbers = [round(t * TICKS) for t in times_s] if how.whole else [t * fps for t in times_s]
    meta = partial(
        VideoMetadata,
        total_num_frames=len(times_s),
        fps=TICKS if how.whole else fps,
        duration=len(times_s) / fps,
        frames_indices=numbers,
    )
    call = partial(
        processor,
        text=[text] * rows,
        videos=[[data.permute(0, 3, 1, 2)]] * rows,
        return_tensors="pt",
        video_metadata=[meta() for _ in range(rows)],
        do_sample_frames=False,
        add_special_tokens=how.special,
        **_settings(processor),
    )
    try:
        out = dict(call())
    except KeyError as error:  # Cosmos 3 Edge prints times, but does not ask its video processor for them
        if error.args != ("video_metadata",) or processor.video_processor.return_metadata:
            raise
        processor.video_processor.return_metadata = True
        out = dict(call())
    if "video_second_per_grid" in out:  # Qwen Omni's processors look for the frames' rate in another place
        seconds = processor.video_processor.temporal_patch_size / fps
        out["video_second_per_grid"] = torch.full((rows,), seconds)
    return out


def _settings(processor: Any) -> dict[str, bool]:
    """What is asked for beyond a processor's defaults: frames come as they were decoded, so they must be resized."""
    capped = getattr(processor.video_processor, "cap_pixels_per_frame", False)
    given = getattr(processor, "videos_kwargs", None)
    if given is None:  # before transformers 5.24
        given = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {}).get("videos_kwargs", {})
    settings = {"cap_pixels_per_frame": True} if capped is None else {}
    if getattr(processor, "return_mm_token_type_ids", False) and not hasattr(
        type(processor), "return_mm_token_type_ids"
    ):
        settings["return_mm_token_type_ids"] = True  # where it is no attribute of processors yet
    return settings | ({"do_resize": True} if given.get("do_resize") is False else {})


def joined_along(processor: Any, text: str, how: How) -> dict[str, int]:
    """Along which dimension a processor joins each input of several videos.

    Raises ValueError where it does more than that (Molmo2 counts on in a second video's patches).
    """
    one, two = (_call(processor, text, *probe_clip(), how, rows) for rows in (1, 2))
    found = {k: _along(v, two[k]) for k, v in one.items() if isinstance(v, torch.Tensor)}
    odd = [k for k, along in found.items() if along is None]
    if odd:
        raise ValueError(f"{odd[0]} of two videos is not that of one twice")
    return {k: along for k, along in found.items() if along is not None}


def _along(one: torch.Tensor, two: torch.Tensor) -> int | None:
    fits = (
        d for d in range(one.ndim) if two.shape[d] == 2 * one.shape[d] and torch.equal(two, torch.cat([one] * 2, d))
    )
    return next(fits, None)


def probe_clip() -> tuple[torch.Tensor, tuple[float, ...]]:
    """A small random clip, to learn from it what a processor and a model do with any clip."""
    noise = torch.randint(0, 256, (4, 96, 160, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return noise, (0.5, 1.5, 2.5, 3.5)
