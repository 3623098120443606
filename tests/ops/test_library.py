"""The ops inside torch.compile: operators with fake kernels, one graph without breaks, the same results."""

import pytest
import torch
from vstar_fast.kernels.constrain import library as constrain
from vstar_fast.kernels.label_match import library as labels
from vstar_fast.kernels.sample import library as sampling
from vstar_fast.kernels.value_match import library as values

from constrain_tools import small_vocab
from vstar_fast import backends, ops
from vstar_fast.errors import ConstrainError, DataError, ModelError

GRAMMAR = ops.compile(
    ops.template("Answer: {x}", x=ops.choice(["walk", "snow", "snowboard"])), small_vocab("byte_level")
)
SEEDS = torch.arange(4) * 7

LABELS = ops.LabelSet(["kick", "spin kick", "snow"])
TOKENS = ops.TokenBytes([b"answer: ", b"kick", b"spin", b" ", b"not a ", None])
IDS = torch.tensor([[0, 1, 5, 5], [0, 2, 3, 1], [1, 3, 0, 5], [0, 4, 1, 1]])
NUMBERS = ops.TokenBytes([b"answer: ", b"3", b" to ", b"5.5", b" s", b"kick, ", b"snow", None])
SPOKEN = torch.tensor([[0, 1, 2, 3], [0, 3, 4, 7], [0, 5, 6, 7], [1, 7, 7, 7]])
LENGTHS, OWN = torch.tensor([2, 4, 4, 3]), torch.tensor([0, 1, 0, -1])


TIMES = SPOKEN[:1].repeat(4, 1)
NUMBER_OPTIONS = (NUMBERS.handle, "slot", "Answer:", "auto")


def rows() -> ops.DecodeState:
    return ops.DecodeState(GRAMMAR, 4, max_new_tokens=30)


def logits_of(step: int) -> torch.Tensor:
    return torch.randn(4, 330, generator=torch.Generator().manual_seed(step))


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="eager")


def test_operators_are_sound():
    state, logits = rows(), logits_of(0)
    fields, backend = tuple(state._rows), state.backend
    ids = state.sample_(logits, SEEDS)[0]
    state.reset()
    cases = [
        (sampling.sample, (logits, SEEDS, 1, 0.7, 0.9, 5, "auto")),
        (constrain.mask_, (*fields, logits, backend)),
        (constrain.advance_, (*fields, ids, True, backend)),
        (constrain.sample_, (*fields, logits, SEEDS, 1.0, 1 << 62, 0, backend)),
        (constrain.forced_, (*fields, 5, True, backend)),
        (constrain.fill, (*fields, torch.zeros(4, 11, dtype=torch.int32), backend)),
        (labels.label_match, (IDS, LENGTHS, OWN, LABELS.handle, TOKENS.handle, "answer:", True, True, "auto")),
        (values.number, (TIMES, LENGTHS, *[torch.ones(4).double()] * 3, "s", *NUMBER_OPTIONS)),
        (values.number, (TIMES, None, *[torch.ones(4).double()] * 3, "s\n\nmin\n%", *NUMBER_OPTIONS)),
        (values.interval, (TIMES, None, torch.tensor([[3.0, 5.0]] * 4), 0.5, *NUMBER_OPTIONS)),
        (values.interval, (TIMES, None, torch.tensor([[[3.0, 5.0]] * 2] * 4), 0.5, *NUMBER_OPTIONS)),
        (values.sequence, (SPOKEN, LENGTHS, torch.tensor([[0, 2]] * 4), LABELS.handle, NUMBERS.handle, None, "auto")),
        (labels.label_match, (IDS.int(), None, OWN.int(), LABELS.handle, TOKENS.handle, "", False, False, "auto")),
    ]
    for operator, arguments in cases:
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_compiled_sample_is_the_same(temperature):
    def step(logits: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        ids, logprobs = ops.sample(2 * logits, seeds, 3, temperature, 0.9, 20)
        return ids + logprobs.exp()

    assert torch.equal(compiled(step)(logits_of(1), SEEDS), step(logits_of(1), SEEDS))


def test_a_compiled_decode_step_is_the_same():
    """Mask, bits, draw, forced tokens and moves of one state in one graph, step after step."""
    ours, theirs = rows(), rows()

    def step(state: ops.DecodeState, logits: torch.Tensor, seeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        bits = state.fill_bitmask(torch.zeros(4, 11, dtype=torch.int32))
        ids, logprobs = state.sample_(logits, seeds, 0.7, 0.95)
        forced = state.forced(3)
        return bits, ids, logprobs, *forced, state.mask_(logits * 1), state.done

    run = compiled(lambda logits, seeds: step(ours, logits, seeds))
    backends.reset_report()
    for at in range(4):
        found, expected = run(logits_of(at), SEEDS), step(theirs, logits_of(at), SEEDS)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(ours.state, theirs.state) and torch.equal(ours.remaining, theirs.remaining)
    assert backends.report()["constrain"][ours.backend] == 2 * 4 * 4


def test_a_compiled_label_match_is_the_same():
    def run(ids: torch.Tensor, lengths: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, ...]:
        options = {"tokens": TOKENS, "lengths": lengths, "after": "Answer:", "which": True, "negation": True}
        match = ops.label_match(ids + 0, LABELS, own, **options)
        return match.table, match.which_bits, match.matched & ~match.negated, match.first_tokens

    found, expected = compiled(run)(IDS, LENGTHS, OWN), run(IDS, LENGTHS, OWN)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert expected[2].tolist() == [True, True, False, False]
    assert compiled(lambda ids: ops.label_match(ids, LABELS, OWN, tokens=TOKENS).matched)(IDS).any()


def test_compiled_matches_of_values_are_the_same():
    def run(ids: torch.Tensor, gold: torch.Tensor, spans: torch.Tensor) -> list[torch.Tensor]:
        options = {"tokens": NUMBERS, "lengths": [4, 3, 4, 1]}
        found = [
            ops.match_number(ids + 0, gold, unit="s", rel_tolerance=0.1, **options),
            ops.match_number(ids, [5.5, 5.5, 1.0, 3.0], unit=["s", "min", "s", ""], pick="last", after=None, **options),
            ops.match_interval(ids, spans, iou=0.3, **options),
            ops.match_interval(ids, [[(3, 5), (9, 10)], (1, 2), [], (0, 1)], **options),
        ]
        named = ops.match_sequence(ids, LABELS, [["kick"], [0], ["kick", "snow"], []], after="Answer:", **options)
        parts = [x for match in found for x in (match.table, match.score, match.values)]
        return [*parts, named.table, named.score, named.items, found[0].matched & ~found[0].negated]

    inputs = (SPOKEN, torch.tensor([3.0, 5.5, 0.0, 3.0]), torch.tensor([[3.0, 6.0]] * 4))
    found, expected = compiled(run)(*inputs), run(*inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, atol=0, rtol=0)
    assert expected[-1].tolist() == [False, True, False, True] and expected[-4][2, 0] == 0


def test_a_handle_lives_as_long_as_its_labels():
    made = ops.LabelSet(["jump"])
    handle = made.handle
    assert handle != LABELS.handle
    del made
    with pytest.raises(DataError, match="no LabelSet"):
        labels.label_match(IDS, None, OWN, handle, TOKENS.handle, "", False, False, "auto")


def test_errors_are_those_outside_of_graphs():
    state = rows()
    with pytest.raises(ConstrainError, match="row 3 took token 329"):
        compiled(lambda tokens: state.advance_(tokens))(torch.full((4,), 329))
    assert state.lost.all()
    state.reset()
    with pytest.raises(ModelError, match="row 0, 1, 2, 3 are NaN"):
        compiled(lambda logits: state.sample_(logits, SEEDS))(torch.full((4, 330), torch.nan))
    with pytest.raises(DataError, match="outside the vocabulary"):
        compiled(lambda ids: ops.label_match(ids, LABELS, OWN, tokens=TOKENS).table)(IDS + 3)
