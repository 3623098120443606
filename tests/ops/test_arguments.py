"""What the ops say to what they do not take, and what around a call must change nothing."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from constrain_tools import small_vocab
from vstar_fast import ops
from vstar_fast.errors import BackendError, ConfigError, ConstrainError, DataError, ModelError

VOCAB = small_vocab("byte_level")
GRAMMAR = ops.compile(ops.template("Answer: {x}", x=ops.choice(["walk", "snow"])), VOCAB)
LOGITS = torch.randn(2, VOCAB.logits_size, generator=torch.Generator().manual_seed(0))
SEEDS = torch.tensor([1, 2])
LABELS, TOKENS = ops.LabelSet(["kick", "spin kick"]), ops.TokenBytes([b"answer: ", b"kick", b"3 s", None])
IDS = torch.tensor([[0, 1]])


def state() -> ops.DecodeState:
    return ops.DecodeState(GRAMMAR, 2, max_new_tokens=20)


BAD = [
    (lambda: ops.sample(LOGITS, [1, 2], 0, 1.0), ConfigError, r"seeds must be a tensor of int64 \[2\] .*not a list"),
    (lambda: ops.sample(LOGITS.numpy(), SEEDS, 0, 1.0), ConfigError, "logits must be .* not a ndarray"),
    (lambda: ops.sample(LOGITS.to_sparse(), SEEDS, 0, 1.0), ConfigError, "logits must be"),
    (lambda: ops.sample(LOGITS, SEEDS, 1.5, 1.0), ConfigError, "step is 1.5"),
    (lambda: ops.sample(LOGITS, SEEDS, 0, None), ConfigError, "temperature=None"),
    (lambda: ops.sample(LOGITS, SEEDS, 0, 1.0, 1.0, 2.5), ConfigError, "top_k=2.5"),
    (lambda: state().advance_([1, 2]), ConstrainError, r"tokens must be a tensor of int64 \[2\] on cpu, not a list"),
    (lambda: state().sample_(LOGITS, [1, 2]), ConstrainError, "seeds must be a tensor .* not a list"),
    (lambda: state().sample_(LOGITS, SEEDS, 1.0, 1.0, 2.5), ConstrainError, "top_k=2.5"),
    (lambda: state().mask_(LOGITS.tolist()), ConstrainError, "logits must be .* not a list"),
    (lambda: state().fill_bitmask([1]), ConstrainError, "the bitmask must be .* not a list"),
    (lambda: state().reorder([0, 1]), ConstrainError, "index must be a tensor .* not a list"),
    (lambda: state().restart_([True, False]), ConstrainError, "rows must be a tensor of bool .* not a list"),
    (lambda: state().take([0]), ConstrainError, "index must be a tensor .* not a list"),
    (lambda: state().forced(2.5), ConstrainError, "most=2.5"),
    (lambda: ops.DecodeState(GRAMMAR, 2.0), ConstrainError, "batch is 2.0"),
    (lambda: ops.DecodeState(GRAMMAR, 2, max_new_tokens=torch.tensor(20)), ConstrainError, "max_new_tokens is tensor"),
    (lambda: ops.DecodeState(GRAMMAR, 2, max_new_tokens="20"), ConstrainError, "max_new_tokens is '20'"),
    (lambda: ops.TokenVocab(["a", "b"], 1), ConstrainError, "token 0 is 'a'; give the bytes"),
    (lambda: ops.TokenVocab([b"a", b"b"], None), ConstrainError, "no end-of-sequence id"),
    (lambda: ops.label_match(None, LABELS, [1]), DataError, "texts must be a list"),
    (lambda: ops.label_match((t for t in ["kick"]), LABELS, [1]), DataError, "not a generator"),
    (lambda: ops.label_match(["kick"], ["kick"], [0]), DataError, "labels must be a LabelSet, not a list"),
    (lambda: ops.label_match(["kick"], LABELS, None), DataError, "own is None; give a list"),
    (lambda: ops.label_match(["kick"], LABELS, [0], after=3), DataError, "after=3 is no string"),
    (lambda: ops.label_match([1, 2], LABELS, [0, 0], tokens=TOKENS), DataError, "rows of ids must be lists"),
    (lambda: ops.label_match([[1.5]], LABELS, [0], tokens=TOKENS), DataError, "rows of ids must be lists"),
    (lambda: ops.label_match(IDS, LABELS, [0], tokens=[b"a"]), DataError, "tokens must be TokenBytes"),
    (lambda: ops.label_match(IDS, LABELS, [0], tokens=TOKENS, lengths=[1.5]), DataError, "lengths must be integers"),
    (lambda: ops.match_interval(["1"], [1.0]), DataError, "a list of .begin, end. in seconds a row, not 1.0"),
    (lambda: ops.match_sequence(["kick"], LABELS, [None]), DataError, "a list of label ids or names, not None"),
    (lambda: ops.match_sequence(["kick"], LABELS, ["kick"]), DataError, "a list of label ids or names, not 'kick'"),
    (lambda: ops.Groups([0, 1]), ModelError, "tokens of groups are a list"),
    (lambda: ops.half_linear(torch.ones(2, 3), torch.ones(4, 5)), ModelError, r"\(2, 3\) .*\(4, 5\)"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_what_is_not_taken_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def everything() -> list[torch.Tensor]:
    rows, processor, ids = state(), ops.LogitsProcessor(GRAMMAR), torch.ones(2, 3, dtype=torch.int64, device="cpu")
    labels = ops.LabelSet(LABELS.names)
    tokens = ops.TokenBytes(TOKENS.pieces)
    return [
        *ops.sample(LOGITS, SEEDS, 0, 0.7, 0.9, 20),
        *rows.sample_(LOGITS, SEEDS),
        processor(ids, LOGITS),
        processor(torch.cat([ids, ids[:, :1]], 1), LOGITS),
        ops.label_match(["a kick"], labels, ["kick"], which=True).table,
        ops.label_match([[0, 1], []], labels, [0, 1], tokens=tokens, after="Answer:").table,
        ops.label_match(IDS, labels, [0], tokens=tokens, lengths=[2]).table,
        ops.match_number(["Answer: 3 s"], [3.0], unit="s", rel_tolerance=0.1).table,
        ops.match_interval(["Answer: 1 to 3 s"], [(1, 3)]).table,
        ops.match_sequence(["Answer: kick"], labels, [["kick"]]).table,
    ]


@pytest.mark.parametrize("around", ["inference", "another device", "autocast", "another dtype"])
def test_what_is_around_a_call_changes_nothing(around):
    plain = everything()
    before = torch.get_default_dtype()
    contexts = {
        "inference": torch.inference_mode(),
        "another device": torch.device("meta"),
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "another dtype": torch.no_grad(),
    }
    with contexts[around]:
        torch.set_default_dtype(torch.float64 if around == "another dtype" else before)
        found = everything()
        torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))


def test_states_that_inference_mode_made_go_on_outside_of_it_and_back():
    ids, processor = torch.ones(2, 3, dtype=torch.int64), ops.LogitsProcessor(GRAMMAR)
    with torch.inference_mode():
        rows = state()
        rows.sample_(LOGITS, SEEDS)
        first = processor(ids, LOGITS)
    rows.reorder(torch.tensor([1, 0]))
    joined = rows.take(torch.tensor([0])).join(rows)
    joined.restart_(torch.tensor([True, False, False]))
    assert torch.equal(processor(ids, LOGITS), first)
    with torch.inference_mode():
        taken = joined.take(torch.tensor([2, 0]))
    taken.reset()
    assert len(taken) == 2


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_tensors_without_numbers_are_refused():
    with FakeTensorMode() as mode:
        fake, seeds = mode.from_tensor(LOGITS), mode.from_tensor(SEEDS)
        with pytest.raises(BackendError, match="a FakeTensor on cpu has no numbers"):
            ops.sample(fake, seeds, 0, 1.0)
    with pytest.raises(BackendError, match="a FakeTensor on cpu has no numbers"):
        state().mask_(fake)
