"""`model.dtype = "mixed"`: which products are in bf16, that answers and training hold, and what is told apart by it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from vstar_fast.kernels.linear import fast_linears
from vstar_fast.kernels.linear import modules as linears

import families
from test_families import batch_of
from test_packed import CONFIG, adapted, examples, gradients, reader
from vstar_fast import backends, models
from vstar_fast.engine.crew import Crew
from vstar_fast.engine.request import Request, Settings
from vstar_fast.errors import BackendError, ModelError
from vstar_fast.finetune import accumulate, fit
from vstar_fast.finetune import finetune as fit_whole
from vstar_fast.finetune.packing import obstacle
from vstar_fast.finetune.step import copied
from vstar_fast.models.loading import pick_dtype
from vstar_fast.models.modules import dtype_name, unmixed
from vstar_fast.run.runtime import unload

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")
CPU = torch.device("cpu")


def pretend(monkeypatch, ok):
    probe = backends.Probe(ok, "for the test", "use model.dtype = float32")
    monkeypatch.setattr(backends, "PROBES", dict(backends.PROBES, **{"onednn-bf16": lambda: probe}))
    backends.available.cache_clear()


@pytest.fixture
def bf16(monkeypatch):
    """A processor with bf16 instructions, and layers that are all large enough."""
    pretend(monkeypatch, True)
    monkeypatch.setattr(linears, "MIN_HALVED", 1)
    yield
    monkeypatch.undo()
    backends.available.cache_clear()


@pytest.fixture(scope="module", params=["qwen2_vl", "llava_onevision"])
def written(request, tmp_path_factory):
    return str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model"))


def test_auto_goes_by_the_processor(monkeypatch):
    for ok in (True, False):
        pretend(monkeypatch, ok)
        assert pick_dtype("auto", CPU) == (torch.float32, ok)
    assert pick_dtype("auto", torch.device("cuda")) == (torch.bfloat16, False)
    with pytest.raises(BackendError, match=r"model.dtype = mixed was asked .* use model.dtype = float32"):
        pick_dtype("mixed", CPU)
    with pytest.raises(ModelError, match=r"mixed is for a CPU, the device is cuda; use bfloat16"):
        pick_dtype("mixed", torch.device("cuda"))
    monkeypatch.undo()
    backends.available.cache_clear()


def requests(lm):
    (features,) = lm.encode(batch_of((56, 56)))
    head, tail = lm.split("which colour")
    return [Request(head, tail, features, list(range(4)), Settings(temperature=0.0, max_new_tokens=1))]


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("engine", ["packed", "plain"])
def test_the_stack_multiplies_in_bf16_and_tower_and_head_do_not(written, engine):
    lm = models.load(written, dtype="mixed", device="cpu")
    assert (lm.model.dtype, lm.mixed, dtype_name(lm)) == (torch.float32, True, "mixed")
    backends.reset_report()
    asked = requests(lm)
    assert "half_linear" not in backends.report()  # the tower
    ((_, answers),) = Crew(lm, engine=engine).run(asked)
    assert backends.report()["half_linear"]["onednn-bf16"] > 0
    assert len(answers) == 4
    before = backends.report()["half_linear"]
    with fast_linears(half=True):
        logits = lm.logits(torch.randn(3, lm.head.in_features))
    assert logits.dtype is torch.float32
    assert backends.report()["half_linear"] == before


@pytest.mark.usefixtures("bf16")
def test_answers_are_near_those_of_fp32(written):
    logprobs = []
    for dtype in ("float32", "mixed"):
        lm = models.load(written, dtype=dtype, device="cpu")
        ((_, answers),) = Crew(lm).run(requests(lm))
        logprobs.append(answers[0].logprob)
    assert logprobs[0] == pytest.approx(logprobs[1], rel=0.1)  # these models have weights of 1, not of 0.02
    assert logprobs[0] != logprobs[1]


@pytest.mark.usefixtures("bf16")
def test_training_is_near_that_of_fp32_packed_and_row_by_row(written, tmp_path):
    lm = models.load(written, dtype="mixed", device="cpu")
    features = lm.encode(batch_of((56, 84), (84, 56), (56, 56)))
    peft = adapted(lm, CONFIG)
    items = reader(lm, features)(examples())
    assert obstacle(lm, peft, items) == ""
    found = []
    for mixed, pack in ((False, True), (True, True), (True, False)):
        lm.mixed = mixed
        peft.zero_grad()
        backends.reset_report()
        config = dataclasses.replace(CONFIG, pack=pack, half=True)
        with copied(lm, config):
            loss, _ = accumulate(lm, peft, items, config)
        assert ("half_linear" in backends.report()) == mixed
        found.append((loss, gradients(peft)))
    backends.reset_report()
    accumulate(lm, peft, items, CONFIG)
    assert "half_linear" not in backends.report()
    kept = fit.replay.save(tmp_path / "broken", lm, peft, items, CONFIG, 0, 0)
    assert torch.load(kept / fit.replay.BATCH, weights_only=True)["dtype"] == "mixed"
    unload(peft)
    (exact, grads), *others = found
    for loss, near in others:
        assert loss == pytest.approx(exact, rel=1e-2)
        assert loss != exact
        for name, grad in grads.items():
            assert float((near[name] - grad).norm()) < 0.1 * float(grad.norm()) + 1e-4, name


@pytest.mark.usefixtures("bf16")
def test_what_is_compared_is_in_fp32(written):
    lm = models.load(written, dtype="mixed", device="cpu")
    with unmixed(lm):
        assert dtype_name(lm) == "float32"
    assert lm.mixed
    with pytest.raises(RuntimeError, match="inside"), unmixed(lm):
        raise RuntimeError("inside")
    assert lm.mixed
    assert Crew(lm).way.name == "packed"


def test_bf16_products_in_training_where_there_are_none_are_refused(written, tmp_path):
    lm = models.load(written, dtype="float32", device="cpu")
    config = dataclasses.replace(CONFIG, half=True)
    with pytest.raises(ModelError, match=r"half = true is for model.dtype = mixed, .* is in float32; set finetune"):
        fit_whole(lm, None, [], lambda part: ([], []), config, tmp_path / "a", seed=0)
