"""What is compiled may be pickled, copied and sent to another process: it goes on alone, taken for no other."""

import copy
import pickle

import pytest
import torch
from vstar_fast.kernels.label_match.handles import held

from constrain_tools import small_vocab
from vstar_fast import ops

VOCAB = small_vocab("byte_level")
ACTION = ops.choice(["walk", "snow"])
PARTS = {
    "optional": ("walk", ops.optional(ACTION)),
    "interval": ("1 - 3", ops.interval(9)),
    "negative": ("-3", ops.number(-5, 5)),
    "sequence": ("walk, snow", ops.sequence(ACTION)),
    "json": ('{"a": "0:02 - 0:07"}', ops.json({"a": ops.interval(9, form="m:ss")})),
}
WAYS = {"pickled": lambda thing: pickle.loads(pickle.dumps(thing)), "copied": copy.deepcopy}
LABELS, TOKENS = ops.LabelSet(["kick", "spin kick"], {"kick": ["kicks"]}), ops.TokenBytes([b"kick", b"spin ", None])
IDS = torch.tensor([[0, 2], [1, 0]])


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_template_goes_with_its_grammar(part):
    text, template = PARTS[part]
    grammar = ops.compile(template, VOCAB)
    assert pickle.loads(pickle.dumps(grammar)).value(text) == grammar.value(text)


@pytest.mark.parametrize("way", WAYS)
def test_a_state_goes_on_from_where_it_was(way):
    rows = ops.DecodeState(ops.compile(ACTION, VOCAB), 2, max_new_tokens=9)
    logits, seeds = torch.zeros(2, VOCAB.logits_size), torch.tensor([3, 4])
    rows.sample_(logits, seeds)
    other = WAYS[way](rows)
    before = rows.state.clone()
    found = other.sample_(logits, seeds)
    assert torch.equal(rows.state, before) and not torch.equal(other.state, before)
    assert all(torch.equal(a, b) for a, b in zip(found, rows.sample_(logits, seeds), strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_labels_and_tokens_get_numbers_of_their_own(way):
    expected = ops.label_match(IDS, LABELS, ["kick", "spin kick"], tokens=TOKENS, which=True)
    labels, tokens = WAYS[way](LABELS), WAYS[way](TOKENS)
    assert held(labels.handle, ops.LabelSet) is labels and held(tokens.handle, ops.TokenBytes) is tokens
    match = ops.label_match(IDS, labels, ["kick", "spin kick"], tokens=tokens, which=True)
    assert torch.equal(match.table, expected.table) and torch.equal(match.which_bits, expected.which_bits)
    assert labels.id("kicks") == 0 and torch.equal(WAYS[way](match).matched, expected.matched)
