"""Tokens of a video that see others behind them: what they see, from the mask that a body makes for its text stack."""

from __future__ import annotations

from typing import Any

import torch

from vstar_fast.errors import NotPacked
from vstar_fast.models.masks import SLIDING, causal, with_masks

Sight = dict[int | None, torch.Tensor]
"""By sliding window of a layer (None: without one), bool [t, T] on the host: what t tokens see of the T of a row."""


def embedded(lm: Any, ids: torch.Tensor, features: Any) -> tuple[Any, Sight | None]:
    """(`lm.embed(ids, features)`, what the row's tokens see where some see others behind them, else None).

    Raises NotPacked where words do not see what they would without a video, so that nothing is shared.
    """
    ahead = features is not None and getattr(lm, "sees_ahead", False)
    if not ahead or lm.refusal:
        return lm.embed(ids, features), None
    config = lm.text_model.config
    with with_masks(lm.text_model):
        given = lm.embed(ids, features, masked=True)
    if given.mask is None:
        return given, None
    video, host = features.ids.cpu(), ids.cpu()
    start = next(n for n in range(len(ids)) if torch.equal(host[n : n + len(video)], video))
    sight = _sight(given.mask, len(ids), config)
    for window, seen in sight.items():
        _check_words(seen, window, slice(start, start + len(video)))
    return given, sight


def of_window(sight: Sight, window: int | None) -> torch.Tensor:
    """For layers of this window; a body that makes one mask means all layers."""
    return sight[window] if window in sight else next(iter(sight.values()))


def _sight(mask: Any, tokens: int, config: Any) -> Sight:
    each = mask if isinstance(mask, dict) else {"": mask}
    found: Sight = {}
    for kind, given in each.items():
        window = int(config.sliding_window) if kind == SLIDING else None
        if given is None:
            found[window] = causal(tokens, window)
        else:
            found[window] = (given if given.dtype == torch.bool else given == 0)[0, 0].cpu()
    return found


def _check_words(seen: torch.Tensor, window: int | None, video: slice) -> None:
    words = torch.ones(len(seen), dtype=torch.bool)
    words[video] = False
    if not torch.equal(seen[words], causal(len(seen), window)[words]) or bool(seen[video, video.stop :].any()):
        raise NotPacked("this model masks words around a video in a way of its own; set finetune.pack = false")
