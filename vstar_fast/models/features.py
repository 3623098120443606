"""The video part of a prompt, as a model takes it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class Features:
    """The video part of a row.

    `ids` int64 `[n]`: the video's tokens. `kwargs`: model inputs of this video, first dimension = 1 video (or its
    patches, or its frames): the tower's output, or pixels where it cannot be kept; `token_kwargs`: inputs with one
    value a token of `ids` (e.g. token types).
    """

    ids: torch.Tensor
    kwargs: dict[str, torch.Tensor]
    token_kwargs: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.nbytes for t in (self.ids, *self.kwargs.values(), *self.token_kwargs.values()))
