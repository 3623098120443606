"""`patchify`: uint8 frames to what a vision tower takes, in one pass: colours, scale, normalisation, patches.

What Hugging Face's video processors do in five passes over fp32 copies of the frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from vstar_fast import backends
from vstar_fast.errors import ConfigError

from .layout import Layout

__all__ = ["Layout", "patchify"]

KINDS = (torch.float32, torch.float16, torch.bfloat16)


def patchify(
    frames: torch.Tensor, layout: Layout, dtype: torch.dtype = torch.float32, *, backend: str = "auto"
) -> torch.Tensor:
    """(frame - mean) / std, in the order of the layout.

    Args:
        frames: uint8 [F, C, H, W] of any strides, so [F, H, W, C] goes in as `frames.permute(0, 3, 1, 2)`.
        layout: numbers and order; see `Layout`.
        dtype: of the result; the arithmetic is fp32.
        backend: "auto", "triton" or "reference".

    Returns:
        [F, C, H, W] without patches; else [patches, C * temporal * patch * patch], a row a patch, those of a merge x
        merge square beside one another (Qwen2-VL's order). Frames that a temporal patch lacks at the end are the last
        one again. Raises ConfigError for sizes that patches do not divide.
    """
    _check(frames, layout, dtype)
    choice = backends.choose("patchify", frames.device, backend)
    found = _BACKENDS[choice.name]()(frames, layout, dtype)
    backends.ran("patchify", choice.name)
    return found


def _check(frames: torch.Tensor, layout: Layout, dtype: torch.dtype) -> None:
    if frames.dtype != torch.uint8 or frames.dim() != 4 or not frames.numel():
        raise ConfigError(f"frames are {frames.dtype} {tuple(frames.shape)}; they are uint8 [F, C, H, W], at least one")
    if dtype not in KINDS:
        raise ConfigError(f"patches of {dtype} were asked for; there are fp32, fp16 and bf16")
    channels, height, width = frames.shape[1:]
    if len(layout.mean) != channels or (layout.matrix is not None and channels != 3):
        raise ConfigError(f"frames have {channels} channels, the layout has {len(layout.mean)}; a matrix needs 3")
    square = layout.patch * layout.merge
    if layout.patch and (height % square or width % square):
        raise ConfigError(f"frames of {width} x {height} do not divide into squares of {square}; resize them first")


Run = Callable[[torch.Tensor, Layout, torch.dtype], torch.Tensor]


def _reference() -> Run:
    from .reference import run

    return run


def _triton() -> Run:
    from .triton_kernel import run

    return run


_BACKENDS: dict[str, Callable[[], Run]] = {"triton": _triton, "reference": _reference}
