"""constrain inside Hugging Face's generate: many calls, beams, left padding."""

import copy

import pytest
import torch

from constrain_tools import byte_level, small_vocab
from vstar_fast import ops
from vstar_fast.errors import ConstrainError

NAMES = ["walk the dog", "walk", "snow", "snowboard", "back flip", "kick"]


@pytest.fixture(scope="module")
def model():
    from vstar_fast import torchvision_compat

    torchvision_compat.ensure()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=330, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        eos_token_id=1, pad_token_id=0, bos_token_id=None, max_position_embeddings=256,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def label_grammar(names=NAMES) -> ops.Grammar:
    return ops.compile(ops.template("Answer: {x}", x=ops.choice(names)), small_vocab("byte_level"))


def prompts() -> dict[str, torch.Tensor]:
    tokenizer = byte_level()
    tokenizer.padding_side = "left"
    return dict(tokenizer(["the person", "what does the person do? Answer:", "a"], return_tensors="pt", padding=True))


SEARCHES = [
    {"do_sample": False},
    {"do_sample": True, "num_return_sequences": 3, "top_k": 0},
    {"num_beams": 4, "num_return_sequences": 4},
    {"do_sample": True, "num_beams": 2, "top_k": 0},
]


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "samples", "beams", "beam samples"])
def test_generate_gives_answers_only_over_many_calls(model, search):
    grammar, inputs = label_grammar(), prompts()
    processor = ops.LogitsProcessor(grammar, max_new_tokens=30)
    for call in range(3):
        few = {key: value[: 2 + call % 2] for key, value in inputs.items()}
        torch.manual_seed(call)
        kept = {"return_dict_in_generate": True, "output_scores": True}
        out = model.generate(**few, logits_processor=[processor], max_new_tokens=30, **search, **kept)
        answers = out.sequences[:, few["input_ids"].shape[1] :].tolist()
        assert len(answers) == len(few["input_ids"]) * search.get("num_return_sequences", 1)
        if "num_beams" not in search:
            assert all(grammar.value(answer)["x"] in NAMES for answer in answers)
        else:
            possible = out.sequences_scores.isfinite().tolist()  # beams beyond the number of answers have score -inf
            assert possible[0] and all(
                grammar.value(a)["x"] in NAMES for a, ok in zip(answers, possible, strict=True) if ok
            )


def test_each_prompt_may_have_a_grammar_of_its_own(model):
    two = [label_grammar(NAMES[:2]), None, label_grammar(NAMES[3:])]
    processor, inputs = ops.LogitsProcessor(two, max_new_tokens=40), prompts()
    out = model.generate(**inputs, logits_processor=[processor], max_new_tokens=40, num_beams=2)
    answers = out[:, inputs["input_ids"].shape[1] :].tolist()
    assert two[0].value(answers[0])["x"] in NAMES[:2] and two[2].value(answers[2])["x"] in NAMES[3:]
    with pytest.raises(ConstrainError, match="3 grammars do not share out 2 rows"):
        processor(inputs["input_ids"][:2], torch.zeros(2, 330))


def test_rows_are_followed_through_reordered_beams():
    grammar, vocab = label_grammar(), small_vocab("byte_level")
    processor = ops.LogitsProcessor(grammar)
    ids = torch.full((2, 5), 7)
    a, w = (next(i for i, t in enumerate(vocab.tokens) if t == piece) for piece in (b"A", b"n"))
    assert processor(ids, torch.zeros(2, 330))[0, a] == 0
    ids = torch.cat([ids, torch.tensor([[a], [9]])], 1)
    scores = processor(ids, torch.zeros(2, 330))
    assert scores[0, w] == 0 and scores[1].isinf().sum() == 329
    ids = torch.cat([ids[[0, 0]], torch.tensor([[w], [w]])], 1)
    scores = processor(ids, torch.zeros(2, 330))
    assert torch.equal(scores[0], scores[1]) and 0 < (scores[0] == 0).sum() < 10
    fresh = processor(torch.full((2, 8), 3), torch.zeros(2, 330))
    assert fresh[0, a] == 0 and fresh[1, a] == 0


def test_the_scores_given_are_not_changed():
    scores = torch.zeros(1, 330)
    ops.LogitsProcessor(label_grammar())(torch.ones(1, 3, dtype=torch.int64), scores)
    assert (scores == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_of_any_type_and_stride_keep_their_bits(dtype):
    wide = torch.randn(2, 3, 345).to(dtype)
    scores = wide[:, 1, 3:333]
    scores[0, 5::7] = torch.nan
    masked = ops.LogitsProcessor(label_grammar())(torch.ones(2, 3, dtype=torch.int64), scores)
    legal = masked[1] != -torch.inf
    assert masked.dtype == dtype and 0 < legal.sum() < 10
    assert torch.equal(masked[:, legal].view(torch.int8), scores[:, legal].contiguous().view(torch.int8))
    assert (masked[:, ~legal] == -torch.inf).all()


def test_what_does_not_fit_is_named():
    ids = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ConstrainError, match="max_new_tokens is 1 for row 0, below its shortest answer"):
        ops.LogitsProcessor(label_grammar(), max_new_tokens=1)(ids, torch.zeros(2, 330))
    with pytest.raises(ConstrainError, match="331 columns.*logits_size=331"):
        ops.LogitsProcessor(label_grammar())(ids, torch.zeros(2, 331))


@pytest.mark.parametrize("search", [{"assistant": True}, {"prompt_lookup_num_tokens": 3}], ids=["model", "lookup"])
def test_assisted_decoding_gives_the_same_answer(model, search):
    """Candidates are masked from where they begin, then the model's own logits from there again."""
    grammar = label_grammar()
    processor = ops.LogitsProcessor(grammar, max_new_tokens=30)
    for text in ("the person", "Answer: kick. What now?", "the person"):
        ids = byte_level()(text, return_tensors="pt")["input_ids"]
        kept = {"max_new_tokens": 30, "do_sample": False, "logits_processor": [processor]}
        plain = model.generate(ids, **kept)
        more = {"assistant_model": copy.deepcopy(model)} if "assistant" in search else search
        assert torch.equal(model.generate(ids, **kept, **more), plain)
        assert grammar.value(plain[0, ids.shape[1] :].tolist())["x"] in NAMES


def test_a_longer_prompt_is_no_step_back():
    processor, ids = ops.LogitsProcessor(label_grammar()), torch.ones(1, 3, dtype=torch.int64)
    first = processor(ids, torch.zeros(1, 330))
    step = torch.cat([ids, first.argmax(-1, keepdim=True)], 1)
    for _ in range(3):
        step = torch.cat([step, processor(step, torch.zeros(1, 330)).argmax(-1, keepdim=True)], 1)
    for prompt in (torch.cat([ids, ids[:, :1]], 1), step[:, :3], torch.cat([step[:, :4], ids], 1)):
        assert torch.equal(processor(prompt, torch.zeros(1, 330)), first)
