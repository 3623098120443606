"""Decoding in bursts: answers of single steps, few recordings, nothing read; a recorder stands in for CUDA graphs."""

import contextlib
import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vstar_fast.kernels import constrain as constraining
from vstar_fast.kernels.prefix_attention import Groups, Segment, prefix_attention

from constrain_tools import small_vocab
from test_engine import SIZES, prompts, request, text_model
from vstar_fast import backends, ops
from vstar_fast.engine import Scheduler, TextLM, burst, cache, chunked_prefill, graphs
from vstar_fast.engine.store import PAGE, slots_of
from vstar_fast.errors import ModelError


def renewed(groups):
    return Groups(groups.tokens, groups.slots, groups.visible, causal=groups.causal)


class Recorder(graphs.Again):
    """Counts recordings and replays; warms up as a CUDA graph does, which moves every row on."""

    name = "recorder"

    def __init__(self, warm_up=2):
        self.recordings, self.replays, self.warm_up = 0, 0, warm_up

    def record(self, step):
        self.recordings += 1
        for _ in range(self.warm_up):
            step()

        def replay():
            self.replays += 1
            step()

        return replay


@pytest.fixture(autouse=True)
def fresh_groups(monkeypatch):
    """On a CPU what groups see is worked out once and kept; the kernel on a GPU reads it every time."""

    def attend(query, levels, scale):
        again = [[Segment(s.keys, s.values, renewed(s.groups)) for s in level] for level in levels]
        return prefix_attention(query, again, scale, backend="gemm")

    monkeypatch.setattr(cache, "prefix_attention", attend)


@pytest.fixture(scope="module")
def lm():
    return TextLM(text_model())


def scheduler(lm, recorder=None, **more):
    """One whose steps are recorded, by `recorder`, or made anew."""
    made = Scheduler(lm, skip_forced=False, **more)
    if recorder is not None:
        made._graphs = graphs.Graphs(made._batch, recorder)
    return made


class Drawn(tuple):
    """Tokens, why they end, and their log-probability, which is the same to the rounding of fp32 sums."""

    def __eq__(self, other):
        return self[:2] == other[:2] and abs(self[2] - other[2]) < 2e-3

    __hash__ = None


def answers(made, requests):
    found = {id(r): answers for r, answers in made.run(requests)}
    return [[Drawn((a.token_ids, a.finish, a.logprob)) for a in found[id(r)]] for r in requests]


KINDS = {
    "greedy": {"max_new_tokens": 70},
    "sampled": {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 40},
    "top-k": {"temperature": 1.3, "top_k": 7, "max_new_tokens": 17},
    "one token": {"max_new_tokens": 1},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("max_rows", "plain_below"), [(64, 0), (5, 0), (64, 200)])
def test_answers_are_those_of_single_steps(lm, kind, max_rows, plain_below):
    """Prompts of several arenas, pages that fill up within a burst, rows that end and others that come."""
    asked = [request(ids, **KINDS[kind]) for ids in prompts(3, 63, 64, 130, 600, 90)]
    want = answers(scheduler(lm, max_rows=max_rows, plain_below=plain_below), asked)
    recorder = Recorder()
    made = scheduler(lm, recorder, max_rows=max_rows, plain_below=plain_below)
    assert answers(made, asked) == want
    assert made.stack.store.nbytes == 0 and not made._graphs.recorded
    if kind != "one token":
        assert recorder.recordings and recorder.replays


def test_settings_are_mixed(lm):
    (ids,) = prompts(100)
    asked = [request(ids, **kind) for kind in KINDS.values()]
    assert answers(scheduler(lm, Recorder()), asked) == answers(scheduler(lm), asked)


@pytest.fixture(scope="module")
def spoken():
    """A model over a vocabulary of bytes, a grammar of two answers, and the one that is wanted."""
    vocab = small_vocab("byte_level")
    sizes = SIZES | {"vocab_size": vocab.logits_size, "eos_token_id": vocab.eos_ids[0]}
    model = text_model(**{k: v for k, v in sizes.items() if k in ("vocab_size", "eos_token_id")})
    free = ops.compile(ops.template("Answer: {x}", x=ops.choice(["walk", "snow", "snowboard"])), vocab)
    gold = ops.compile(ops.template("Answer: {x}", x=ops.choice(["snow"])), vocab)
    return TextLM(model), free, gold


@pytest.mark.parametrize("wanted", [False, True])
def test_grammars_hold_and_lost_answers_stop(spoken, wanted):
    lm, free, gold = spoken
    asked = [
        request(ids, range(6), free, gold if wanted else None, temperature=1.0, max_new_tokens=40)
        for ids in prompts(20, 70, seed=3)
    ]
    asked.append(request(prompts(30)[0], temperature=1.0, max_new_tokens=9))
    plain, recorded = scheduler(lm), scheduler(lm, Recorder())
    want = answers(plain, asked)
    assert answers(recorded, asked) == want
    finishes = {finish for row in want[:2] for _, finish, _ in row}
    assert ("stopped_early" in finishes) == wanted
    for name in ("answers", "tokens", "stopped_early", "tokens_saved"):
        assert getattr(recorded.counts, name) == getattr(plain.counts, name)


def test_forced_tokens_take_a_step_made_anew(spoken):
    """Where they are skipped, rows have several tokens to feed; the answers are the same."""
    lm, free, _ = spoken
    asked = [request(ids, range(4), free, temperature=1.0, max_new_tokens=40) for ids in prompts(20, 70)]
    want = answers(scheduler(lm), asked)
    made = Scheduler(lm)
    made._graphs = graphs.Graphs(made._batch, Recorder())
    assert answers(made, asked) == want
    assert made.counts.forced > 0


def test_recordings_serve_other_rows_of_like_sizes(lm):
    """Sixty questions, eight rows at a time: rows come and go, shapes repeat."""
    asked = [request(ids, (1, 2), max_new_tokens=24, temperature=1.0) for ids in prompts(*range(70, 130))]
    recorder = Recorder()
    made = scheduler(lm, recorder, max_rows=8, plain_below=0)
    recorded = {}
    clear = made._graphs.clear
    made._graphs.clear = lambda: (recorded.update(made._graphs.recorded), clear())
    assert answers(made, asked) == answers(scheduler(lm, max_rows=8, plain_below=0), asked)
    assert recorder.recordings < recorder.replays / 10
    assert len(recorded) <= graphs.MOST_RECORDED


@pytest.mark.parametrize("most", [100, 30])
def test_prompts_are_taken_in_between_steps_a_few_at_a_time(lm, most, monkeypatch):
    """Ten prompts wait while two answers are drawn: at most one is put in before these go on."""
    asked = [request(ids, (1,), max_new_tokens=n) for n, ids in zip([90, *[6] * 9], prompts(*[100] * 10), strict=True)]
    want = answers(scheduler(lm, max_rows=8), asked)
    monkeypatch.setitem(chunked_prefill.BETWEEN_STEPS, "cpu", most)
    made = scheduler(lm, Recorder(), max_rows=8)
    taken, put = [], made._prompts.arriving
    monkeypatch.setattr(made._prompts, "arriving", lambda now, later: (taken.append(len(now)), put(now, later))[1])
    assert answers(made, asked) == want
    assert taken == [8, 1, 1]


def test_what_cannot_be_recorded_runs_anew_and_says_so(lm, caplog):
    class Refuses(Recorder):
        def record(self, step):
            raise RuntimeError("operation not permitted when stream is capturing")

    asked = [request(ids, max_new_tokens=20) for ids in prompts(70, 80)]
    backends.reset_report()
    with caplog.at_level(logging.WARNING):
        assert answers(scheduler(lm, Refuses()), asked) == answers(scheduler(lm), asked)
    assert "LlamaModel cannot be recorded" in caplog.text
    assert backends.report()["decode"]["eager"] > 0


def test_memory_that_runs_out_halves_the_batch(lm):
    class RunsOut(Recorder):
        def record(self, step):
            if not self.recordings:
                self.recordings += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().record(step)

    asked = [request(ids, max_new_tokens=20) for ids in prompts(70, 80)]
    made = scheduler(lm, RunsOut())
    assert answers(made, asked) == answers(scheduler(lm), asked)
    assert made.counts.halved == 1


class NoReads(TorchDispatchMode):
    """Inside, nothing of a tensor reaches the host, and no shape depends on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket._qualified_op_name
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"):
            raise AssertionError(f"{name}: the host would wait")
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def reading_forbidden(monkeypatch):
    def refuse(self, *args, **kwargs):
        raise AssertionError("the host would wait")

    with monkeypatch.context() as patched, NoReads():
        for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"):
            patched.setattr(torch.Tensor, name, refuse)
        yield


def test_a_step_reads_nothing(spoken, monkeypatch):
    """Model, grammar, sampler without one, wanted answers; only what the ops check on a CPU alone is left out."""
    lm, free, gold = spoken
    asked = [request(ids, range(3), free, gold, temperature=1.0, max_new_tokens=40) for ids in prompts(70, 80)]
    asked.append(request(prompts(30)[0], temperature=1.0, max_new_tokens=30))
    held = []

    class Forbids(Recorder):
        def record(self, step):
            def replay():
                with reading_forbidden(monkeypatch):
                    step()
                held.append(step)

            return replay

    monkeypatch.setattr(constraining.checks, "check_drawn", lambda _: None)
    monkeypatch.setattr(burst, "sample", lambda logits, *_: (logits.argmax(-1), logits.amax(-1).float()))

    def attend(query, levels, scale):  # of the shape and device that the kernel gives; the rest is not of interest
        return query * scale, query[..., 0]

    monkeypatch.setattr(cache, "prefix_attention", attend)
    made = scheduler(lm, Forbids(), plain_below=0)
    answers(made, asked)
    assert len(held) > 10
    with pytest.raises(AssertionError, match="the host would wait"), reading_forbidden(monkeypatch):
        bool(torch.ones(1) > 0)


def test_buckets_are_few_and_not_much_too_large():
    sizes = [graphs.bucket(n) for n in range(1, 1025)]
    assert sizes == sorted(sizes) and all(n <= size for n, size in enumerate(sizes, 1))
    assert all(size < 3 / 2 * n for n, size in enumerate(sizes, 1) if n > 8)
    assert sizes[:9] == [1, 2, 4, 4, 8, 8, 8, 8, 12]
    assert len(set(sizes)) < 24


def test_pages_are_moved_into_one_arena_with_what_they_hold(lm):
    store = scheduler(lm).stack.store
    small = [store.take(PAGE) for _ in range(3)]
    store.arenas[PAGE].append(graphs.Arena(store.shape, PAGE, 4))
    other = graphs.Node(store.arenas[PAGE][1], 2)
    store.arenas[PAGE][1].free.remove(2)
    for n, page in enumerate([*small, other]):
        page.arena.keys[0][:, page.slot] = n
        page.arena.values[0][:, page.slot] = -n
    before = small[0].arena
    graphs.together(store, small, 9)
    assert all(page.arena is before for page in small)
    graphs.together(store, [*small, other], 9)
    assert len({id(page.arena) for page in [*small, other]}) == 1 and small[0].arena is not before
    for n, page in enumerate([*small, other]):
        assert all(bool((keys[:, page.slot] == n).all()) for keys in page.arena.keys)
        assert all(bool((values[:, page.slot] == -n).all()) for values in page.arena.values)
    more = store.take(PAGE)
    assert more.arena is other.arena and more.slot == 4 and more.arena.slots == 12


def test_arenas_on_a_gpu_double_so_that_there_are_few():
    """32 prompts of a gibibyte each, as Video-LLaVA's: 6 addresses, not 32; on a CPU arenas stay small."""
    slots, arenas = 0, []
    while slots < 32:
        arenas.append(slots_of(2048, 1 << 19, slots, "cuda"))
        slots += arenas[-1]
    assert arenas == [1, 1, 2, 4, 8, 16]
    assert slots_of(2048, 1 << 19, 16, "cpu") == 1 and slots_of(64, 1 << 10, 0, "cpu") == 64


def test_logits_that_are_no_numbers_are_an_error(lm, monkeypatch):
    monkeypatch.setattr(burst, "sample", lambda rows, *_: (torch.full((len(rows),), -1), torch.zeros(len(rows))))
    made = scheduler(lm, Recorder())
    with pytest.raises(ModelError, match="logits are NaN"):
        answers(made, [request(prompts(70)[0], max_new_tokens=20)])


def test_graphs_are_for_gpus_and_can_be_turned_off(lm, monkeypatch):
    batch = scheduler(lm)._batch
    assert graphs.made_for(batch) is None
    monkeypatch.setattr(batch.stack.lm, "device", torch.device("cuda"))
    monkeypatch.setattr(graphs, "CudaGraphs", Recorder)
    monkeypatch.setattr(backends, "choose", lambda *_: backends.Choice("triton", ""))
    assert isinstance(graphs.made_for(batch).recorder, Recorder)
    monkeypatch.setenv(graphs.VARIABLE, "0")
    assert graphs.made_for(batch) is None
    monkeypatch.delenv(graphs.VARIABLE)
    monkeypatch.setattr(backends, "choose", lambda *_: backends.Choice("flash", ""))
    assert graphs.made_for(batch) is None


def test_a_burst_is_recorded_and_replayed_on_the_gpu_of_its_model(lm, monkeypatch):
    where = []

    @contextlib.contextmanager
    def on(device):
        where.append(device)
        yield
        where.append(None)

    class There(Recorder):
        def record(self, step):
            assert where[-1] == lm.device
            replay = super().record(step)
            return lambda: replay() if where[-1] == lm.device else pytest.fail("replayed on the current GPU")

    monkeypatch.setattr(graphs, "on", on)
    recorder = There()
    answers(scheduler(lm, recorder), [request(prompts(64)[0], max_new_tokens=12)])
    assert recorder.recordings and recorder.replays and where[-1] is None


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind, monkeypatch):
    """Recorded steps draw what single ones draw, and no step makes the host wait."""
    monkeypatch.undo()
    lm = TextLM(text_model(hidden_size=384, num_attention_heads=6, num_key_value_heads=2).cuda())
    asked = [request(ids, **KINDS[kind]) for ids in prompts(3, 64, 130, 600)]
    monkeypatch.setenv(graphs.VARIABLE, "0")
    want = answers(scheduler(lm), asked)
    monkeypatch.delenv(graphs.VARIABLE)
    made = scheduler(lm)
    replayed = []
    record = made._graphs.recorder.record

    def watched(step):
        replay = record(step)

        def again():
            torch.cuda.set_sync_debug_mode("error")
            try:
                replay()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            replayed.append(1)

        return again

    made._graphs.recorder.record = watched
    pairs = [(a, b) for x, y in zip(answers(made, asked), want, strict=True) for a, b in zip(x, y, strict=True)]
    assert sum(a[:2] == b[:2] for a, b in pairs) >= 0.9 * len(pairs)  # sums in another order may turn a draw
    assert made._graphs.recorder.name == "cuda graph" and (replayed or kind == "one token")


def test_a_row_that_fills_its_last_page_within_a_burst(lm, monkeypatch):
    """What it would store next has no page, and the table no column for one, while the others go on."""
    monkeypatch.setattr(graphs, "MOST_STEPS", 7)  # as after a step with forced tokens: the page ends within a burst
    (ids,) = prompts(20)
    asked = [request(ids, range(1), max_new_tokens=n) for n in (PAGE + 1, 5, PAGE + 1, PAGE - 3)]
    plain, recorded = (scheduler(lm, recorder, max_rows=2) for recorder in (None, Recorder()))
    for made in (plain, recorded):
        made._batch.eos = frozenset()
    want = answers(plain, asked)
    assert [len(row[0][0]) for row in want] == [PAGE + 1, 5, PAGE + 1, PAGE - 3]
    assert answers(recorded, asked) == want
