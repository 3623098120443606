"""The ops other projects import: each works alone, on plain tensors, and loads nothing until it is used.

    from vstar_fast.ops import LabelSet, label_match, sample

    labels = LabelSet(["back flip", "spin kick"], aliases={"back flip": ["backflip"]})
    match = label_match(["Answer: a Spin_Kick."], labels, own=["spin kick"], after="Answer:")
    match.matched                                   # tensor([True])
    match.first                                     # tensor([[10, 19]]), bytes

    tokens = TokenBytes.from_hf(tokenizer)          # the same on generated ids [B, T], nothing decoded
    label_match(ids, labels, own, tokens=tokens, lengths=lengths)

    next_ids, logprobs = sample(logits, seeds, step=0, temperature=0.7)   # [B] int64, [B] fp32

    vocab = TokenVocab.from_hf(tokenizer, logits_size=logits.shape[-1])
    grammar = compile(template("Answer: {label}", label=choice(["back flip", "spin kick"])), vocab)
    state = DecodeState(grammar, batch=2, max_new_tokens=16)
    next_ids, logprobs = state.sample_(logits, seeds, temperature=0.7)    # legal tokens only

    with fast_linears():                            # CPU, fp32: every nn.Linear by the faster product library
        model(**inputs).loss.backward()
    with fast_linears(half=True):                   # ... and frozen layers in bf16, on CPUs with such instructions
        model(**inputs)

Every op has `backend="auto"`: `vstar-fast doctor` tells what that means here, `vstar_fast.backends.report()`
what ran.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vstar_fast.errors import ConstrainError
    from vstar_fast.kernels.constrain import (
        DecodeState,
        Grammar,
        GrammarCache,
        LogitsProcessor,
        TokenVocab,
        VllmLogitsProcessor,
        choice,
        compile,
        interval,
        json,
        number,
        optional,
        repeat,
        sequence,
        template,
        text,
        time,
    )
    from vstar_fast.kernels.half_linear import half_linear
    from vstar_fast.kernels.label_match import LabelMatch, LabelSet, TokenBytes, char_span, label_match
    from vstar_fast.kernels.linear import fast_linears, linear, packed_linears
    from vstar_fast.kernels.patchify import Layout, patchify
    from vstar_fast.kernels.prefix_attention import Groups, Segment, prefix_attention
    from vstar_fast.kernels.sample import sample
    from vstar_fast.kernels.value_match import SequenceMatch, ValueMatch, match_interval, match_number, match_sequence

__all__ = [
    "ConstrainError",
    "DecodeState",
    "Grammar",
    "GrammarCache",
    "Groups",
    "LabelMatch",
    "LabelSet",
    "Layout",
    "LogitsProcessor",
    "Segment",
    "SequenceMatch",
    "TokenBytes",
    "TokenVocab",
    "ValueMatch",
    "VllmLogitsProcessor",
    "char_span",
    "choice",
    "compile",
    "fast_linears",
    "half_linear",
    "interval",
    "json",
    "label_match",
    "linear",
    "match_interval",
    "match_number",
    "match_sequence",
    "number",
    "optional",
    "packed_linears",
    "patchify",
    "prefix_attention",
    "repeat",
    "sample",
    "sequence",
    "template",
    "text",
    "time",
]

_HOME = {
    **dict.fromkeys(("LabelMatch", "LabelSet", "TokenBytes", "char_span", "label_match"), "label_match"),
    **dict.fromkeys(("SequenceMatch", "ValueMatch", "match_interval", "match_number", "match_sequence"), "value_match"),
    **dict.fromkeys(("fast_linears", "linear", "packed_linears"), "linear"),
    "half_linear": "half_linear",
    "Groups": "prefix_attention",
    "Layout": "patchify",
    "patchify": "patchify",
    "Segment": "prefix_attention",
    "prefix_attention": "prefix_attention",
    "sample": "sample",
}
"""Folder of each name; all others are constrain's."""


def __getattr__(name: str) -> Any:
    """Load an op on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'vstar_fast.ops' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vstar_fast.kernels.{_HOME.get(name, 'constrain')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
