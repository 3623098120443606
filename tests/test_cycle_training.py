"""Training inside a cycle: going on after a stop, preferences, data that cannot be used, nothing kept."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny
from vstar_fast import config as settings
from vstar_fast import cycle, export
from vstar_fast.config import from_dict
from vstar_fast.errors import DataError, NothingKept
from vstar_fast.finetune import fit
from vstar_fast.match import verify
from vstar_fast.profiling import Profiler
from vstar_fast.progress import Progress
from vstar_fast.records import FAILED
from vstar_fast.run import advice, features
from vstar_fast.run.session import Session


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return tiny.settings(tiny.write_data(root / "data"), tiny.write_model(root / "model"))


def one_cycle(project, folder, **sections):
    given = settings.merge({"loop": {"max_cycles": 1}, "finetune": {"track": "none"}}, sections)
    config = settings.from_dict(settings.merge(project, given))
    return cycle.run(config, folder, profiler=Profiler("off"), progress=Progress(quiet=True))


def lines(path):
    return [json.loads(x) for x in Path(path).read_text().splitlines()]


def test_a_run_that_is_stopped_in_training_goes_on_from_its_checkpoint(project, tmp_path, monkeypatch):
    tuning = {"finetune": {"steps": 6, "checkpoint_steps": 2}}
    one_cycle(project, tmp_path / "calm", **tuning)
    taken = []
    step = fit.Fit._step

    def stop_at_5(self, number):
        taken.append(number)
        if len(taken) == 5:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(fit.Fit, "_step", stop_at_5)
    with pytest.raises(KeyboardInterrupt):
        one_cycle(project, tmp_path / "run", **tuning)
    assert (tmp_path / "run/cycle-00/adapter.checkpoints/step-000004").is_dir()
    one_cycle(project, tmp_path / "run", **tuning)
    assert taken == [0, 1, 2, 3, 4, 4, 5]
    mine, other = (tmp_path / name / "cycle-00/adapter" for name in ("run", "calm"))
    assert (mine / "adapter_model.safetensors").read_bytes() == (other / "adapter_model.safetensors").read_bytes()
    assert not (tmp_path / "run/cycle-00/adapter.checkpoints").exists()


def test_failed_answers_are_trained_against_where_the_objective_is_kto(project, tmp_path):
    summary = one_cycle(project, tmp_path, finetune={"objective": "kto"})
    rows = lines(tmp_path / "cycle-00/examples.jsonl")
    failed = [r for r in rows if r["source"] == FAILED]
    kept = sum(summary["cycles"][0]["kept"].values())
    assert failed and kept == len(rows) - len(failed)
    judged = lines(tmp_path / "cycle-00/generate/judged.jsonl")
    passed = {(r["candidate"]["question_id"], r["candidate"]["text"].strip()) for r in judged if r["verdict"]["passed"]}
    assert not passed & {(r["question_id"], r["answer"]) for r in failed}
    assert sum(r["weight"] for r in failed) == pytest.approx(sum(r["weight"] for r in rows) / 2)
    assert export.write_examples(tmp_path, "hf").examples == kept


def test_a_bad_row_of_instruction_data_is_counted_and_fatal_under_strict(project, tmp_path):
    said = [{"from": "human", "value": "which colour"}, {"from": "gpt", "value": "red"}]
    talk = [*said, {"from": "human", "value": "a colour"}, {"from": "gpt", "value": "I see blue ."}]
    rows = [{"conversations": talk}] * 20 + [{"conversations": said[:1]}]
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    sections = {"data": {"instructions": str(tmp_path / "mix.json")}, "finetune": {"mix_ratio": 1.0}}
    summary = one_cycle(project, tmp_path / "run", **sections)
    assert summary["input_rejected"] == {"instructions:bad_instruction": 1}
    log = json.loads((tmp_path / "run/cycle-00/adapter/training.json").read_text())
    assert log["examples"] == sum(summary["cycles"][0]["kept"].values()) + 2  # copies of one conversation stay once
    with pytest.raises(DataError, match=r"mix.json, row 20: needs .*data.strict"):
        one_cycle(project, tmp_path / "strict", **settings.merge(sections, {"data": {"strict": True}}))


def test_a_cycle_that_keeps_nothing_says_what_to_change(project, tmp_path, monkeypatch):
    def none_passes(*args, **kwargs):
        from dataclasses import replace

        return [replace(v, passed=False, reason="wrong_value") for v in verify(*args, **kwargs)]

    monkeypatch.setattr("vstar_fast.match.verify", none_passes)
    with pytest.raises(NothingKept) as error:
        one_cycle(project, tmp_path, rationalize={"enabled": False}, generate={"temperature": 0.3})
    text = str(error.value)
    assert "cycle 0: 0 of 48 answers passed (failed: wrong_value 48), and none was kept. To change: " in text
    for words in (
        "rationalize.enabled = true",
        "generate.samples (now 8)",
        "generate.temperature (now 0.3)",
        "aliases",
    ):
        assert words in text
    assert "no question was answered" in advice.nothing_kept("cycle 0", [], [], from_dict(project))


def all_pass(*args, **kwargs):
    from dataclasses import replace

    return [replace(v, passed=True, reason="ok") for v in verify(*args, **kwargs)]


def test_preferences_without_a_failed_answer_say_what_to_change(project, tmp_path, monkeypatch):
    monkeypatch.setattr("vstar_fast.match.verify", all_pass)
    with pytest.raises(
        NothingKept, match=r"did not pass; raise generate.samples or .*, or set finetune.objective = sft or kto"
    ):
        one_cycle(project, tmp_path, finetune={"objective": "dpo"})


def test_a_later_cycle_without_a_failed_answer_ends_the_run(project, tmp_path, monkeypatch):
    answer = cycle.answer

    def better(session, r):
        judged = answer(session, r)
        if r.number == 0:
            return judged
        return [(c, all_pass([c], r.asked, session.config.match)[0]) for c, _ in judged]

    monkeypatch.setattr(cycle, "answer", better)
    summary = one_cycle(project, tmp_path, finetune={"objective": "dpo"}, loop={"max_cycles": 2, "patience": 2})
    assert summary["state"] == "done" and len(summary["cycles"]) == 1
    assert summary["stopped"].startswith("nothing to train on in cycle 1 (none of 6 examples can be trained on;")


def test_what_a_killed_process_did_is_told_of(project, tmp_path, monkeypatch):
    calm = one_cycle(project, tmp_path / "calm")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        train = cycle.train

        def killed(*args, **kwargs):
            train(*args, **kwargs)
            raise KeyboardInterrupt

        patched.setattr(cycle, "train", killed)
        one_cycle(project, tmp_path / "run")
    found = one_cycle(project, tmp_path / "run")
    assert found["reasons"] == calm["reasons"] and found["reasons"]["training"].startswith("packed")
    assert found["backends"].keys() == calm["backends"].keys() and "None" not in found["backends"]["attention"]
    for name, stage in calm["stages"].items():
        assert found["stages"][name]["items"].get("answers") == stage["items"].get("answers") or name == "match"


def test_features_that_were_kept_under_another_transformers_are_made_again(project, tmp_path, monkeypatch):
    quick = {"finetune": {"steps": 1}, "cache": {"folder": str(tmp_path / "cache")}}
    encoded = [one_cycle(project, tmp_path / name, **quick)["frames"].get("encoded", 0) for name in "ab"]
    monkeypatch.setattr(features, "version", lambda _: "5.0.0")
    encoded.append(one_cycle(project, tmp_path / "c", **quick)["frames"].get("encoded", 0))
    assert encoded[0] == encoded[2] > encoded[1] == 0


def test_a_run_that_moves_to_a_processor_with_bf16_is_another_one(project, monkeypatch):
    def seen(mixed, **model):
        monkeypatch.setattr("vstar_fast.models.loading.pick_dtype", lambda *_: (torch.float32, mixed))
        session = object.__new__(Session)
        session.config = from_dict(settings.merge(project, {"model": model}))
        return session.seen_through

    assert seen(True) != seen(False) and seen(True, dtype="mixed") == seen(True)
    assert seen(True, dtype="float32") == seen(False, dtype="float32")


def stopped(*_args):
    raise KeyboardInterrupt


def test_what_is_done_anew_is_told_of(project, tmp_path, monkeypatch):
    told = []
    wanted = ("anew", "changed since")
    monkeypatch.setattr(Progress, "note", lambda _, x: told.append(x) if any(w in x for w in wanted) else None)
    quick = {"finetune": {"steps": 1}, "cache": {"folder": str(tmp_path / "cache")}}
    one_cycle(project, tmp_path / "run", **quick)
    one_cycle(project, tmp_path / "run", **quick)
    assert told == []
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cycle, "one_cycle", stopped)
        one_cycle(project, tmp_path / "run", **quick)
    assert json.loads((tmp_path / "run/summary.json").read_text())["state"] == "done"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cycle, "one_cycle", stopped)
        one_cycle(project, tmp_path / "run", **quick, generate={"temperature": 0.9})
    assert not (tmp_path / "run/summary.json").exists()  # the old one is not of these settings
    one_cycle(project, tmp_path / "run", **quick, generate={"temperature": 0.9})
    anew = "what stands there is of other settings, data, weights or arithmetic; drawn anew"
    assert told == [
        "changed since the last start, generate.temperature: 1.0 -> 0.9",
        f"cycle-00 generate: {anew}",
        "cycle-00/adapter: what stands there was trained on other examples or settings; trained anew",
        *(f"cycle-00 metrics {split}: {anew}" for split in ("dev", "test")),
    ]


def test_weights_do_not_depend_on_what_a_cache_held(project, tmp_path):
    """Clips of one content (the first colour comes twice) are one object where they were encoded just now."""
    quick = {"finetune": {"steps": 6}, "cache": {"folder": str(tmp_path / "cache")}}
    one_cycle(project, tmp_path / "kept", **quick)
    shutil.copytree(tmp_path / "kept", tmp_path / "made")
    shutil.rmtree(tmp_path / "made/cycle-00/adapter")
    one_cycle(project, tmp_path / "made", finetune={"steps": 6}, cache={"folder": str(tmp_path / "empty")})
    adapters = [tmp_path / name / "cycle-00/adapter/adapter_model.safetensors" for name in ("kept", "made")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
