"""The ops other projects import: each works alone, on plain tensors, and loads nothing until it is used.

    from vstar_fast.ops import LabelSet, label_match, sample

    labels = LabelSet(["back flip", "spin kick"], aliases={"back flip": ["backflip"]})
    match = label_match(["Answer: a Spin_Kick."], labels, own=["spin kick"], after="Answer:")
    match.matched                                   # tensor([True])
    match.first                                     # tensor([[10, 19]]), bytes

    tokens = TokenBytes.from_hf(tokenizer)          # the same on generated ids [B, T], nothing decoded
    label_match(ids, labels, own=["spin kick"], tokens=tokens, lengths=lengths)

    ids, logprobs = sample(logits, seeds, step=0, temperature=0.7)   # [B] int64, [B] fp32

Every op has `backend="auto"`: `vstar-fast doctor` tells what that means here, `vstar_fast.backends.report()`
what ran.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstar_fast.kernels.label_match import LabelMatch, LabelSet, TokenBytes, char_span, label_match
    from vstar_fast.kernels.sample import sample
    from vstar_fast.kernels.value_match import ValueMatch, match_interval, match_number

__all__ = [
    "LabelMatch",
    "LabelSet",
    "TokenBytes",
    "ValueMatch",
    "char_span",
    "label_match",
    "match_interval",
    "match_number",
    "sample",
]

_HOME = {
    "LabelMatch": "label_match",
    "LabelSet": "label_match",
    "TokenBytes": "label_match",
    "char_span": "label_match",
    "label_match": "label_match",
    "ValueMatch": "value_match",
    "match_interval": "value_match",
    "match_number": "value_match",
    "sample": "sample",
}


def __getattr__(name: str) -> Any:
    """Load an op on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'vstar_fast.ops' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vstar_fast.kernels.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
