"""What an op was given instead of the tensor that it takes."""

from __future__ import annotations

from typing import Any

import torch

from vstar_fast.errors import BackendError, VstarError


def shown(given: Any) -> str:
    """A tensor's type, shape and device, or of what type it is instead."""
    if not isinstance(given, torch.Tensor):
        return f"a {type(given).__name__}"
    return f"{given.dtype} {tuple(given.shape)} on {given.device}"


def check_rows(
    what: str, given: Any, like: torch.Tensor, error: type[VstarError], dtypes: tuple[torch.dtype, ...] = (torch.int64,)
) -> None:
    """`error` unless it is a tensor [B] of one of these types, with the rows of `like` and beside it."""
    fits = isinstance(given, torch.Tensor) and given.shape == like.shape[:1] and given.dtype in dtypes
    if not fits or given.device != like.device:
        name = str(dtypes[0]).removeprefix("torch.")
        raise error(f"{what} must be a tensor of {name} [{like.shape[0]}] on {like.device}, not {shown(given)}")


def address(given: torch.Tensor) -> int:
    """Where its first number lies; BackendError for a tensor that stands for others, or for none at all."""
    found = given.data_ptr()
    if found == 0 and given.numel() and (given.device.type == "cpu" or hasattr(given, "full_tensor")):
        kind = type(given).__name__
        raise BackendError(
            f"a {kind} on {given.device} has no numbers of its own; give a plain tensor (of a DTensor, full_tensor())"
        )
    return found
