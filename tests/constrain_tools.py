"""Small vocabularies, brute force and random walks for the tests of `constrain`."""

import functools
import random
import re

import torch
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vstar_fast import ops
from vstar_fast.ops import DecodeState, TokenVocab

CORPUS = [
    "Answer: walk the dog, Answer: snowboard on the snow, back flip and a side flip",
    "from 12.5 - 14.0 s to 01:15, the person does a cartwheel 7 times \u00e9t\u00e9 \u00fcber \u65e5\u672c\u8a9e",
    "the reasoning is free: first a kick, then a spin kick. Answer: spin kick",
] * 4
EOS = "</s>"


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 330 tokens with two specials."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", EOS, "<video>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=EOS, pad_token="<pad>")


@functools.cache
def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2: U+2581 for spaces, one put in front, byte fallback."""
    pieces = ["<unk>", "<s>", EOS, *(f"<0x{b:02X}>" for b in range(256))]
    chars = sorted({c for line in CORPUS for c in line.replace(" ", "\u2581") if c.isascii() or c == "\u2581"})
    words = ["an", "ans", "\u2581w", "al", "\u2581wal", "lk", "sn", "ow", "snow", "\u2581snow", "bo", "ar", "\u2581f"]
    merges = [
        ("a", "n"), ("an", "s"), ("\u2581", "w"), ("a", "l"), ("\u2581w", "al"), ("l", "k"), ("s", "n"), ("o", "w"),
        ("sn", "ow"), ("\u2581", "snow"), ("b", "o"), ("a", "r"), ("\u2581", "f"),
    ]  # fmt: skip
    vocab = {piece: i for i, piece in enumerate([*pieces, *chars, *words])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", EOS])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=EOS, bos_token="<s>", unk_token="<unk>")


WORDS = ["Answer", ": ", ":", " ", "walk", "snow", "board", "snowboard", "wal", "k", "a", "b", "ab", "12"]
"""Whole words and a few pieces: many texts cannot be spelled."""


@functools.cache
def small_vocab(kind: str) -> TokenVocab:
    """A vocabulary by name: "byte_level", "sentencepiece", "words", or "twins" (equal bytes, two ends, padding)."""
    if kind == "twins":
        pieces = [bytes([b]) for b in range(256)] + [
            b"sn",
            b"ow",
            b"sn",
            b"snow",
            b"\xc3\xa9",
            b"e\xcc",
            None,
            None,
            b"t ",
        ]
        return TokenVocab(pieces, eos_ids=(262, 263), logits_size=300)
    if kind == "words":
        return TokenVocab([None, None, *(word.encode() for word in WORDS)], eos_ids=1)
    return TokenVocab.from_hf({"byte_level": byte_level, "sentencepiece": sentencepiece}[kind]())


@functools.cache
def smollm2() -> tuple[PreTrainedTokenizerFast, TokenVocab]:
    """SmolLM2's tokenizer, its vocabulary padded to 49,280 columns, with two ends."""
    from transformers import AutoTokenizer

    from vstar_fast.demo.model import build

    tokenizer = AutoTokenizer.from_pretrained(build())
    return tokenizer, TokenVocab.from_hf(tokenizer, logits_size=49_280, eos_ids=[2, 0])


def allowed(state: DecodeState, row: int = 0) -> list[int]:
    """Legal tokens of a row."""
    words = state.fill_bitmask()[row].tolist()
    return [32 * w + b for w, word in enumerate(words) for b in range(32) if word >> b & 1]


class Members:
    """All members of a finite language, and what they begin with."""

    def __init__(self, members: list[str]) -> None:
        self.whole = {member.encode() for member in members}
        self.begun = {member[:i] for member in self.whole for i in range(len(member) + 1)}

    def legal(self, vocab: TokenVocab, prefix: bytes) -> list[int]:
        """By brute force: tokens after which some member can still come, ends where one is complete."""
        tokens = [i for i, token in enumerate(vocab.tokens) if token and prefix + token in self.begun]
        return sorted(tokens + (list(vocab.eos_ids) if prefix in self.whole else []))


def walk(state: DecodeState, vocab: TokenVocab, rng: random.Random, check, most: int = 200) -> bytes:
    """One random answer of row 0; check(prefix, legal tokens) is called at each step."""
    prefix = b""
    for _ in range(most):
        legal = allowed(state)
        check(prefix, legal)
        assert legal, f"no way on after {prefix!r}"
        token = rng.choice(legal)
        state.advance_(torch.tensor([token]))
        if token in vocab.eos_ids:
            assert bool(state.done[0]) and bool(state.complete[0])
            return prefix
        prefix += vocab.tokens[token]
    raise AssertionError(f"no end after {prefix!r}")


def spell(vocab: TokenVocab, text: bytes, rng: random.Random) -> list[int] | None:
    """A random way to cut a text into tokens, or None where there is none."""
    best: list[list[tuple[int, int]]] = [[] for _ in range(len(text) + 1)]
    ways = [False] * len(text) + [True]
    for at in range(len(text) - 1, -1, -1):
        for token, piece in enumerate(vocab.tokens):
            if piece and text.startswith(piece, at) and ways[at + len(piece)]:
                best[at].append((token, at + len(piece)))
        ways[at] = bool(best[at])
    if not ways[0]:
        return None
    out, at = [], 0
    while at < len(text):
        token, at = rng.choice(best[at])
        out.append(token)
    return out


KINDS = ["byte_level", "sentencepiece", "twins"]
LETTERS = st.text(alphabet="ab wks\u00e9\u8a9e\U0001f642", min_size=1, max_size=6)
LABELS = st.lists(LETTERS, min_size=1, max_size=8)


def try_choice(names: list[str]):
    """A choice of these labels, without those that fold to the same."""
    seen: dict[str, str] = {}
    for name in names:
        seen.setdefault(re.sub("[ _-]+", " ", name.casefold()), name)
    return ops.choice(list(seen.values()))


def follow(grammar, ids: list[int]) -> None:
    """Every token of `ids` is legal in turn, and the end behind them."""
    state = ops.DecodeState(grammar, 1)
    for token in [*ids, grammar.vocab.eos_ids[0]]:
        assert token in allowed(state)
        state.advance_(torch.tensor([token]))
    assert bool(state.complete[0]) and bool(state.done[0])
