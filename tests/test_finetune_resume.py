"""A training that is killed goes on to the same weights; damaged checkpoints are passed over and told of."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import killed_fit
import tiny
from vstar_fast import models
from vstar_fast.config import FinetuneConfig
from vstar_fast.distributed import Ranks
from vstar_fast.errors import RunError
from vstar_fast.finetune import finetune, lora_settings
from vstar_fast.finetune.checkpoints import Checkpoints
from vstar_fast.finetune.fit import Places
from vstar_fast.models import base_model

CONFIG = FinetuneConfig(
    batch_size=4, micro_batch_size=2, steps=8, lora_r=2, lr=1e-2, checkpoint_steps=2, checkpoints_kept=2, track="none"
)
HERE = Path(__file__).parent


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.write_model(tmp_path_factory.mktemp("tiny") / "model"))


def fit(model, out, config=CONFIG, stop_at=0, **more):
    from peft import get_peft_model

    lm = models.load(str(model), device="cpu")
    torch.manual_seed(0)
    peft = get_peft_model(lm.model, lora_settings(lm, config))
    rows, features = killed_fit.examples(lm)

    def told(step, *_):
        if step == stop_at:
            raise Stopped

    return finetune(lm, peft, rows, features, config, out, seed=0, on_step=told, **more)


def stopped(model, out, at, config=CONFIG, **more):
    with pytest.raises(Stopped):
        fit(model, out, config, at, **more)


def content(out):
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.suffix in (".safetensors", ".json")}


KILLED = {"lora": {}, "full": {"tune": "full", "checkpoint_steps": 1}, "dora": {"lora": "dora"}}


@pytest.fixture(scope="module")
def killed(model, tmp_path_factory):
    """(folder of trainings that were left alone and that were killed, what they said)."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    command = [sys.executable, str(HERE / "killed_fit.py"), model, str(folder), "4", str(os.getpid())]
    done = subprocess.run([*command, json.dumps(KILLED)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return folder, done.stdout


@pytest.mark.parametrize("name", KILLED)
def test_killed_at_random_moments_it_ends_with_the_weights_of_an_undisturbed_run(killed, name):
    folder, said = killed
    assert int(re.search(rf"{name}: killed (\d) times", said)[1]) >= 2
    assert f"{name}: training goes on behind step" in said
    assert content(folder / name / "killed") == content(folder / name / "calm") != {}
    assert sorted(p.name for p in (folder / name).iterdir()) == ["calm", "killed"]


def test_the_last_checkpoints_stay_and_a_damaged_one_is_passed_over(model, tmp_path):
    undisturbed = fit(model, tmp_path / "calm")
    stopped(model, tmp_path / "a", 7)
    where = Places.beside(tmp_path / "a").checkpoints
    assert sorted(p.name for p in where.iterdir()) == ["step-000004", "step-000006"]
    newest = where / "step-000006" / "adapter" / "adapter_model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"x")
    told = []
    log = fit(model, tmp_path / "a", note=told.append)
    assert "step-000006 cannot be used (its files are not those that were written)" in told[0]
    assert told[1] == "training goes on behind step 4 of 8" and len(told) == 2
    assert log == undisturbed and content(tmp_path / "a") == content(tmp_path / "calm")
    assert not where.exists()


def test_what_ktos_reference_point_drops_out_does_not_depend_on_a_restart(model, tmp_path):
    config = dataclasses.replace(CONFIG, objective="kto", lora_dropout=0.3, steps=5)
    undisturbed = fit(model, tmp_path / "calm", config)
    stopped(model, tmp_path / "a", 3, config)
    assert fit(model, tmp_path / "a", config) == undisturbed
    assert content(tmp_path / "a") == content(tmp_path / "calm")


@pytest.mark.parametrize(("damage", "content"), [("seal.json", b""), ("seal.json", b"null"), ("state.pt", b"")])
def test_with_no_checkpoint_that_is_whole_it_starts_anew(model, tmp_path, damage, content):
    undisturbed = fit(model, tmp_path / "calm")
    stopped(model, tmp_path / "a", 3)
    (Places.beside(tmp_path / "a").checkpoints / "step-000002" / damage).write_bytes(content)
    told = []
    assert fit(model, tmp_path / "a", note=told.append) == undisturbed
    assert len(told) == 1 and "step-000002 cannot be used" in told[0]


def test_checkpoints_of_other_settings_are_not_gone_on_from(model, tmp_path):
    stopped(model, tmp_path / "a", 5)
    other = dataclasses.replace(CONFIG, lr=2e-2)
    told = []
    log = fit(model, tmp_path / "a", other, note=told.append)
    assert all("it belongs to other examples, settings or weights" in t for t in told) and len(told) == 2
    assert log == fit(model, tmp_path / "calm", other)
    stopped(model, tmp_path / "b", 5)
    often = dataclasses.replace(CONFIG, checkpoint_steps=3, checkpoints_kept=1)
    assert fit(model, tmp_path / "b", often, note=told.append)["steps"] == 8 and "behind step 4" in told[-1]


def change(folder, name, place):
    """Another base model at the same path: one number of one frozen weight is another one."""
    path = Path(folder) / "model.safetensors"
    held = load_file(path)
    held[name].view(-1)[place] += 1
    save_file(held, path, metadata={"format": "pt"})


def test_checkpoints_of_other_layers_are_not_gone_on_from(model, tmp_path):
    """As those of another version may be, which took other layers for those to train."""
    stopped(model, tmp_path / "a", 3, key="k")
    other = dataclasses.replace(CONFIG, target_modules="q_proj")
    told = []
    log = fit(model, tmp_path / "a", other, key="k", note=told.append)
    assert len(told) == 1 and "written by another version, which trained other layers" in told[0]
    assert log == fit(model, tmp_path / "calm", other, key="k")


@pytest.mark.parametrize(("name", "place"), [("lm_head.weight", 0), ("model.language_model.norm.weight", 17)])
def test_checkpoints_of_another_base_model_at_the_same_path_are_not_gone_on_from(model, tmp_path, name, place):
    base = shutil.copytree(model, tmp_path / "base")
    stopped(base, tmp_path / "a", 5)
    change(base, name, place)
    told = []
    log = fit(base, tmp_path / "a", note=told.append)
    assert all("it belongs to other examples, settings or weights" in t for t in told) and len(told) == 2
    assert log["loss"] == fit(base, tmp_path / "calm")["loss"]


def test_a_base_model_that_was_moved_is_the_same_one(model, tmp_path):
    base = shutil.copytree(model, tmp_path / "base")
    stopped(base, tmp_path / "a", 5)
    told = []
    fit(base.rename(tmp_path / "moved"), tmp_path / "a", note=told.append)
    assert told == ["training goes on behind step 4 of 8"]


def test_the_key_of_a_model_is_of_its_weights_in_memory(model):
    one, same = models.load(model), models.load(model)
    assert base_model.key_of(one) == base_model.key_of(same)
    weight = same.model.get_output_embeddings().weight
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    assert base_model.key_of(one) != base_model.key_of(same)
    with torch.no_grad():
        weight.copy_(one.model.get_output_embeddings().weight)
    assert base_model.key_of(one) == base_model.key_of(same)
    assert base_model.key_of(one) != base_model.key_of(models.load(model, dtype="bfloat16"))


def test_checkpoints_of_a_training_that_was_changed_do_not_push_out_the_new_ones(model, tmp_path):
    stopped(model, tmp_path / "a", 7)
    where = Places.beside(tmp_path / "a").checkpoints
    (where / "step-000099.mine").mkdir()  # nothing of ours
    other = dataclasses.replace(CONFIG, lr=2e-2)
    stopped(model, tmp_path / "a", 3, other)
    assert sorted(p.name for p in where.iterdir()) == ["step-000002", "step-000099.mine"]
    told = []
    fit(model, tmp_path / "a", other, note=told.append)
    assert told == ["training goes on behind step 2 of 8"]


def test_processes_that_see_different_checkpoints_do_not_train_past_each_other(model, tmp_path, monkeypatch):
    """Run folders that are not the same one, or a network file system that shows an old state."""
    stopped(model, tmp_path / "out", 5)
    monkeypatch.setattr(Ranks, "merged", lambda self, found: {**found, **({"1": 2} if "0" in found else {})})
    with pytest.raises(RunError, match=r"not the same for all \(process 0 step 4, process 1 step 2\)"):
        fit(model, tmp_path / "out")


def test_a_checkpoint_loads_with_plain_peft_and_without_any_none_is_written(model, tmp_path):
    from peft import PeftModel

    stopped(model, tmp_path / "a", 3)
    where = Places.beside(tmp_path / "a").checkpoints / "step-000002" / "adapter"
    PeftModel.from_pretrained(models.load(model).model, str(where))
    stopped(model, tmp_path / "b", 3, dataclasses.replace(CONFIG, checkpoint_steps=0))
    assert not Places.beside(tmp_path / "b").checkpoints.exists()


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path):
    made = Checkpoints(tmp_path, "k", 1, 2, print)
    made.save(1, lambda folder: folder.mkdir(), {"x": 1})

    def full(folder):
        folder.mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="step-000002: the disk is full"):
        made.save(2, full, {"x": 2})
    assert made.load().step == 1 and made.load().state == {"x": 1} and made.damaged == []
