"""`patchify` in plain torch: the specification of every backend, and what transformers' video processors compute."""

from __future__ import annotations

import torch

from .layout import Layout


def run(frames: torch.Tensor, layout: Layout, dtype: torch.dtype) -> torch.Tensor:
    """As `patchify`."""
    colours = frames.float()
    if layout.matrix is not None:
        colours = _recolour(colours, layout.matrix)
    mean, std = (colours.new_tensor(x)[:, None, None] for x in (layout.mean, layout.std))
    found = (colours - mean) / std
    return (_patches(found, layout) if layout.patch else found.contiguous()).to(dtype)


def _recolour(colours: torch.Tensor, matrix: tuple[float, ...]) -> torch.Tensor:
    """Sums in one order, each rounded: where a sum ends near a half, another order gives another colour."""
    rows = colours.new_tensor(matrix).view(3, 4)[:, :, None, None]
    moved = rows[:, 3] + colours[:, 0, None] * rows[:, 0]
    for channel in (1, 2):
        moved = moved + colours[:, channel, None] * rows[:, channel]
    return moved.round().clamp(0, 255)


def _patches(found: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[F, C, H, W] -> [patches, C * temporal * patch * patch]."""
    patch, merge, temporal = layout.patch, layout.merge, layout.temporal
    missing = -len(found) % temporal
    if missing:
        found = torch.cat([found, found[-1:].expand(missing, -1, -1, -1)])
    frames, channels, height, width = found.shape
    down, across = height // patch // merge, width // patch // merge
    cut = found.view(frames // temporal, temporal, channels, down, merge, patch, across, merge, patch)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, channels * temporal * patch * patch)
