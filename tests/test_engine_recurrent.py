"""Layers with a state in the engine: Hugging Face's own answers, log-likelihoods and scores, and states let go of."""

import gc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import families
import tiny
from test_engine import SIZES, drawn, prompts, request, theirs
from test_engine_families import asked
from test_engine_families import theirs as of_generate
from test_families import batch_of
from vstar_fast import models, ops
from vstar_fast.engine import Crew, Request, Scheduler, Scorer, Settings, TextLM, chunked_prefill, crew, score, stack
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.models.mixers import mixers_of
from vstar_fast.models.recurrent import States, in_waves, mixed, running

DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
KINDS = {
    "Qwen3_5": DELTA,
    "Qwen3Next": DELTA | EXPERTS | {"shared_expert_intermediate_size": 32},
    "Lfm2": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "NemotronH": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "head_dim": 16,
        "chunk_size": 16,
    },
}


def text_model(kind, **more):
    import transformers

    torch.manual_seed(0)
    name = f"{kind}TextConfig" if hasattr(transformers, f"{kind}TextConfig") else f"{kind}Config"
    config = getattr(transformers, name)(**SIZES | KINDS.get(kind, {}) | more)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.fixture(scope="module", params=KINDS)
def lm(request):
    return TextLM(text_model(request.param))


@pytest.fixture(scope="module")
def hybrid():
    return TextLM(text_model("Qwen3_5"))


def states_alive():
    gc.collect()
    return [each for each in gc.get_objects() if type(each) is States]


@torch.no_grad()
def log_likelihood(lm, ids, tokens):
    """Of tokens behind a prompt, token by token as `generate` calls the model: some kernels for one token differ from
    those for several by more than rounding."""
    cache, found = DynamicCache(config=lm.model.config), []
    given = ids
    for token in tokens:
        logits = lm.model(given[None], use_cache=True, **{CACHE: cache}).logits[0, -1]
        found.append(logits.log_softmax(-1)[token].item())
        given = torch.tensor([token])
    return sum(found)


def test_greedy_answers_are_generates(lm):
    asked = prompts(1, 2, 3, 64, 65, 65, 130)
    scheduler = Scheduler(lm, max_rows=7, plain_below=64)
    found = drawn(scheduler, [request(ids, max_new_tokens=3 + 5 * n) for n, ids in enumerate(asked)])
    for n, (ids, answers) in enumerate(zip(asked, found, strict=True)):
        assert answers == [theirs(lm.model, ids, 3 + 5 * n)] * 3
    assert scheduler.stack.store.nbytes == 0 and not states_alive()


def test_samples_have_the_log_likelihood_of_the_models_own_forward_in_any_batch(lm):
    asked = [request(ids, temperature=1.0, max_new_tokens=12) for ids in prompts(4, 70, 4, 33)]
    runs = [{id(r): answers for r, answers in Scheduler(lm, max_rows=rows).run(asked)} for rows in (1, 5)]
    for r in asked:
        first, *others = [[a.token_ids for a in run[id(r)]] for run in runs]
        assert all(other == first for other in others)
        for answer in runs[1][id(r)][:2]:
            assert answer.logprob == pytest.approx(log_likelihood(lm, r.tail, answer.token_ids), abs=1e-3)


@pytest.mark.parametrize("most", [1, 40])
def test_long_prompts_in_pieces_give_the_same_answers(lm, most, monkeypatch):
    asked = [request(ids, max_new_tokens=8) for ids in prompts(12, 9, 150)]
    want = [[theirs(lm.model, r.tail, 8)] * 3 for r in asked]
    monkeypatch.setitem(chunked_prefill.BETWEEN_STEPS, "cpu", most)
    scheduler = Scheduler(lm, max_rows=6)
    assert drawn(scheduler, asked) == want
    assert scheduler.counts.prefilled == 171 and not states_alive()


def test_out_of_memory_halves_the_rows_and_changes_no_answer(hybrid, monkeypatch):
    asked = [request(ids, temperature=1.0, max_new_tokens=20) for ids in prompts(*[6] * 12)]
    want = drawn(Scheduler(hybrid), asked)
    scheduler = Scheduler(hybrid, max_rows=12)
    call = scheduler.stack.call

    def small(embeds, *args):
        hidden = call(embeds, *args)
        if len(scheduler._batch) > 5:  # states have moved on by then
            raise torch.OutOfMemoryError("no room")
        return hidden

    monkeypatch.setattr(scheduler.stack, "call", small)
    assert drawn(scheduler, asked) == want
    assert scheduler.counts.halved >= 1 and not states_alive()


def test_the_bytes_of_states_count_as_those_of_keys(hybrid):
    state = 2 * (64 * 4 + 4 * 8 * 8) * 4  # a convolution's and a recurrence's, in two layers of fp32
    assert mixers_of(hybrid.text_model).row_bytes == state
    scheduler = Scheduler(hybrid, memory_bytes=1)
    (ids,) = prompts(9)
    waiting = scheduler._need(SimpleNamespace(request=request(ids, max_new_tokens=10), todo=[]))
    token = scheduler.stack.store.shape.token_bytes
    assert waiting == 9 * token + state
    asked = [request(ids, max_new_tokens=10), request(ids, max_new_tokens=10)]
    assert drawn(scheduler, asked) == [[theirs(hybrid.model, ids, 10)] * 3] * 2


def test_a_crew_draws_what_one_scheduler_draws(hybrid, monkeypatch):
    monkeypatch.setattr(crew, "WORTH", 1)
    asked = [request(ids, temperature=1.0, max_new_tokens=20) for ids in prompts(*range(3, 12))]
    together = Crew(hybrid, max_rows=4, workers=2)
    assert drawn(together, asked) == drawn(Scheduler(hybrid), asked) and together.workers == 2
    assert not states_alive()


def test_forced_tokens_go_through_in_one_run():
    words = tiny.tokenizer()
    model = text_model("Qwen3_5", vocab_size=len(words), eos_token_id=words.eos_token_id, pad_token_id=0)
    spoken = TextLM(model, words)
    parts = [ops.text(until="Answer:"), " I see a red . I see a ", ops.choice(["blue", "red"])]
    made = ops.compile(ops.sequence(parts, separator=""), spoken.vocab, "forced")
    lengths = (3, 3, 9)
    asked = [Request(i[:0], i % 8, None, range(4), Settings(1.0, 1.0, 0, 30), made) for i in prompts(*lengths)]
    found = {}
    for skip in (False, True):
        scheduler = Scheduler(spoken, max_rows=5, skip_forced=skip)
        found[skip] = drawn(scheduler, asked)
        assert bool(scheduler.counts.forced) == skip
    assert found[True] == found[False]


@pytest.mark.parametrize("most", [2, 1000])
def test_labels_score_as_a_row_each(lm, most, monkeypatch):
    each = max(mixers_of(lm.text_model).each_bytes)
    monkeypatch.setattr(score, "WAVE_BYTES", most * each)
    monkeypatch.setattr(stack, "STATE_BYTES", most)
    made = torch.Generator().manual_seed(0)
    labels = [[torch.randint(6, 9 if n % 2 else 97, (1 + n % 6,), generator=made).tolist()] for n in range(14)]
    asked = prompts(1, 30, 30)
    found = Scorer(lm).score([request(ids) for ids in asked], labels)
    for ids, scores in zip(asked, found.tolist(), strict=True):
        wanted = [log_likelihood(lm, ids, surface) for (surface,) in labels]
        assert scores == pytest.approx(wanted, abs=2e-5, rel=2e-5)
    assert not states_alive()


@pytest.fixture(scope="module")
def video_lm(tmp_path_factory):
    return models.load(str(families.write("qwen3_5", tmp_path_factory.mktemp("qwen3_5") / "model")))


@pytest.mark.parametrize("most", [1 << 62, 7])
def test_a_videos_tokens_go_through_once_for_all_its_questions(video_lm, most, monkeypatch):
    monkeypatch.setitem(chunked_prefill.BETWEEN_STEPS, "cpu", most)
    first, second = video_lm.encode(batch_of((56, 84), (70, 56)))
    features = [first, second, first, None, first, second]
    texts = ["which colour", "is it red?", "", "see a ball", "see a ball", "which colour"]
    requests = asked(video_lm, features[:3], texts[:3]) + asked(video_lm, features[4:], texts[4:])
    plain = video_lm.text_ids(texts[3])
    requests.insert(3, Request(plain[:0], plain, None, [1, 2], Settings(max_new_tokens=24)))
    scheduler = Scheduler(video_lm, max_rows=6)
    found = {id(r): [a.token_ids for a in answers] for r, answers in scheduler.run(requests)}
    for r, text, feature in zip(requests, texts, features, strict=True):
        if feature is not None:
            assert found[id(r)] == [of_generate(video_lm, text, feature)] * 2
    once = sum(len(r.head) + len(r.tail) for r in requests) + sum(len(f.ids) for f in (first, second))
    assert scheduler.counts.prefilled <= once and not states_alive()


def test_each_mixer_has_its_own_forward_again_however_a_call_ends(hybrid):
    mixers = mixers_of(hybrid.text_model)
    first = next(iter(mixers)).module
    first.forward = own = first.forward
    try:
        with pytest.raises(ZeroDivisionError), running(mixers, lambda: 1 / 0):
            assert all("forward" in vars(mixer.module) for mixer in mixers) and first.forward is not own
            hybrid.text_model(inputs_embeds=torch.zeros(1, 2, 48))
        assert first.forward is own and not any("forward" in vars(m.module) for m in list(mixers)[1:])
    finally:
        del first.forward


def test_layers_that_an_adapter_has_copied_are_looked_up_again(hybrid):
    from peft import LoraConfig, get_peft_model

    (ids,) = prompts(20)
    scheduler = Scheduler(hybrid)
    before = drawn(scheduler, [request(ids)])
    peft = get_peft_model(hybrid.model, LoraConfig(target_modules=["q_proj"], modules_to_save=["linear_attn"]))
    try:
        with torch.no_grad():
            for name, p in peft.named_parameters():
                if "modules_to_save" in name:
                    p.add_(0.05)
        want = [[theirs(hybrid.model, ids, 64)] * 3]
        assert drawn(scheduler, [request(ids)]) == want != before
        with peft.disable_adapter():
            assert drawn(scheduler, [request(ids)]) == before
    finally:
        peft.unload()


class Running:
    """A mixer whose outputs are its states: half of the last one and the token; of single tokens in place."""

    layer = 3

    def call(self, forward, hidden, before, given):
        assert forward is None and given == {}
        (state,) = [hidden.new_zeros(len(hidden), hidden.shape[-1])] if before is None else before
        outs = []
        for token in hidden.unbind(1):
            state = state.mul_(0.5).add_(token) if hidden.shape[1] == 1 and before else 0.5 * state + token
            outs.append(state.clone())
        return torch.stack(outs, 1), [state]


@pytest.mark.parametrize("seed", range(4))
def test_runs_of_any_lengths_go_on_from_their_own_states_for_many_steps(seed):
    """Answers fork from prompts, are fed one or several tokens, leave and join; nobody else's state moves."""
    random, device = np.random.default_rng(seed), torch.device("cpu")
    made = torch.Generator().manual_seed(seed)

    def through(runs, moving=False):
        tokens = [torch.randn(count, 2, generator=made, dtype=torch.float64) for count, *_ in runs]
        waves, after = in_waves([(count, held) for count, held, _ in runs], device, moving)
        out = mixed(Running(), None, torch.cat(tokens)[None], waves, {})[0].split([count for count, *_ in runs])
        ends = []
        for (_, _, state), own, found, held in zip(runs, tokens, out, after, strict=True):
            for token, each in zip(own, found, strict=True):
                state = 0.5 * state + token
                torch.testing.assert_close(each, state, atol=1e-12, rtol=0)
            torch.testing.assert_close(held.states.layers[3][0][held.row], state, atol=1e-12, rtol=0)
            ends.append((held, state))
        return ends

    nothing = torch.zeros(2, dtype=torch.float64)
    prompts = through([(int(n), None, nothing) for n in random.integers(1, 9, 5)])
    prompts += through([(int(n), *prompts[k]) for k, n in enumerate(random.integers(1, 9, 3))])
    rows = [prompts[k] for k in random.integers(0, 8, 6)]
    for step in range(25):
        several = random.random(len(rows)) < (0.3 if step % 3 else 0.0)
        counts = np.where(several, random.integers(1, 7, len(rows)), 2 if step % 7 == 1 else 1)
        rows = through([(int(n), *row) for n, row in zip(counts, rows, strict=True)], moving=True)
        rows = [row for row in rows if random.random() < 0.9]
        rows += [prompts[k] for k in random.integers(0, 8, random.integers(0, 3) + (not rows))]
    for held, state in prompts:
        torch.testing.assert_close(held.states.layers[3][0][held.row], state, atol=1e-12, rtol=0)
        assert torch.equal(held.alone().states.layers[3][0][0], held.states.layers[3][0][held.row])


def test_rows_that_go_on_together_are_not_copied():
    made = torch.Generator().manual_seed(0)
    device, waves, held = torch.device("cpu"), None, [None] * 3
    tensors = []
    for _ in range(3):
        waves, held = in_waves([(1, each) for each in held], device, moving=True)
        mixed(Running(), None, torch.randn(1, 3, 2, generator=made), waves, {})
        tensors.append(held[0].states.layers[3][0])
        assert len({id(each.states) for each in held}) == 1 and waves.order is None
    assert tensors[0] is tensors[1] is tensors[2]
