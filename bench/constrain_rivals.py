"""Rivals of `constrain` where their packages are installed: xgrammar, llguidance, outlines-core, a trie of ids."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from vstar_fast import ops

ROWS = 256
PREFIX = "Answer: "


@functools.cache
def vocabulary() -> tuple[Any, ops.TokenVocab]:
    """SmolLM2's tokenizer and its vocabulary."""
    from transformers import AutoTokenizer

    from vstar_fast.demo.model import build

    tokenizer = AutoTokenizer.from_pretrained(build())
    vocab = ops.TokenVocab.from_hf(tokenizer)
    vocab.block  # noqa: B018 - made once per tokenizer, as the rivals' tables are
    return tokenizer, vocab


class Xgrammar:
    """Its better encoding of a choice: two rules."""

    name = "xgrammar"
    most = 10_000  # labels
    canonical = False

    def __init__(self) -> None:
        import xgrammar

        self.xgr = xgrammar
        _, vocab = vocabulary()
        self.info = self._info(vocab)

    def _info(self, vocab: ops.TokenVocab) -> Any:
        return self.xgr.TokenizerInfo(
            list(vocab.tokens),
            vocab_type=self.xgr.VocabType.RAW,
            vocab_size=vocab.logits_size,
            stop_token_ids=list(vocab.eos_ids),
        )

    def compile(self, names: list[str]) -> Any:
        """Without its cache."""
        return self._compile(self.info, names)

    def compile_for(self, vocab: ops.TokenVocab, names: list[str]) -> Any:
        """For another vocabulary."""
        return self._compile(self._info(vocab), names)

    def _compile(self, info: Any, names: list[str]) -> Any:
        labels = " | ".join(f'"{name}"' for name in names)
        compiler = self.xgr.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        return compiler.compile_grammar(f'root ::= "{PREFIX}" label\nlabel ::= {labels}')

    def start(self, compiled: Any) -> Any:
        """What walks one row."""
        return self.xgr.GrammarMatcher(compiled)

    def mask(self, matcher: Any, bits: torch.Tensor) -> None:
        """Its mask in `bits` [1, words]."""
        matcher.fill_next_token_bitmask(bits)

    def take(self, matcher: Any, token: int) -> bool:
        """Whether it takes a token."""
        return matcher.accept_token(token)

    def walk(self, grammars: list[Any], tokens: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Fill and accept through its batch interface, for whole answers."""
        steps, batch = tokens.tolist(), self.xgr.BatchGrammarMatcher(max_threads=1)
        bits = self.xgr.allocate_token_bitmask(ROWS, vocabulary()[1].logits_size)
        matchers = [self.xgr.GrammarMatcher(grammars[i % len(grammars)]) for i in range(ROWS)]

        def run() -> torch.Tensor:
            live = list(range(ROWS))
            for matcher in matchers:
                matcher.reset()
            for ids in steps:
                some = [matchers[i] for i in live]
                batch.batch_fill_next_token_bitmask(some, bits, indices=live)
                batch.batch_accept_token(some, [ids[i] for i in live])
                live = [i for i in live if not matchers[i].is_terminated()]
            return bits

        return run


class Llguidance:
    """A regex; masks of one matcher after another, on one thread."""

    name = "llguidance"
    most = 10_000  # labels
    canonical = True

    def __init__(self) -> None:
        import llguidance
        from llguidance.hf import from_tokenizer

        self.llg = llguidance
        self.tokenizer = from_tokenizer(vocabulary()[0])

    def compile(self, names: list[str]) -> Any:
        """The first matcher, which builds the grammar."""
        regex = PREFIX + "(" + "|".join(names) + ")"
        matcher = self.llg.LLMatcher(self.tokenizer, self.llg.LLMatcher.grammar_from_regex(regex), log_level=0)
        matcher.compute_bitmask()
        return matcher

    def start(self, compiled: Any) -> Any:
        """What walks one row."""
        return compiled.deep_copy()

    def mask(self, matcher: Any, bits: torch.Tensor) -> None:
        """Its mask in `bits` [1, words]."""
        matcher.unsafe_compute_mask_ptr(bits.data_ptr(), 4 * bits.shape[1])

    def take(self, matcher: Any, token: int) -> bool:
        """Whether it takes a token."""
        return matcher.consume_token(token)

    def walk(self, grammars: list[Any], tokens: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Fill and consume, for whole answers."""
        steps = tokens.tolist()
        words = (vocabulary()[1].logits_size + 31) // 32
        bits = torch.zeros(ROWS, words, dtype=torch.int32)
        matchers = [grammars[i % len(grammars)].deep_copy() for i in range(ROWS)]

        def run() -> torch.Tensor:
            live = list(range(ROWS))
            for matcher in matchers:
                matcher.reset()
            for ids in steps:
                for i in live:
                    matchers[i].unsafe_compute_mask_ptr(bits.data_ptr() + 4 * words * i, 4 * words)
                    matchers[i].consume_token(ids[i])
                live = [i for i in live if not matchers[i].is_stopped()]
            return bits

        return run


class OutlinesCore:
    """An index of every state; compiling 700 labels takes seconds, 10,000 a minute, so only 700 are tried.

    Its alternation takes the first branch that fits, so longer names go first.
    """

    name = "outlines_core"
    most = 700  # labels
    canonical = False

    def __init__(self) -> None:
        import outlines_core

        self.core = outlines_core
        _, vocab = vocabulary()
        ids: dict[bytes, list[int]] = {}
        for token, piece in enumerate(vocab.tokens):
            if piece:
                ids.setdefault(piece, []).append(token)
        self.vocabulary = outlines_core.Vocabulary(vocab.eos_ids[0], ids)

    def compile(self, names: list[str]) -> Any:
        """The index."""
        regex = PREFIX + "(" + "|".join(sorted(names, key=len, reverse=True)) + ")"
        return self.core.Index(regex, self.vocabulary)

    def start(self, compiled: Any) -> Any:
        """What walks one row."""
        return self.core.Guide(compiled)

    def mask(self, matcher: Any, bits: torch.Tensor) -> None:
        """Its mask in `bits` [1, words]."""
        matcher.write_mask_into(bits.data_ptr(), bits.shape[1], 4)

    def take(self, matcher: Any, token: int) -> bool:
        """Whether it takes a token; at the end it has no step for the end token."""
        if not matcher.is_finished():
            matcher.advance(token, return_tokens=False)
        return True

    def walk(self, grammars: list[Any], tokens: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Write and advance, guide after guide, for whole answers."""
        steps = tokens.tolist()
        words = (vocabulary()[1].logits_size + 31) // 32
        bits = torch.zeros(ROWS, words, dtype=torch.int32)
        guides = [self.core.Guide(grammars[i % len(grammars)]) for i in range(ROWS)]

        def run() -> torch.Tensor:
            live = list(range(ROWS))
            for guide in guides:
                guide.reset()
            for ids in steps:
                for i in live:
                    guides[i].write_mask_into(bits.data_ptr() + 4 * words * i, words, 4)
                    if not guides[i].is_finished():
                        guides[i].advance(ids[i], return_tokens=False)
                live = [i for i in live if not guides[i].is_finished()]
            return bits

        return run


def trie_of(names: list[str]) -> dict[int, Any]:
    """Canonical ids as nested dicts, what prefix_allowed_tokens_fn is given."""
    tokenizer, vocab = vocabulary()
    root: dict[int, Any] = {}
    for name in names:
        at = root
        for token in [*tokenizer.encode(PREFIX + name, add_special_tokens=False), vocab.eos_ids[0]]:
            at = at.setdefault(token, {})
    return root


def rivals() -> list[Any]:
    """Those that are installed."""
    found = [kind for kind in (Xgrammar, Llguidance, OutlinesCore) if importlib.util.find_spec(kind.name)]
    return [kind() for kind in found]
