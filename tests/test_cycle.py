"""The whole cycle on a tiny model: what it keeps, that it resumes, that a switch does what it says."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from vstar_fast.kernels.label_match import TokenBytes

import tiny
from vstar_fast import config as settings
from vstar_fast import cycle, report
from vstar_fast.engine import crew
from vstar_fast.engine.lanes import Lane
from vstar_fast.errors import DataError, ModelError, RunError
from vstar_fast.frames import FrameSource
from vstar_fast.models.video_lm import VideoLM
from vstar_fast.profiling import Profiler
from vstar_fast.progress import Progress


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return tiny.settings(tiny.write_data(root / "data"), tiny.write_model(root / "model"))


def make(project, **sections):
    return settings.from_dict(settings.merge(project, sections))


def go(config, folder, **kwargs):
    return cycle.run(config, folder, profiler=Profiler("off"), progress=Progress(quiet=True), **kwargs)


def lines(path):
    return [json.loads(x) for x in Path(path).read_text().splitlines()]


def steady(summary):
    """What must not depend on time or interruptions."""
    drop = ("stages", "backends", "reasons", "frames", "state")
    return {k: v for k, v in summary.items() if k not in drop}


@pytest.fixture(scope="module")
def done(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, go(make(project), folder, controls=True)


def test_summary_has_the_documented_fields(done):
    folder, summary = done
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert set(summary["base"]["accuracy"]) == {"value", "low", "high", "n"}
    assert len(summary["cycles"]) == 2 and summary["state"] == "done"
    for c in summary["cycles"]:
        assert (
            c["accuracy"]["n"] == 3
            and 0 <= c["accuracy"]["low"] <= c["accuracy"]["value"] <= c["accuracy"]["high"] <= 1
        )
        assert set(c["kept"]) == {"direct", "rationalized"} and c["asked"]["direct"] == 6
        assert c["dev"]["accuracy"]["n"] == 3 and "class" in c["metrics"]
    assert summary["cycles"][0]["chance_acceptance"] == pytest.approx(1 - (2 / 3) ** 8)
    assert {"labels_only", "shuffled"} <= set(summary["controls"])
    assert {"generate", "finetune", "evaluate", "encode"} <= set(summary["stages"])
    assert all(summary["backends"][op] for op in ("frames", "label_match", "constrain"))


def test_no_video_is_decoded_or_encoded_twice(project, done, tmp_path):
    """Read once for two cycles, training and evaluation; not at all by a run that shares the caches."""
    folder, summary = done
    paths = [row["path"] for row in lines(folder / "videos.jsonl")]
    contents = len({Path(p).read_bytes() for p in paths})
    assert len(paths) == 12
    assert summary["frames"]["decoded"] == summary["frames"]["encoded"] == contents < 12
    assert summary["frames"]["embeddings_hit"] > 12
    shared = make(project, cache={"folder": str(folder / "cache")}, loop={"max_cycles": 1}, seed=5)
    again = go(shared, tmp_path / "shared")
    assert "decoded" not in again["frames"] and "encoded" not in again["frames"]
    only_frames = make(project, cache={"folder": str(folder / "cache"), "embeddings_gib": 0.0}, loop={"max_cycles": 1})
    third = go(only_frames, tmp_path / "frames")
    # A copy may be looked ahead at that is not encoded again.
    assert "decoded" not in third["frames"] and third["frames"]["cached"] >= third["frames"]["encoded"] >= contents


def test_training_evaluation_and_the_second_cycle_decode_and_encode_nothing(project, tmp_path, monkeypatch):
    work, at = [], ["base"]

    def spy(owner, name):
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (work.append((name, at[0])), call(*a, **k))[1])

    def enter(name):
        call = getattr(cycle, name)

        def wrapped(session, r, *a, **k):
            at[0] = f"{name} {r.number}"
            found = call(session, r, *a, **k)
            at[0] = f"evaluate {r.number}"
            return found

        monkeypatch.setattr(cycle, name, wrapped)

    spy(FrameSource, "_fresh")
    spy(VideoLM, "encode")
    for name in ("answer", "rationalize", "train"):
        enter(name)
    summary = go(make(project), tmp_path)
    assert len(summary["cycles"]) == 2 and {name for name, _ in work} == {"_fresh", "encode"}
    assert {stage for _, stage in work} <= {"base", "answer 0"}, work
    assert at == ["evaluate 1"] and summary["frames"]["decoded"] == sum(name == "_fresh" for name, _ in work)


def test_strict_stops_at_a_bad_file(project, tmp_path):
    data = tiny.write_data(tmp_path / "data")
    (tmp_path / "data" / "train" / "1.mp4").write_bytes(b"no video at all")
    lax = go(make(project, data={"path": str(data)}, loop={"max_cycles": 1}), tmp_path / "lax")
    assert lax["frames"]["error:not_a_video"] == 1 and lax["input_rejected"] == {"frames:not_a_video": 1}
    with pytest.raises(DataError, match=r"1.mp4.*take it out of the data.*data.strict"):
        go(make(project, data={"path": str(data), "strict": True}), tmp_path / "strict")


def test_every_example_is_a_candidate_that_passed(done):
    folder, summary = done
    for n, counted in enumerate(summary["cycles"]):
        where = folder / f"cycle-{n:02d}"
        judged = [x for m in ("generate", "rationalize") for p in (where / m).glob("*.jsonl") for x in lines(p)]
        passed = {
            (x["candidate"]["question_id"], x["candidate"]["mode"], x["candidate"]["text"].strip())
            for x in judged
            if x["verdict"]["passed"]
        }
        examples = lines(where / "examples.jsonl")
        assert examples and all((e["question_id"], e["source"], e["answer"]) in passed for e in examples)
        counts = {m: sum(e["source"] == m for e in examples) for m in ("direct", "rationalized")}
        assert counts == counted["kept"]
        failed = sum(not x["verdict"]["passed"] for x in judged)
        assert sum(counted["rejected"].values()) == failed


def test_the_hint_reaches_neither_examples_nor_evaluation(done):
    folder, _ = done
    for path in folder.rglob("examples.jsonl"):
        assert "right answer is" not in path.read_text()
    assert not [p for p in (folder / "cycle-00" / "metrics").rglob("judged.jsonl") if '"rationalized"' in p.read_text()]


def test_same_seed_same_result_and_another_seed_another(project, done, tmp_path):
    _, summary = done
    again = go(make(project), tmp_path / "again", controls=True)
    assert steady(again) == steady(summary)
    other = go(make(project, seed=1), tmp_path / "other")
    assert lines(tmp_path / "other/cycle-00/generate/judged.jsonl") != lines(
        tmp_path / "again/cycle-00/generate/judged.jsonl"
    )
    assert other["seed"] == 1


def test_a_second_call_only_reads(project, tmp_path):
    config = make(project, loop={"max_cycles": 1})
    first = go(config, tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("parts/*.jsonl")}
    stamps |= {p: p.stat().st_mtime_ns for p in tmp_path.rglob("adapter_model.safetensors")}
    second = go(config, tmp_path)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert steady(first) == steady(second)


def test_a_sample_does_not_depend_on_the_batch(project, tmp_path):
    rows = {}
    for size in (8, 48, 0):
        config = make(project, generate={"batch_size": size})
        cycle.run_stage(
            "generate", config, tmp_path / str(size), 0, profiler=Profiler("off"), progress=Progress(quiet=True)
        )
        judged = lines(tmp_path / str(size) / "cycle-00/generate/judged.jsonl")
        rows[size] = {
            (x["candidate"]["question_id"], x["candidate"]["sample"]): x["candidate"]["token_ids"] for x in judged
        }
    assert rows[8] == rows[48] == rows[0]


def test_parts_are_those_of_any_larger_batch(project, tmp_path):
    kept = []
    for size in (0, 200, 64):
        config = make(project, generate={"batch_size": size})
        cycle.run_stage("generate", config, tmp_path, 0, profiler=Profiler("off"), progress=Progress(quiet=True))
        parts = tmp_path.glob("cycle-00/generate/parts/*")
        kept.append({path.name: path.stat().st_mtime_ns for path in parts})
    assert kept[0] and kept[0] == kept[1] == kept[2]


def test_several_workers_at_once_draw_what_one_drew(project, done, tmp_path, monkeypatch):
    worked = []
    monkeypatch.setattr(crew, "workers_for", lambda _: 2)
    monkeypatch.setattr(crew, "WORTH", 1)
    monkeypatch.setattr(crew._Deal, "start", recorded(crew._Deal.start, worked))
    folder, summary = done
    assert steady(go(make(project), tmp_path / "run", controls=True)) == steady(summary)
    for part in sorted(folder.glob("**/parts/*.jsonl")):
        rows = [
            [without_rounding(row) for row in lines(root / part.relative_to(folder))]
            for root in (folder, tmp_path / "run")
        ]
        assert rows[0] == rows[1]
    assert worked


def recorded(call, calls):
    def seen(*args):
        calls.append(args)
        return call(*args)

    return seen


def without_rounding(row):
    return {name: value for name, value in row.items() if name != "logprob"}


def test_parts_hold_ids_and_people_read_text(done):
    folder, _ = done
    parts = [row for path in folder.rglob("parts/*.jsonl") for row in lines(path) if "token_ids" in row]
    assert parts and all(row["text"] == "" and row["token_ids"] for row in parts)
    tables = {path.stem: json.loads(path.read_text()) for path in (folder / "tokens").glob("*.json")}
    judged = [row["candidate"] for path in folder.rglob("judged.jsonl") for row in lines(path)]
    assert judged
    for row in judged:
        pieces = tables[row["tokenizer"]]
        text = "".join(pieces[i] or "" for i in row["token_ids"]).encode("latin-1").decode()
        assert row["text"] == text and "Answer:" in text


def test_a_tokenizer_without_a_table_is_matched_as_text(project, done, tmp_path, monkeypatch, caplog):
    def unknown(*_, **__):
        raise DataError("neither byte-level BPE nor SentencePiece")

    monkeypatch.setattr(TokenBytes, "from_hf", unknown)
    summary = go(make(project), tmp_path, controls=True)
    assert "matched as text: neither" in caplog.text and not (tmp_path / "tokens").exists()
    for cycle_, same in zip(summary["cycles"], done[1]["cycles"], strict=True):
        assert cycle_["kept"] == same["kept"] and cycle_["accuracy"] == same["accuracy"]


def test_answers_that_nothing_can_spell_any_more_are_a_clear_error(project, done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tokens")
    with pytest.raises(RunError, match=r"tokens/\w+.json is gone.*use another --run folder"):
        go(make(project), tmp_path / "run")


def test_a_damaged_adapter_is_named(project, done, tmp_path):
    shutil.copytree(done[0], tmp_path / "run")
    adapter = tmp_path / "run" / "cycle-00" / "adapter"
    (adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    shutil.rmtree(tmp_path / "run" / "cycle-01")
    with pytest.raises(ModelError, match="cycle-00/adapter is damaged .*; delete it and run the same command again"):
        go(make(project), tmp_path / "run")
    shutil.rmtree(adapter)
    assert steady(go(make(project), tmp_path / "run", controls=True)) == steady(done[1])


def test_free_answers_are_not_constrained(project, tmp_path):
    config = make(project, loop={"max_cycles": 1}, generate={"constrain": False})
    summary = go(config, tmp_path)
    assert summary["backends"]["sample"] and "constrain" not in summary["backends"]
    texts = [row["candidate"]["text"] for path in tmp_path.rglob("judged.jsonl") for row in lines(path)]
    assert any(not text.rstrip(" .").endswith(tuple(tiny.COLOURS)) for text in texts)


def test_ablations_do_what_they_say(project, tmp_path):
    one = {"max_cycles": 1}
    nothing_hinted = go(make(project, loop=one, rationalize={"enabled": False}), tmp_path / "a")
    assert nothing_hinted["cycles"][0]["asked"]["rationalized"] == 0
    unfiltered = go(make(project, loop=one | {"filter": False}), tmp_path / "b")
    assert unfiltered["cycles"][0]["kept"]["direct"] == 6 * 8
    loose = {"leak_guard": False, "samples": 8}
    hinted = go(make(project, loop=one | {"direct": False}, rationalize=loose), tmp_path / "c")
    assert hinted["cycles"][0]["kept"]["direct"] == 0 < hinted["cycles"][0]["asked"]["rationalized"]


@pytest.mark.parametrize("keep", ["best", "all"])
def test_answers_stopped_early_change_nothing_that_is_kept(project, tmp_path, keep, monkeypatch):
    """The counts behind `match.min_correct`, and which answers are kept, are those of answers drawn to their end."""
    # A colour is one token, and the end is forced behind it: without steps of its own, none would be cut short.
    monkeypatch.setattr(Lane, "forced", lambda lane: [[]] * len(lane.rows))
    one = {"loop": {"max_cycles": 1}, "match": {"keep": keep, "min_correct": 0.2}}
    found = {}
    for whole in (False, True):
        folder = tmp_path / str(whole)
        summary = go(make(project, **one, generate={"keep_rejected": whole}), folder)
        verdicts = [row["verdict"] for path in sorted(folder.rglob("cycle-00/*/judged.jsonl")) for row in lines(path)]
        passed = {(v["question_id"], v["mode"], v["sample"]): v["passed"] for v in verdicts}
        stopped = sum(v["reason"] == "stopped_early" for v in verdicts)
        found[whole] = lines(folder / "cycle-00" / "examples.jsonl"), passed, summary["cycles"][0]["kept"]
        assert (stopped > 0) == (not whole)
        assert summary["stages"]["generate"]["items"]["stopped_early"] <= stopped
    assert found[False] == found[True]


def test_closed_sets_are_scored_where_it_is_asked_for(project, tmp_path):
    config = make(project, loop={"max_cycles": 1}, evaluate={"score_labels": True})
    summary = go(config, tmp_path)
    for found in ("base/metrics/test.json", "cycle-00/metrics/test.json"):
        scored = json.loads((tmp_path / found).read_text())["scored"]
        assert scored["n"] == 3 and scored["top5"] == 1.0
        assert 0 <= scored["top1"] <= 1 and 0 <= scored["calibration_error"] <= 1
    assert summary["stages"]["evaluate"]["items"]["scored"] == 4 * 3
    assert go(config, tmp_path)["cycles"] == summary["cycles"]


@pytest.mark.parametrize("norm", ["mean", "pmi"])
def test_label_scores_of_other_norms(project, tmp_path, norm):
    settings = {"score_labels": True, "score_norm": norm}
    go(make(project, loop={"max_cycles": 1}, evaluate=settings), tmp_path)
    scored = json.loads((tmp_path / "cycle-00/metrics/test.json").read_text())["scored"]
    assert scored["n"] > 0 and scored["top5"] == 1.0 and 0 <= scored["calibration_error"] <= 1


def test_label_scores_propose_what_candidates_end_in(project, tmp_path):
    settings = {"propose": 2, "samples": 7, "keep_rejected": True}
    go(make(project, loop={"max_cycles": 1}, generate=settings), tmp_path / "a")
    rows = [row["candidate"] for row in lines(tmp_path / "a" / "cycle-00" / "generate" / "judged.jsonl")]
    by_question = {}
    for row in rows:
        said = row["text"].rstrip(" .").split()[-1] if row["finish"] == "stop" else None
        by_question.setdefault(row["question_id"], {})[row["sample"]] = said
    for said in by_question.values():
        assert list(said) == list(range(7))
        each = [{said[n] for n in range(first, 7, 2)} - {None} for first in (0, 1)]
        assert all(len(names) <= 1 for names in each) and len(each[0] | each[1]) == 2
    free = go(make(project, loop={"max_cycles": 1}, generate={**settings, "propose": 0}), tmp_path / "a")
    assert free["cycles"][0]["asked"]["direct"] == 6  # other parts: nothing of the proposed answers is taken


def test_continue_starts_from_the_last_adapter_at_its_share_of_the_rates(project, done, tmp_path):
    full = make(project, loop={"restart": "continue", "continue_rate": 1.0})
    go(full, tmp_path / "full")
    shutil.copytree(tmp_path / "full", tmp_path / "less")
    shutil.rmtree(tmp_path / "less" / "cycle-01")
    go(make(project, loop={"restart": "continue", "continue_rate": 0.01}), tmp_path / "less")
    first, second = ([weights(p / f"cycle-0{n}") for p in (tmp_path / "full", tmp_path / "less")] for n in (0, 1))
    assert distance(*first) == 0.0
    assert distance(second[1], first[1]) < 0.05 * distance(second[0], first[0])
    assert read_key(tmp_path / "full") != read_key(done[0])


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def distance(one, other):
    return sum(float((one[n] - other[n]).abs().sum()) for n in one)


def read_key(folder):
    return (folder / "cycle-01/adapter/key.json").read_text()


def test_paper_recipe_ends_on_direct_answers_only(project, tmp_path):
    config = make({**project, "recipe": "paper"}, loop={"max_cycles": 1})
    summary = go(config, tmp_path)
    assert summary["recipe"] == "paper"
    if summary["cycles"][0]["kept"]["rationalized"]:
        assert summary["final"]["kept"] == summary["cycles"][0]["kept"]["direct"]


def test_no_final_model_without_direct_answers(project, tmp_path):
    config = make(project, recipe="paper", loop={"direct": False, "max_cycles": 1}, rationalize={"leak_guard": False})
    summary = go(config, tmp_path)
    assert summary["state"] == "done" and "no final model" in summary["stopped"] and "final" not in summary


def test_a_stage_does_not_take_the_adapter_of_other_settings(project, done, tmp_path):
    quiet = {"profiler": Profiler("off"), "progress": Progress(quiet=True)}
    shutil.copytree(done[0], tmp_path / "run")
    cycle.run_stage("generate", make(project, finetune={"lr": 0.05}), tmp_path / "run", 1, **quiet)
    keys = [(p / "cycle-00/adapter/key.json").read_text() for p in (done[0], tmp_path / "run")]
    assert keys[0] != keys[1]


def test_another_start_checkpoint_is_used_for_training(project, done, tmp_path, tmp_path_factory):
    other = tiny.write_model(tmp_path_factory.mktemp("other") / "model", seed=7)
    summary = go(make(project, model={"init": str(other)}, loop={"max_cycles": 1}), tmp_path)
    assert summary["base"] == done[1]["base"]
    assert summary["cycles"][0]["kept"] == done[1]["cycles"][0]["kept"]
    keys = [(p / "cycle-00/adapter/key.json").read_text() for p in (done[0], tmp_path)]
    assert keys[0] != keys[1]


def test_a_bad_video_is_a_counted_row_and_the_run_goes_on(project, tmp_path, tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    data = tiny.write_data(root)
    (root / "train/0.mp4").write_bytes(b"this is not a video" * 50)
    whole = (root / "train/1.mp4").read_bytes()
    (root / "train/1.mp4").write_bytes(whole[: len(whole) // 2])
    summary = go(make(project, data={"path": str(data)}, loop={"max_cycles": 1}), tmp_path)
    assert summary["cycles"][0]["asked"]["direct"] == 4
    assert sum(summary["input_rejected"].values()) == 2
    assert {r["id"] for r in lines(tmp_path / "rejected.jsonl")} == {"train-0", "train-1"}
    again = go(make(project, data={"path": str(data)}, loop={"max_cycles": 1}), tmp_path, controls=True)
    assert again["input_rejected"] == summary["input_rejected"]
    assert again["controls"]["labels_only"]["kept"] == 4
    assert again["backends"]["frames"] == summary["backends"]["frames"]


def test_a_clip_left_out_by_a_setting_is_back_when_the_setting_is(project, tmp_path):
    short = make(project, data={"max_duration_s": 0.9}, loop={"max_cycles": 1})
    assert go(short, tmp_path)["cycles"][0]["asked"]["direct"] == 4
    summary = go(make(project, loop={"max_cycles": 1}), tmp_path)
    assert summary["cycles"][0]["asked"]["direct"] == 6 and summary["input_rejected"] == {}


def test_without_reasons_every_prompt_is_without(project, tmp_path, monkeypatch):
    from vstar_fast import questions

    asked = set()
    prompt = questions.prompt_text
    monkeypatch.setattr(questions, "prompt_text", lambda q, **kw: asked.add(prompt(q, **kw)) or prompt(q, **kw))
    summary = go(make(project, generate={"reason": False}, loop={"max_cycles": 1}), tmp_path)
    assert summary["cycles"][0]["asked"]["rationalized"] == 0 < summary["cycles"][0]["kept"]["direct"]
    assert asked and all("Reply with" in text for text in asked)


def test_what_min_correct_leaves_out_is_asked_again(project, tmp_path):
    counted = go(make(project, match={"min_correct": 0.3}, loop={"max_cycles": 1}), tmp_path)["cycles"][0]
    assert counted["kept"]["direct"] + counted["asked"]["rationalized"] == 6
    assert counted["yield"]["direct"] > counted["kept"]["direct"] / 6


def test_without_held_out_clips_it_says_so(project, tmp_path, tmp_path_factory, capsys):
    data = tiny.write_data(tmp_path_factory.mktemp("bare"), held_out=0)
    own = {"path": str(data), "dev_fraction": 0.0, "test_fraction": 0.0}
    config = make(project, data=own, loop={"max_cycles": 1})
    cycle.run(config, tmp_path, profiler=Profiler("off"), progress=Progress())
    told = capsys.readouterr().err
    assert "no dev videos" in told and "no test videos" in told
    assert json.loads((tmp_path / "summary.json").read_text())["gain"]["value"] is None
    report.write(tmp_path, tmp_path / "report.html")


def test_nothing_usable_is_an_error(project, tmp_path, tmp_path_factory):
    root = tmp_path_factory.mktemp("none")
    data = tiny.write_data(root)
    for clip in root.rglob("*.mp4"):
        clip.write_bytes(b"")
    with pytest.raises(DataError, match="usable"):
        go(make(project, data={"path": str(data)}), tmp_path)


def test_a_stage_needs_the_cycle_before(project, tmp_path):
    with pytest.raises(RunError, match="cycle 0 has no adapter; run `vstar-fast finetune --cycle 0` first"):
        cycle.run_stage("generate", make(project), tmp_path, 1, profiler=Profiler("off"), progress=Progress(quiet=True))


CHILD = """
import json, sys
from vstar_fast import config, cycle
from vstar_fast.profiling import Profiler
from vstar_fast.progress import Progress
quiet = {"profiler": Profiler("off"), "progress": Progress(quiet=True)}
cycle.run(config.from_dict(json.loads(sys.argv[1])), sys.argv[2], **quiet)
"""


def files(folder):
    return sum(len(names) for _, _, names in os.walk(folder))


def killed(project, folder, count, wait_s):
    """Run in a child and kill it so long after its folder holds so many files; whether it was still at work."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, json.dumps(project), str(folder)])
    while files(folder) < count and child.poll() is None:
        time.sleep(0.005)
    time.sleep(wait_s)
    was_at_work = child.poll() is None
    child.kill()
    child.wait()
    return was_at_work


@pytest.mark.parametrize("points", [pytest.param(2), pytest.param(10, marks=pytest.mark.slow)])
def test_killed_anywhere_it_ends_with_the_same_result(project, done, tmp_path, points):
    rng = random.Random(points)
    whole = files(done[0]) - files(done[0] / "controls")
    moments = sorted(rng.uniform(0.05, 0.95) for _ in range(points))
    config = {**project, "seed": 0}
    stopped = [killed(config, tmp_path / "run", part * whole, rng.uniform(0, 0.1)) for part in moments]
    assert sum(stopped) >= points / 2
    assert steady(go(settings.from_dict(config), tmp_path / "run", controls=True)) == steady(done[1])
    for name in ("cycle-00", "cycle-01"):
        assert lines(tmp_path / "run" / name / "examples.jsonl") == lines(done[0] / name / "examples.jsonl")


def test_a_fresh_process_may_begin_with_any_stage(project, done, tmp_path):
    """With all answers in the run folder nothing has loaded a model before the fine-tuning imports peft."""
    folder = tmp_path / "run"
    shutil.copytree(done[0], folder)
    shutil.rmtree(folder / "cycle-00" / "adapter")
    subprocess.run([sys.executable, "-c", CHILD, json.dumps({**project, "seed": 0}), str(folder)], check=True)
    expected = lines(done[0] / "cycle-00/adapter/key.json")
    assert lines(folder / "cycle-00/adapter/key.json") == expected


def one_cycle(project, folder, **sections):
    return go(make(project, **sections, loop={"max_cycles": 1}), folder, controls="dpo" in str(sections))


@pytest.mark.parametrize("change", [{"tune": "full", "lr": 1e-3}, {"objective": "dpo", "balance": True}], ids=str)
def test_a_cycle_trains_in_full_and_on_preferences(project, tmp_path, change):
    summary = one_cycle(project, tmp_path / "run", finetune=change)
    assert summary["state"] == "done" and sum(summary["cycles"][0]["kept"].values()) > 0
    log = json.loads((tmp_path / "run" / "cycle-00" / "adapter" / "training.json").read_text())
    assert log["examples"] > 0 and all(n > 0 for n in log["grad_norm"])
    rows = lines(tmp_path / "run" / "cycle-00" / "examples.jsonl")
    assert any(r["rejected"] for r in rows) == ("objective" in change)
    saved = load_file(tmp_path / "run" / "cycle-00" / "adapter" / "adapter_model.safetensors")
    assert any("lora_A" in n for n in saved) == ("tune" not in change)


def test_a_full_disk_under_the_adapter_is_a_clear_error(project, tmp_path, monkeypatch):
    from peft import PeftModel

    def full(self, folder, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(PeftModel, "save_pretrained", full)
        with pytest.raises(RunError, match="adapter.tmp: the disk is full; make room"):
            one_cycle(project, tmp_path)
    assert one_cycle(project, tmp_path)["state"] == "done"


def test_pairs_hold_failed_answers_whole(project, tmp_path, monkeypatch):
    """An answer that was stopped early is no answer to train against: preferences draw all to the end."""
    monkeypatch.setattr(Lane, "forced", lambda lane: [[]] * len(lane.rows))
    summary = one_cycle(project, tmp_path, finetune={"objective": "dpo"})
    assert "stopped_early" not in summary["cycles"][0]["rejected"]
    judged = [row["candidate"] for row in lines(tmp_path / "cycle-00/generate/judged.jsonl")]
    whole = {(c["question_id"], c["text"].strip()) for c in judged if c["finish"] == "stop"}
    pairs = [(r["question_id"], r["rejected"]) for r in lines(tmp_path / "cycle-00/examples.jsonl") if r["rejected"]]
    assert pairs and whole.issuperset(pairs)


def test_a_bad_instruction_file_is_told_before_the_run_takes_its_time(project, tmp_path):
    sections = {"data": {"instructions": str(tmp_path / "none.json")}, "finetune": {"mix_ratio": 1.0}}
    with pytest.raises(DataError, match="cannot read data.instructions .*none.json"):
        one_cycle(project, tmp_path / "run", **sections)
    assert not (tmp_path / "run" / "base").exists()


def test_what_training_left_out_is_counted_again_by_a_run_that_goes_on(project, tmp_path):
    """Instruction data whose clip is gone, and examples that are too long, are rows of `rejected.jsonl` each time."""
    said = [{"from": "human", "value": "which colour"}, {"from": "gpt", "value": "red"}]
    rows = [{"video": f"{i}.mp4", "conversations": said} for i in range(9)]
    rows += [{"conversations": [said[0], {"from": "gpt", "value": f"red {'. ' * (150 + i)}"}]} for i in range(9)]
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    tuning = {"mix_ratio": 1.0, "micro_batch_tokens": 120}
    config = make(
        project, loop={"max_cycles": 1}, data={"instructions": str(tmp_path / "mix.json")}, finetune=tuning, seed=3
    )
    found = []
    for _ in range(2):
        summary = go(config, tmp_path / "run")
        found.append((summary["input_rejected"], lines(tmp_path / "run" / "rejected.jsonl")))
    assert found[0] == found[1] and set(found[0][0]) == {"frames:missing_file", "finetune:too_long"}


def test_instruction_data_of_every_kind_is_mixed_in(project, tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32), (220, 30, 30)).save(tmp_path / "red.png")
    said = [{"from": "human", "value": "which colour"}, {"from": "gpt", "value": "I see red ."}]
    clip = str(next(Path(project["data"]["path"]).parent.glob("train/*.mp4")))
    media = [{}, {"image": "red.png"}, {"video": clip}]
    rows = [
        {**media[i % 3], "conversations": [said[0], {"from": "gpt", "value": f"red {'. ' * i}"}]} for i in range(60)
    ]
    (tmp_path / "mix.json").write_text(json.dumps(rows))
    sections = {"data": {"instructions": str(tmp_path / "mix.json")}, "finetune": {"mix_ratio": 3.0}}
    summary = one_cycle(project, tmp_path / "run", **sections)
    kept = sum(summary["cycles"][0]["kept"].values())
    log = json.loads((tmp_path / "run" / "cycle-00" / "adapter" / "training.json").read_text())
    assert kept > 0 and log["examples"] == 4 * kept
