"""`constrain`: batched constrained decoding whose state stays on the device.

    from vstar_fast import ops

    vocab = ops.TokenVocab.from_hf(tokenizer, logits_size=logits.shape[-1])
    grammar = ops.compile(ops.template("Answer: {label}", label=ops.choice(names)), vocab)
    state = ops.DecodeState(grammar, batch=8, device=logits.device, max_new_tokens=16)
    ids, logprobs = state.sample_(logits, seeds, temperature=0.7)      # legal tokens only; the rows move
    grammar.value(answer_ids)                                          # {"label": "back flip"}

A template is compiled to an automaton over bytes and then over the vocabulary's tokens, so that a step looks
nothing up but the row's own edges. Rows with different grammars share one batch.
"""

from __future__ import annotations

from vstar_fast.errors import ConstrainError

from .grammar import Grammar, GrammarCache, compile
from .hf import LogitsProcessor
from .json_object import json
from .state import DecodeState
from .template import choice, interval, number, optional, repeat, sequence, template, text, time
from .vllm import VllmLogitsProcessor
from .vocab import TokenVocab

__all__ = [
    "ConstrainError",
    "DecodeState",
    "Grammar",
    "GrammarCache",
    "LogitsProcessor",
    "TokenVocab",
    "VllmLogitsProcessor",
    "choice",
    "compile",
    "interval",
    "json",
    "number",
    "optional",
    "repeat",
    "sequence",
    "template",
    "text",
    "time",
]
