"""label_match on ids of real kinds of tokenizers: what they decode to, nothing decoded."""

import random
import re

import pytest
import torch
from vstar_fast.kernels.spelling import byte_alphabet

from vstar_fast.errors import DataError
from vstar_fast.ops import LabelSet, TokenBytes, label_match

pytestmark = pytest.mark.usefixtures("poison")

LABELS = LabelSet(
    ["snow", "snowboard", "back flip", "kick", "spin kick", "été", "C++", "(x)", "字 a", "extraordinarily long"],
    aliases={"back flip": ["backflip"]},
)
WORDS = [*LABELS.names, "Answer:", "not a ", "isn't ", "never", "snowboarding", "KICK", "\u212aick", "ſnow", "é", "😀"]


def byte_level():
    tokenizers = pytest.importorskip("tokenizers")
    tok = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<end>"], initial_alphabet=sorted(byte_alphabet()), show_progress=False
    )
    tok.train_from_iterator([" ".join(LABELS.names)] * 5, trainer)
    return tok


def sentence_piece():
    tokenizers = pytest.importorskip("tokenizers")
    decoders = tokenizers.decoders
    vocabulary = {"<unk>": 0, "<pad>": 1, "<end>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    letters = sorted(set("".join(LABELS.names).replace(" ", "") + "abcdefghijklmnopqrstuvwxyz.:,")) + ["▁"]
    merges = [("▁", "k"), ("▁k", "i"), ("c", "k"), ("▁ki", "ck"), ("s", "n"), ("o", "w"), ("sn", "ow")]
    for token in [*letters, *("".join(pair) for pair in merges)]:
        vocabulary.setdefault(token, len(vocabulary))
    tok = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tok.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tok.decoder = decoders.Sequence(strip)
    tok.add_special_tokens(["<pad>", "<end>"])
    return tok


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_tokenizers_of_both_kinds(make):
    transformers = pytest.importorskip("transformers")
    tok = transformers.PreTrainedTokenizerFast(tokenizer_object=make(), pad_token="<pad>", eos_token="<end>")
    tok.add_tokens(["<frame>"])
    tokens = TokenBytes.from_hf(tok, size=1000)
    assert len(tokens) == 1000
    assert tokens.pieces[tok.pad_token_id] is None and tokens.pieces[-1] is None
    assert tokens.pieces[tok.convert_tokens_to_ids("<frame>")].strip() == b"<frame>"
    rng = random.Random(5)
    rows = [" ".join(rng.choices([*WORDS, "été", "<frame>"], k=rng.randint(0, 8))) for _ in range(40)]
    ids = tok(rows, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")["input_ids"]
    ids = torch.cat([ids, torch.full((40, 2), 999), torch.full((40, 1), tok.eos_token_id)], 1)
    decoded = [re.sub("^ ", "", t) for t in tok.batch_decode(ids[:, :-3], skip_special_tokens=True)]
    own = [rng.randrange(len(LABELS)) for _ in rows]
    found = label_match(ids, LABELS, own, tokens=tokens, which=True, negation=True)
    plain = label_match(decoded, LABELS, own, which=True, negation=True)
    assert found.matched.any() and torch.equal(found.matched, plain.matched)
    assert torch.equal(found.which_bits, plain.which_bits)
    assert torch.equal(found.negated, plain.negated)
    for row, (begin, end), match in zip(ids.tolist(), found.first_tokens.tolist(), found.matched.tolist(), strict=True):
        if match:
            said = tokens.spell(row[begin:end]).decode(errors="replace")
            assert re.search(r"\w", said)


def test_a_table_wider_than_the_logits_is_refused():
    transformers = pytest.importorskip("transformers")
    with pytest.raises(DataError, match="but size is 5"):
        TokenBytes.from_hf(transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level()), size=5)
