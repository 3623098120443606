"""DPO and KTO: equal to TRL's on text alone, and to their formulas behind a packed prefix."""

import dataclasses
import json
import math

import pytest
import torch

import killed_fit
import tiny
import trl_numbers
from vstar_fast import models
from vstar_fast.config import FinetuneConfig
from vstar_fast.errors import ConfigError
from vstar_fast.finetune import accumulate, finetune, lora_settings
from vstar_fast.finetune.items import Reader
from vstar_fast.finetune.preferences import mismatched
from vstar_fast.records import FAILED, Example

CONFIG = FinetuneConfig(batch_size=8, micro_batch_size=8, lora_r=2, lora_alpha=4, projector=False, track="none")


def of_ours(kind, lm):
    """(loss, gradient norm) of the batch that `trl_numbers` gives to TRL."""
    from peft import get_peft_model

    config = dataclasses.replace(
        CONFIG, objective=kind, dpo_beta=trl_numbers.BETA, kto_beta=trl_numbers.BETA, micro_batch_size=2
    )
    peft = get_peft_model(lm.model, lora_settings(lm, config))
    trl_numbers.set_adapter(peft)
    if kind == "dpo":
        rows = [Example("", f"q{n}", q, a, "direct", rejected=b) for n, (q, a, b) in enumerate(trl_numbers.PAIRS)]
    else:
        named = enumerate(trl_numbers.SINGLE)
        rows = [Example("", f"q{n}", q, a, "direct" if x else FAILED) for n, (q, a, x) in named]
    items = Reader(lm, lambda part: ([e.question for e in part], [None] * len(part)))(rows)
    loss, _ = accumulate(lm, peft, items, config)
    return {"loss": loss, "grad_norm": trl_numbers.grad_norm(peft)}


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_loss_and_gradient_are_those_that_trl_gave(kind, tmp_path):
    wanted = json.loads(trl_numbers.NUMBERS.read_text())[kind]
    assert of_ours(kind, trl_numbers.load(tmp_path / "model")) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_loss_and_gradient_are_those_that_trl_gives(kind, tmp_path):
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    lm = trl_numbers.load(tmp_path / "model")
    wanted = trl_numbers.of_trl(kind, lm, tmp_path)
    assert of_ours(kind, lm) == pytest.approx(wanted, rel=1e-5)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return models.load(str(tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")), device="cpu")


def adapted(lm, config):
    from peft import get_peft_model

    torch.manual_seed(0)
    peft = get_peft_model(lm.model, lora_settings(lm, config))
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=made))
    return peft


def gradients(peft):
    return {n: p.grad.clone() for n, p in peft.named_parameters() if p.grad is not None}


def mixed(lm):
    rows, features = killed_fit.examples(lm)
    return [dataclasses.replace(e, source=FAILED) if n % 2 else e for n, e in enumerate(rows)], features


@pytest.mark.parametrize("changes", [{"pack": False}, {"micro_batch_size": 1}, {"micro_batch_tokens": 30}], ids=str)
def test_kto_does_not_depend_on_how_a_batch_is_cut(loaded, changes):
    from vstar_fast.run.runtime import unload

    rows, features = mixed(loaded)
    config = dataclasses.replace(CONFIG, objective="kto", kto_beta=0.5, projector=True)
    peft = adapted(loaded, config)
    items = Reader(loaded, features)(rows)
    whole, _ = accumulate(loaded, peft, items, config)
    expected = gradients(peft)
    peft.zero_grad()
    loss, _ = accumulate(loaded, peft, items, dataclasses.replace(config, **changes))
    assert loss == pytest.approx(whole, abs=1e-6) and abs(whole - 0.5) > 1e-4
    found = gradients(peft)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)
    unload(peft)


def test_mismatched_answers_are_about_another_question(loaded):
    rows, features = killed_fit.examples(loaded)  # v0 v1 v2 v0 v1, all asked the same
    rows = [rows[i] for i in (0, 3, 1, 4, 2)]  # those of one video together
    items = Reader(loaded, features)(rows)
    assert [i.said for i in mismatched(items)] == [rows[n].answer for n in (4, 4, 1, 1, 3)]
    assert [i.said for i in mismatched(items[:2])] == [rows[1].answer, rows[0].answer]


def test_kto_moves_wanted_answers_up_and_the_others_down(loaded, tmp_path):
    from vstar_fast.run.runtime import unload

    rows, features = mixed(loaded)
    config = dataclasses.replace(CONFIG, objective="kto", batch_size=4, micro_batch_size=4, steps=25, lr=2e-2)
    peft = adapted(loaded, config)
    log = finetune(loaded, peft, rows, features, config, tmp_path / "a", seed=0)
    assert log["loss"][-1] < log["loss"][0] - 0.05 and log["left_out"] == []
    pairs = [dataclasses.replace(e, rejected="which colour .") for e in rows[::2]]
    both = finetune(loaded, peft, pairs, features, dataclasses.replace(config, steps=2), tmp_path / "b", seed=0)
    assert both["examples"] == 2 * len(pairs)
    unload(peft)


def test_failed_answers_are_of_no_use_to_sft(loaded, tmp_path):
    from vstar_fast.run.runtime import unload

    rows, features = mixed(loaded)
    peft = adapted(loaded, CONFIG)
    log = finetune(loaded, peft, rows, features, dataclasses.replace(CONFIG, steps=1), tmp_path / "a", seed=0)
    assert [r["reason"] for r in log["left_out"]] == ["failed_answer"] * 2 and log["examples"] == 3
    with pytest.raises(ConfigError, match="'kto' compares the answers of a batch; set batch_size above 1"):
        FinetuneConfig(objective="kto", batch_size=1, micro_batch_size=1)
    assert math.isfinite(log["loss"][0])
    unload(peft)
