"""A video processor's last steps, from uint8 frames to what the tower takes, by `patchify` instead of five passes.

A processor is copied with two methods of its video processor replaced; everything else, from sizes to the text, stays
the model's own code. Whether the copy gives what the original gives is tried on a probe: where it does not, the
original is used, and the log says so.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch

from vstar_fast.kernels.patchify import Layout, patchify

CLOSE = 1e-5
"""Of values of around 1: another order of the same fp32 roundings."""

_COPIES: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def processor_for(processor: Any, device: torch.device, tried: Callable[[Any], dict[str, Any]]) -> Any:
    """The processor that frames on `device` go to: on a GPU its fused copy, if `tried(processor)` is alike for both."""
    if device.type == "cpu":
        return processor
    return fused_or_own(processor, tried)


def fused_or_own(processor: Any, tried: Callable[[Any], dict[str, Any]]) -> Any:
    """The fused copy of a processor, or itself where that is not the same; tried once."""
    if processor not in _COPIES:
        made = fused(processor)
        good = _same(tried(processor), tried(made))
        if not good:
            name = type(processor.video_processor).__name__
            logging.getLogger(__name__).warning("%s: its own steps make the pixels, `patchify` differs", name)
        _COPIES[processor] = made if good else None  # not itself: a value must not keep its key alive
    return _COPIES[processor] or processor


def fused(processor: Any, backend: str = "auto") -> Any:
    """A copy of a processor whose video processor normalises, and cuts patches where its class does, by `patchify`."""
    made = copy.copy(processor)
    made.video_processor = copy.copy(processor.video_processor)
    own = processor.video_processor
    made.video_processor.rescale_and_normalize = MethodType(_normalize(own, backend), made.video_processor)
    if hasattr(own, "patchify"):
        made.video_processor.patchify = MethodType(_patchify(own, backend), made.video_processor)
    return made


def _normalize(own: Any, backend: str) -> Callable[..., torch.Tensor]:
    def rescale_and_normalize(
        self: Any, images: torch.Tensor, do_rescale: bool, rescale_factor: float, do_normalize: bool,
        image_mean: Any, image_std: Any,
    ) -> torch.Tensor:  # fmt: skip
        if images.dtype != torch.uint8 or not do_normalize:
            found: torch.Tensor = own.rescale_and_normalize(
                images, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )
            return found
        factor = rescale_factor if do_rescale else 1.0
        channels = images.shape[-3]
        mean, std = (_numbers(x, factor, channels) for x in (image_mean, image_std))
        if hasattr(self, "patchify"):
            waiting = images.view_as(images)
            waiting.vstar_numbers = (mean, std)  # type: ignore[attr-defined]
            return waiting
        flat = images.reshape(-1, *images.shape[-3:])
        return patchify(flat, Layout(mean, std), backend=backend).view(images.shape)

    return rescale_and_normalize


def _patchify(own: Any, backend: str) -> Callable[..., Any]:
    def cut(_self: Any, videos: torch.Tensor, patch_size: int, merge_size: int, temporal_patch_size: int) -> Any:
        numbers = getattr(videos, "vstar_numbers", None)
        if numbers is None:
            return own.patchify(videos, patch_size, merge_size, temporal_patch_size)
        layout = Layout(numbers[0], numbers[1], patch_size, temporal_patch_size, merge_size)
        found = torch.stack([patchify(video, layout, backend=backend) for video in videos])
        frames, _, height, width = videos.shape[1:]
        return found, -(-frames // temporal_patch_size), height // patch_size, width // patch_size

    return cut


def _numbers(given: Any, factor: float, channels: int) -> tuple[float, ...]:
    """A mean or standard deviation a channel, in units of 0 to 255."""
    each = [float(given)] * channels if isinstance(given, (int, float)) else [float(x) for x in given]
    return tuple(x * (1.0 / factor) for x in each)


def _same(own: dict[str, Any], made: dict[str, Any]) -> bool:
    if list(own) != list(made):
        return False
    return all(_close(own[name], made[name]) for name in own if isinstance(own[name], torch.Tensor))


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.allclose(a, b, atol=CLOSE, rtol=CLOSE) if a.is_floating_point() else torch.equal(a, b)
