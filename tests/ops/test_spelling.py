"""The bytes of each id, as both kinds of tables read them: what `decode` gives, or an error."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast
from vstar_fast.kernels.spelling import byte_alphabet

from vstar_fast.errors import ConstrainError, DataError
from vstar_fast.ops import TokenBytes, TokenVocab

ADDED = ["<frame>", "two words", "line\nbreak", "  ", "\u00e9t\u00e9", " lead", AddedToken("<l>", lstrip=True)]


def wrapped(made: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def byte_level() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE({token: at for at, token in enumerate(["</s>", *byte_alphabet()])}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return wrapped(made)


def pieces(decoder, *, fallback: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece's way to write: U+2581 for spaces, of which some stand side by side; <0xNN> for bytes."""
    names = ["</s>", "\u2581", "\u2581\u2581", "\u2581a", "b", "a\u2581b", "\n", "\u8a9e", "<0x41>", "<0xE8>"]
    made = Tokenizer(models.BPE({name: at for at, name in enumerate(names)}, [], byte_fallback=fallback))
    made.decoder = decoder
    return wrapped(made)


LLAMA = decoders.Sequence(
    [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
KINDS = {
    "byte level": byte_level,
    "byte fallback": lambda: pieces(LLAMA, fallback=True),
    "metaspace": lambda: pieces(decoders.Metaspace()),  # drops every space of a first token
    "metaspace, nothing in front": lambda: pieces(decoders.Metaspace(prepend_scheme="never")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_both_tables_are_what_decode_gives(kind):
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens(ADDED)
    vocab, table = TokenVocab.from_hf(tokenizer), TokenBytes.from_hf(tokenizer)
    assert vocab.tokens == tuple(piece or b"" for piece in table.pieces)
    first = tokenizer.convert_tokens_to_ids("b" if kind != "byte level" else "A")
    for at in range(1, len(vocab.tokens)):
        text = tokenizer.decode([first, at], clean_up_tokenization_spaces=False)
        assert text[1:] == vocab.tokens[at].decode("utf-8", "replace")


def refused(made: Tokenizer, match: str) -> None:
    with pytest.raises(ConstrainError, match=match):
        TokenVocab.from_hf(wrapped(made))
    with pytest.raises(DataError, match=match):
        TokenBytes.from_hf(wrapped(made))


def test_other_kinds_are_refused():
    made = Tokenizer(models.WordPiece({"</s>": 0, "a": 1, "##b": 2}, unk_token="</s>"))
    made.decoder = decoders.WordPiece()
    refused(made, "neither byte-level BPE nor SentencePiece .its decoder: WordPiece")
    refused(Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>")), "its decoder: none")


def test_tokens_that_decode_to_something_else_are_named():
    made = Tokenizer(models.BPE({"</s>": 0, "a": 1, "b_": 2}, []))
    made.decoder = decoders.Sequence([decoders.Replace("_", " x"), decoders.Fuse()])
    refused(made, "ids .*2.* were read as .*; give the bytes of each token yourself")


def test_a_tokenizer_that_does_not_tell_its_tokens_is_refused():
    """As mistral-common's, whose names of parts of characters are all the same."""

    class Backend:
        def get_vocab(self):
            return {"a": 0, "\ufffd": 1}

        def added_tokens_decoder(self):
            raise NotImplementedError

    with pytest.raises(ConstrainError, match="Backend does not tell its tokens"):
        TokenVocab.from_hf(Backend())


class Tiktoken(PreTrainedTokenizer):
    """A tokenizer without a fast one behind it, which names its tokens by their bytes, or by GPT-2's letters."""

    def __init__(self, names) -> None:
        self.names = names
        super().__init__(eos_token="</s>")

    @property
    def vocab_size(self) -> int:
        return len(self.names)

    def get_vocab(self):
        return dict(zip(self.names, range(len(self.names)), strict=True)) | self.added_tokens_encoder

    def _convert_token_to_id(self, token):
        return None

    def _convert_id_to_token(self, at):
        return self.names[at]

    def convert_tokens_to_string(self, tokens):
        letters = byte_alphabet()
        pieces = [t if isinstance(t, bytes) else bytes(letters.get(c, ord(c)) for c in t) for t in tokens]
        return b"".join(pieces).decode("utf-8", "replace")


def test_tokenizers_without_a_fast_one_behind_them():
    letters = list(byte_alphabet())
    for names in (letters, [*(bytes([byte_alphabet()[c]]) for c in letters), b" walk", "\u8a9e".encode()[:2]]):
        tokenizer = Tiktoken(names)
        tokenizer.add_tokens(["<think>"])
        vocab = TokenVocab.from_hf(tokenizer)
        assert vocab.tokens[:256] == tuple(bytes([byte_alphabet()[c]]) for c in letters)
        assert vocab.tokens[-1] == b"<think>" and TokenBytes.from_hf(tokenizer).pieces[-1] == b"<think>"
        assert len(names) == 256 or vocab.tokens[256:258] == (b" walk", b"\xe8\xaa")
