"""`compile`: template x vocabulary -> `Grammar`, the token automaton; saved, loaded and cached."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vstar_fast.errors import ConstrainError

from .nodes import Choice, Literal, Node, Seq, Tagged, Text, read_whole
from .vocab import TokenVocab

TOKENIZATIONS = ("any", "forced", "canonical")
MOST_MEMBERS = 200_000
MAGIC = b"VSTARGR1"
HEADER_INTS = 18


class Sizes(NamedTuple):
    """How large a grammar is."""

    states: int
    edges: int
    dense_states: int
    bytes: int


class Grammar:
    """A compiled template; make it with `compile` or `Grammar.from_bytes`. Immutable, shared by many decode states."""

    def __init__(self, block: bytes, vocab: TokenVocab, tokenization: str, template: Node | None) -> None:
        self.block = torch.frombuffer(bytearray(block), dtype=torch.uint8)
        self.vocab = vocab
        self.tokenization = tokenization
        self.template = template
        head = struct.unpack_from(f"<{HEADER_INTS}i", block)
        self.start = head[9]
        self.sizes = Sizes(states=head[4], edges=head[5], dense_states=head[6], bytes=head[2])
        self.shortest: int = struct.unpack_from("<H", block, head[11] + 4 * self.start)[0]
        """Tokens of the shortest answer, without the end-of-sequence token."""

    def __repr__(self) -> str:
        return f"Grammar({self.tokenization}, {self.sizes.states} states, {self.sizes.bytes / 1e6:.2f} MB)"

    def value(self, answer: str | Iterable[int]) -> Any:
        """The slots' values of a finished answer, given as text or token ids; ConstrainError when it is none."""
        if self.template is None:
            raise ConstrainError("this grammar was loaded without its template; give it to Grammar.from_bytes")
        text = answer if isinstance(answer, str) else self.vocab.decode(answer).decode("utf-8", "replace")
        found, value = read_whole(self.template, text)
        if not found:
            raise ConstrainError(f"{text[:200]!r} is no complete answer of this template")
        return value

    def to_bytes(self) -> bytes:
        """The compiled automaton for `from_bytes`: versioned, checksummed, tied to the vocabulary."""
        head = MAGIC + bytes.fromhex(self.vocab.key) + struct.pack("<I", TOKENIZATIONS.index(self.tokenization))
        body = head + self.block.numpy().tobytes()
        return body + hashlib.sha256(body).digest()[:8]

    @classmethod
    def from_bytes(cls, data: bytes, vocab: TokenVocab, template: Node | None = None) -> Grammar:
        """Undo `to_bytes`; ConstrainError for bytes that are cut, damaged, foreign or of another vocabulary."""
        from vstar_fast import _C

        size = len(MAGIC) + 16 + 4
        if len(data) < size + 8 or data[:7] != MAGIC[:7]:
            raise ConstrainError(f"these {len(data)} bytes are no saved grammar")
        if data[: len(MAGIC)] != MAGIC:
            raise ConstrainError(f"the grammar is of format {data[7:8]!r}, this reads {MAGIC[7:]!r}; compile it again")
        if hashlib.sha256(data[:-8]).digest()[:8] != data[-8:]:
            raise ConstrainError("the saved grammar is damaged or cut short; compile it again")
        if data[len(MAGIC) : len(MAGIC) + 16] != bytes.fromhex(vocab.key):
            raise ConstrainError("the grammar was compiled for another vocabulary; compile it again")
        (mode,) = struct.unpack_from("<I", data, size - 4)
        block = data[size:-8]
        try:
            _C.constrain_check(block)
        except ValueError as error:
            raise ConstrainError(f"{error}; compile it again") from None
        if mode >= len(TOKENIZATIONS) or struct.unpack_from("<i", block, 12)[0] != vocab.logits_size:
            raise ConstrainError("the saved grammar contradicts itself; compile it again")
        return cls(block, vocab, TOKENIZATIONS[mode], template)

    @cached_property
    def key(self) -> str:
        """Content key."""
        return hashlib.sha256(self.to_bytes()).hexdigest()[:32]


def compile(template: Node, vocab: TokenVocab, tokenization: str = "any", cache: GrammarCache | None = None) -> Grammar:
    """Compile a template for a vocabulary.

    tokenization:
        "any": every way to cut an answer into tokens.
        "forced": where only one continuation of bytes exists, only the tokenizer's own tokens for it; elsewhere any.
        "canonical": only the tokenizer's own tokens of each whole answer. Needs at most 200,000 answers, behind
            one free text at most; shortest and most to skip with `forced`, and what the model saw in training.

    Raises ConstrainError for a template without answers, and for labels that no token sequence can spell.
    """
    if not isinstance(template, Node):
        raise ConstrainError(f"compile takes a template, not {template!r}; make one with vstar_fast.ops.template")
    if tokenization not in TOKENIZATIONS:
        raise ConstrainError(f"unknown tokenization {tokenization!r}; there are: {', '.join(TOKENIZATIONS)}")
    program = template.write()
    if cache is not None:
        return cache.get(program, template, vocab, tokenization)
    return _compile(program, template, vocab, tokenization)


def _compile(program: bytes, template: Node, vocab: TokenVocab, tokenization: str) -> Grammar:
    from vstar_fast import _C

    if vocab.missing_bytes:
        _check_spelling(template, vocab)
    try:
        if tokenization == "canonical":
            before, sequences = _canonical(template, vocab)
            block = _C.constrain_compile_sequences(vocab.block.data_ptr(), before, sequences)
        else:
            encode = vocab.encode if tokenization == "forced" else None
            block = _C.constrain_compile(vocab.block.data_ptr(), program, encode)
    except ConstrainError:
        raise
    except ValueError as error:
        raise ConstrainError(f"the template cannot be compiled: {error}") from None
    return Grammar(block, vocab, tokenization, template)


def _canonical(template: Node, vocab: TokenVocab) -> tuple[bytes, list[list[int]]]:
    """(program of the free text in front, or b"", canonical tokens of every answer behind it)."""
    before, rest = _split_text(template)
    members = rest.members(MOST_MEMBERS)
    if members is None:
        raise ConstrainError(
            f"tokenization='canonical' needs at most {MOST_MEMBERS} answers behind one free text at most; "
            "use 'forced' or 'any' for this template"
        )
    texts = list(dict.fromkeys(members))
    encoded = vocab.encode([text.encode() for text in texts])
    for text, ids in zip(texts, encoded, strict=True):
        if text and not ids:
            raise ConstrainError(f"the tokenizer has no tokens that spell {text!r}; use tokenization='any'")
    return (b"" if before is None else before.write()), encoded


def _split_text(template: Node) -> tuple[Node | None, Node]:
    if isinstance(template, Seq) and template.parts and isinstance(template.parts[0], Text) and template.parts[0].until:
        return template.parts[0], Seq(template.parts[1:])
    return None, template


def _check_spelling(template: Node, vocab: TokenVocab) -> None:
    """Name labels that a vocabulary without some single bytes cannot spell: each is compiled alone in its place."""
    from vstar_fast import _C

    missing = bytes(sorted(vocab.missing_bytes))
    for slot in _choices(template):
        written = "".join(slot.values).encode()
        if len(written.translate(None, missing)) == len(written):
            continue
        for label in slot.values:
            if vocab.missing_bytes.isdisjoint(label.encode()):
                continue
            alone = _replace(template, slot, Literal(label))
            try:
                _C.constrain_compile(vocab.block.data_ptr(), alone.write(), None)
            except ValueError:
                raise ConstrainError(f"no sequence of tokens spells the label {label!r}; remove or rename it") from None


def _choices(part: Node) -> Iterator[Choice]:
    if isinstance(part, Choice):
        yield part
    for inner in _inner(part):
        yield from _choices(inner)


def _inner(part: Node) -> tuple[Node, ...]:
    if dataclasses.is_dataclass(part):
        values = [getattr(part, field.name) for field in dataclasses.fields(part)]
        parts = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
        return tuple(v for v in parts if isinstance(v, Node))
    return ()


def _replace(part: Node, old: Node, new: Node) -> Node:
    """The same tree with one node changed; values are of no interest here."""
    if part is old:
        return new
    if isinstance(part, Tagged):
        return _replace(part.part, old, new)
    if not _inner(part):
        return part
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, field.name)
        if isinstance(value, Node):
            changes[field.name] = _replace(value, old, new)
        elif isinstance(value, tuple) and any(isinstance(v, Node) for v in value):
            changes[field.name] = tuple(_replace(v, old, new) for v in value)
    return dataclasses.replace(part, **changes)  # type: ignore[type-var]


class GrammarCache:
    """Compiled grammars by content: the last `size` ones in memory, all of them in `folder` if one is given."""

    def __init__(self, size: int = 64, folder: str | Path | None = None) -> None:
        if size < 1:
            raise ConstrainError(f"cache size is {size}; give at least 1")
        self.size = size
        self.folder = None if folder is None else Path(folder)
        self.hits = self.misses = 0
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, program: bytes, template: Node, vocab: TokenVocab, tokenization: str) -> Grammar:
        """The grammar of this program, compiled on the first call."""
        key = hashlib.sha256(f"{vocab.key} {tokenization} ".encode() + program).hexdigest()[:32]
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                self.hits += 1
        if kept is not None:
            return kept if kept.template is template else self._again(kept, template)
        grammar = self._load(key, vocab, template) or self._make(key, program, template, vocab, tokenization)
        with self._lock:
            self._kept[key] = grammar
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)
        return grammar

    @staticmethod
    def _again(kept: Grammar, template: Node) -> Grammar:
        """The kept automaton with this template's names and values."""
        twin = Grammar.__new__(Grammar)
        twin.__dict__.update(kept.__dict__, template=template)
        return twin

    def _load(self, key: str, vocab: TokenVocab, template: Node) -> Grammar | None:
        """From the folder; a file that is damaged is made again."""
        path = None if self.folder is None else self.folder / f"{key}.grammar"
        if path is None or not path.is_file():
            return None
        try:
            grammar = Grammar.from_bytes(path.read_bytes(), vocab, template)
        except ConstrainError:
            return None
        self.hits += 1
        return grammar

    def _make(self, key: str, program: bytes, template: Node, vocab: TokenVocab, tokenization: str) -> Grammar:
        self.misses += 1
        grammar = _compile(program, template, vocab, tokenization)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            part = self.folder / f".{key}.{threading.get_ident()}.part"
            part.write_bytes(grammar.to_bytes())
            part.replace(self.folder / f"{key}.grammar")
        return grammar
