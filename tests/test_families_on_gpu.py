"""On a GPU every family's answers, label scores and gradients are those of a CPU."""

import pytest
import torch

import families
from test_engine_families import asked
from test_families import batch_of
from vstar_fast import models
from vstar_fast.config import FinetuneConfig
from vstar_fast.engine import Crew, Scorer
from vstar_fast.finetune import finetune, lora_settings
from vstar_fast.records import Example

pytestmark = pytest.mark.gpu
GPU = "cuda"
TEXTS = ["which colour", "is it red?", "see a ball"]


@pytest.fixture(autouse=True)
def whole_fp32(monkeypatch):
    """cuDNN cuts convolutions, a tower's first layer, to 10 bits by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module", params=sorted({*families.FAMILIES, *families.MORE}))
def both(request, tmp_path_factory):
    folder = str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model"))
    return [models.load(folder, device=device, dtype="float32") for device in ("cpu", GPU)]


def requests(lm):
    first, second = lm.encode(batch_of((56, 84), (70, 56)))
    return asked(lm, [first, second, first], TEXTS)


def examples(lm):
    """Two videos with two answers each, and what makes rows of them."""
    clips = dict(zip("ab", lm.encode(batch_of((56, 84), (70, 56))), strict=True))
    said = ["I see red.", "Answer: blue", "It is green. Answer: green", "red"]
    found = [Example("ab"[i % 2], f"q{i}", "which colour", text, "direct") for i, text in enumerate(said)]
    return found, lambda part: (["which colour"] * len(part), [clips[e.video_id] for e in part])


def test_answers(both):
    drawn = []
    for lm in both:
        listed = requests(lm)
        found = {id(r): [a.token_ids for a in answers] for r, answers in Crew(lm, max_rows=6).run(listed)}
        drawn.append([ids for r in listed for ids in found[id(r)]])
    same = [a == b for a, b in zip(*drawn, strict=True)]
    assert sum(same) >= 0.8 * len(same), drawn  # sums in another order may turn a choice


def test_label_scores(both):
    labels = [[[5, 6]], [[5, 7, 8], [9]], [[10]]]
    own, there = (Scorer(lm).score(requests(lm), labels) for lm in both)
    torch.testing.assert_close(there.cpu(), own, atol=2e-3, rtol=2e-3)


def test_first_steps_of_training(both, tmp_path):
    from peft import get_peft_model

    config = FinetuneConfig(batch_size=4, micro_batch_size=4, steps=2, lora_r=2, lr=1e-3, track="none")
    losses = []
    for lm in both:
        torch.manual_seed(0)
        peft = get_peft_model(lm.model, lora_settings(lm, config))
        log = finetune(lm, peft, *examples(lm), config, tmp_path / lm.device.type, seed=0)
        losses.append([log["loss"], log["grad_norm"]])
        peft.unload()
    torch.testing.assert_close(torch.tensor(losses[1]), torch.tensor(losses[0]), atol=1e-2, rtol=1e-2)
