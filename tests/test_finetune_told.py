"""What a training tells: trackers, and the batch that broke it, which can be replayed."""

import dataclasses
import json
import math
import shutil
import sys

import pytest
import torch
from click.testing import CliRunner

import killed_fit
import tiny
from vstar_fast import models
from vstar_fast.cli import main
from vstar_fast.config import FinetuneConfig
from vstar_fast.errors import BackendError, ConfigError, RunError
from vstar_fast.finetune import finetune, lora_settings, replay, tracking
from vstar_fast.finetune.fit import Places
from vstar_fast.finetune.items import Reader

CONFIG = FinetuneConfig(batch_size=4, micro_batch_size=4, steps=3, lora_r=2, track="none")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write_model(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def setup(model):
    from peft import get_peft_model

    lm = models.load(model, device="cpu")
    torch.manual_seed(0)
    return lm, get_peft_model(lm.model, lora_settings(lm, CONFIG)), *killed_fit.examples(lm)


def test_tensorboard_holds_every_step(setup, tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = finetune(*setup, dataclasses.replace(CONFIG, track="auto"), tmp_path / "a", seed=0)
    found = reading.EventAccumulator(str(Places.beside(tmp_path / "a").tracking))
    found.Reload()
    names = ["loss", "grad_norm", "lr", "prefix_saved", "tokens_per_s", "memory_mib"]
    values = {n: [e.value for e in found.Scalars(f"train/{n}")] for n in names}
    assert values["loss"] == pytest.approx(log["loss"], rel=1e-6)
    assert values["grad_norm"] == pytest.approx(log["grad_norm"], rel=1e-6)
    assert all(0 < x < 1 for x in values["prefix_saved"]) and min(values["tokens_per_s"]) > 0
    assert values["memory_mib"][0] > 50 and values["lr"][0] == pytest.approx(CONFIG.lr)


def test_trackers_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
    told = []
    assert tracking.chosen("auto", told.append) == [] and "pip install 'vstar-fast[track]'" in told[0]
    with pytest.raises(BackendError, match="asks for wandb, which is not installed; pip install wandb"):
        tracking.chosen("wandb, tensorboard", told.append)
    with pytest.raises(ConfigError, match="'wandbb' is not one of auto, none, tensorboard"):
        FinetuneConfig(track="wandbb")


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_other_trackers_are_started_as_accelerate_wants_them(monkeypatch, tmp_path, name):
    import inspect

    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    given = []

    class Fake:
        def __init__(self, *args, **kwargs):
            inspect.signature(LOGGER_TYPE_TO_CLASS["real"].__init__).bind(self, *args, **kwargs)
            given.append((args, kwargs))

        def start(self):
            given.append("started")

        def store_init_configuration(self, values):
            given.append(values)

        def log(self, values, step):
            given.append((step, values))

        def finish(self):
            given.append("finished")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "real", LOGGER_TYPE_TO_CLASS[name])
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, Fake)
    monkeypatch.setattr(tracking, "_installed", lambda _: True)
    made = tracking.Tracking(name, tmp_path / "demo" / "cycle-00" / "adapter.runs", {"lr": 1.0}, print)
    made.log(4, {"loss": 2.0}, 100)
    made.close()
    assert given[0][0][0] == "vstar-fast" and "demo/cycle-00" in given[0][1].values()
    assert given[1:3] == ["started", {"lr": 1.0}] and given[3][0] == 4 and given[3][1]["train/loss"] == 2.0
    assert given[-1] == "finished"


@pytest.mark.parametrize("where", ["weights", "gradient"])
def test_a_batch_that_breaks_is_kept_and_can_be_replayed(setup, tmp_path, where):
    lm, peft, examples, rows = setup
    name, weight = next((n, p) for n, p in peft.named_parameters() if "lora_B" in n)
    if where == "weights":
        with torch.no_grad():
            weight.fill_(math.nan)
    else:
        weight.register_hook(lambda grad: grad * math.inf)
    what = "loss is nan" if where == "weights" else "gradient norm is (nan|inf)"
    with pytest.raises(RunError, match=rf"{what} at step 0; lower finetune.lr .*vstar-fast replay .*a.broken"):
        finetune(lm, peft, examples, rows, CONFIG, tmp_path / "a", seed=0)
    kept = Places.beside(tmp_path / "a").broken
    found = replay(kept, "cpu")
    assert found["step"] == 0 and len(found["examples"]) == 4
    assert {e["question_id"] for e in found["examples"]} <= {e.question_id for e in examples}
    done = CliRunner().invoke(main, ["replay", str(kept), "--device", "cpu"])
    assert done.exit_code == 0 and "all of step 0: loss" in done.output
    if where == "weights":
        assert math.isnan(found["loss"]) and name in found["broken"] and "not finite" in done.output
    else:  # the hook, which stands for an overflow in the kernel, is not there any more
        assert math.isfinite(found["loss"]) and found["broken"] == [] and "every weight" in done.output
    assert not (tmp_path / "a").exists()


def failed_too(example):
    return dataclasses.replace(example, rejected="I see blue .")


def in_a_talk(example):
    return dataclasses.replace(example, history=(("which", "red"),))


def long(example):
    return dataclasses.replace(example, answer="I see a red . Answer: green . I see a red .")


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, dataclasses.replace),
        ({}, in_a_talk),
        ({"objective": "dpo"}, failed_too),
        ({"objective": "kto"}, failed_too),
        ({"cut_long": True, "micro_batch_tokens": 18}, long),
        ({"lora_dropout": 0.3, "micro_batch_size": 2}, dataclasses.replace),
    ],
    ids=["plain", "talk", "dpo", "kto", "cut", "dropout"],
)
def test_the_replayed_loss_is_that_of_the_training(model, tmp_path, changes, changed):
    from peft import get_peft_model

    config = dataclasses.replace(CONFIG, **changes)
    lm = models.load(model, device="cpu")
    torch.manual_seed(0)
    peft = get_peft_model(lm.model, lora_settings(lm, config))
    examples, rows = killed_fit.examples(lm)
    examples = [changed(e) for e in examples]
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    weight = next(p for n, p in peft.named_parameters() if "lora_B" in n)
    hook = weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(RunError):
        finetune(lm, peft, examples, rows, config, tmp_path / "broken", seed=0)
    told = CliRunner().invoke(main, ["replay", str(tmp_path / "broken.broken"), "--json"]).stdout
    found = json.loads(told.splitlines()[-1])
    hook.remove()  # the gradients of the broken step are still there
    log = finetune(lm, peft, examples, rows, config, tmp_path / "fine", seed=0)
    assert found["loss"] == pytest.approx(log["loss"][0], abs=1e-6)
    assert found["grad_norm"] == pytest.approx(log["grad_norm"][0], rel=1e-5)


def test_a_folder_without_a_batch_is_told(tmp_path):
    with pytest.raises(RunError, match=r"has no batch.pt; give the folder"):
        replay(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_a_batch_that_is_damaged_is_told(tmp_path, content):
    (tmp_path / "batch.pt").write_bytes(content)
    with pytest.raises(RunError, match=r"batch.pt is damaged \(.*\); run the training again"):
        replay(tmp_path)


def test_a_batch_of_another_base_model_or_without_weights_is_told(model, tmp_path):
    from peft import get_peft_model

    base = shutil.copytree(model, tmp_path / "base")
    lm = models.load(str(base), device="cpu")
    peft = get_peft_model(lm.model, lora_settings(lm, CONFIG))
    examples, rows = killed_fit.examples(lm)
    save = sys.modules[replay.__module__].save  # the package has a function of the name
    folder = save(tmp_path / "broken", lm, peft, Reader(lm, rows)(examples[:1]), CONFIG, 0, 0)
    assert replay(folder)["broken"] == []
    shutil.copy(tiny.write_model(tmp_path / "other", seed=1) / "model.safetensors", base)
    with pytest.raises(RunError, match="are not those that .* was trained on"):
        replay(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(RunError, match="has lost its weights"):
        replay(folder)
