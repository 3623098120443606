"""The command line: what each option does to the settings, what users read, exit codes, Ctrl-C, and a real run."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import tiny
from vstar_fast import cli, cycle
from vstar_fast import config as settings
from vstar_fast.config import starter
from vstar_fast.errors import BackendError, ConfigError, DataError, ModelError, RunError
from vstar_fast.files import write_json, write_jsonl
from vstar_fast.records import Example, Label, LabeledVideo, Question, to_dict
from vstar_fast.run import contents


def call(*args, code=0):
    result = CliRunner().invoke(cli.main, [str(a) for a in args], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "mine.toml"
    config = settings.from_dict({"data": {"path": "clips"}, "model": {"base": "a/b"}, "generate": {"samples": 7}})
    path.write_text(settings.to_toml(config))
    return path


@pytest.fixture
def engine(monkeypatch):
    """Stands in for the cycle; remembers what it was called with."""
    calls = []

    def run(config, run_dir, *, profiler, progress, controls=False):
        calls.append(("run", config, run_dir, profiler.kind, (progress.quiet, progress.json), controls))
        raise RunError("enough")

    def run_stage(name, config, run_dir, number, *, profiler, progress):
        calls.append((name, config, run_dir, number))
        return {"candidates": 4, "rejected": {"no_answer": 3}}

    def run_seeds(config, run_dir, seeds, *, profiler, progress, controls=False):
        calls.append(("seeds", config, run_dir, seeds))
        raise RunError("enough")

    monkeypatch.setattr(cycle, "run", run)
    monkeypatch.setattr(cycle, "run_stage", run_stage)
    monkeypatch.setattr(cycle, "run_seeds", run_seeds)
    return calls


def test_options_become_settings(toml, engine, tmp_path):
    result = call("cycle", "--config", toml, "--run", tmp_path / "r", "--controls", "--quiet", code=1)
    assert result.stderr == "vstar-fast: enough\n" and result.stdout == ""
    assert engine[0] == ("run", settings.load(toml), tmp_path / "r", "off", (True, False), True)
    flags = ["--no-rationalize", "--no-filter", "--continue", "--rationalize-only", "--seed", 5, "--json"]
    sets = ["--set", "generate.samples=2", "--set", "match.profile=paper", "--set", 'finetune.target_modules="q,v"']
    call("cycle", "--config", toml, "--profile", "torch", *flags, *sets, code=1)
    _, config, run_dir, kind, shown, controls = engine[1]
    assert (run_dir, kind, shown, controls) == (Path("runs/mine"), "torch", (False, True), False)
    assert config == settings.load(
        toml,
        {
            "seed": 5,
            "generate": {"samples": 2},
            "match": {"profile": "paper"},
            "finetune": {"target_modules": "q,v"},
            "rationalize": {"enabled": False},
            "loop": {"filter": False, "restart": "continue", "direct": False},
        },
    )
    call("cycle", "--config", toml, "--seeds", 3, code=1)
    assert engine[2][0] == "seeds" and engine[2][3] == 3


def test_paper_recipe_yields_to_the_file_and_the_file_to_set(toml, engine):
    call("cycle", "--config", toml, "--recipe", "paper", "--set", "finetune.lr=1e-3", code=1)
    config = engine[0][1]
    assert (config.recipe, config.match.profile, config.generate.samples) == ("paper", "strict", 7)
    toml.write_text('[data]\npath = "clips"\n')
    call("cycle", "--config", toml, "--recipe", "paper", "--set", "finetune.lr=1e-3", code=1)
    config = engine[1][1]
    assert (config.match.profile, config.generate.samples, config.finetune.lr) == ("paper", 1, 1e-3)
    assert config.finetune.batch_size == 128


def test_paper_recipe_outdoes_what_a_run_folder_resolved(engine, tmp_path):
    (tmp_path / "config.toml").write_text(settings.to_toml(settings.from_dict({"data": {"path": "clips"}})))
    call("cycle", "--run", tmp_path, "--recipe", "paper", "--set", "generate.samples=3", code=1)
    config = engine[0][1]
    assert (config.match.profile, config.finetune.batch_size, config.generate.samples) == ("paper", 128, 3)


def test_demo_builds_its_settings(engine, monkeypatch):
    from vstar_fast import demo

    def build(*, seed, progress):
        progress(3, 3)
        return settings.from_dict({"seed": seed, "data": {"path": "d"}, "generate": {"samples": 4}})

    monkeypatch.setattr(demo, "config", build)
    result = call("cycle", "--demo", "--seed", 2, "--recipe", "paper", code=1)
    _, config, run_dir, *_ = engine[0]
    assert run_dir == Path("runs/demo") and (config.seed, config.data.path) == (2, "d")
    assert (config.generate.samples, config.generate.temperature) == (1, 0.2)
    assert "demo clips: 3/3" in result.stderr


@pytest.mark.parametrize("name", ["generate", "match", "rationalize", "finetune", "evaluate"])
def test_a_stage_alone_reads_the_run_folder(name, toml, engine, tmp_path):
    run = tmp_path / "earlier"
    run.mkdir()
    (run / "config.toml").write_text(toml.read_text())
    result = call(name, "--run", run, "--cycle", 1)
    assert engine == [(name, settings.load(toml), run, 1)]
    assert result.stdout == "candidates: 4\nrejected.no_answer: 3\n"
    events = call(name, "--run", run, "--json").stdout
    expected = {"candidates": 4, "rejected": {"no_answer": 3}}
    assert json.loads(events) == {"event": "result", "stage": name, "cycle": 0, "result": expected}


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError, 2), (DataError, 2), (RunError, 1), (ModelError, 1), (BackendError, 1)],
)
def test_errors_are_one_line_and_a_code(error, code, toml, monkeypatch):
    def run(*args, **kwargs):
        raise error("what is wrong")

    monkeypatch.setattr(cycle, "run", run)
    result = call("cycle", "--config", toml, code=code)
    assert (result.stdout, result.stderr) == ("", "vstar-fast: what is wrong\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["cycle"], "say what to run: --config run.toml"),
        (["cycle", "--config", "none.toml"], "no config file none.toml; write one with `vstar-fast init`"),
        (["cycle", "--config", "{toml}", "--demo"], "exclude each other"),
        (["cycle", "--config", "{toml}", "--set", "generate.sampels=3"], "did you mean 'samples'?"),
        (["cycle", "--config", "{toml}", "--set", "generate.samples"], "must look like section.key=value"),
        (["cycle", "--config", "{toml}", "--set", "generate.samples=many"], "generate.samples must be int"),
        (["export", "--run", "x"], "say what to export: --format llava|sharegpt|swift|hf"),
        (["bench", "nothing"], "unknown bench 'nothing'; known: attention, constrain, constrained_answers"),
    ],
)
def test_wrong_use(args, message, toml):
    result = call(*(a.format(toml=toml) for a in args), code=2)
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_bench_lists_and_runs(monkeypatch, tmp_path):
    from vstar_fast.bench import runner

    assert {"label_match", "sample"} <= set(call("bench").stdout.split())
    assert "runner" not in call("bench").stdout.split()
    calls = []
    monkeypatch.setattr(runner, "main", lambda *given: calls.append(given))
    call("bench", "sample", "--quick", "--json", tmp_path / "x.json", "--rows", "8")
    assert calls == [("sample", True, tmp_path / "x.json", ("--rows", "8"))]
    monkeypatch.setattr(runner, "main", lambda *_: 3)
    call("bench", "sample", code=3)


def test_doctor_says_what_a_model_will_be_used_as(tmp_path):
    folder = tiny.write_model(tmp_path / "model")
    found = json.loads(call("doctor", str(folder), "--json").stdout)["model"]
    assert found["model type"] == "vstar_demo" and found["adapter"] == "DemoLM"
    assert "multi_modal_projector" in found["may be trained"]
    assert "vstar_demo" in call("doctor", str(folder)).stdout


def test_doctor_names_every_op():
    found = json.loads(call("doctor", "--json").stdout)
    assert {"label_match", "sample", "frames", "attention"} <= {r["name"] for r in found["backends"]}
    assert found["versions"]["torch"] == torch.__version__
    shown = call("doctor").stdout
    frames = next(line for line in shown.splitlines() if line.split()[:2] == ["stage", "frames"])
    assert frames.split()[2] == "pyav"
    assert "vstar-fast[gpu]" in " ".join(shown.split()) or "dali" in shown


def part(value):
    return {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 30}}


def made_up(seed, last):
    counts = {"asked": {"direct": 9, "rationalized": 5}, "kept": {"direct": 4, "rationalized": 2}}
    cycle_0 = part(last) | {"dev": part(0.5)} | counts | {"rejected": {"wrong_label": 11}}
    times = {
        "seconds": 6.0,
        "cpu_seconds": 9.0,
        "peak_mib": 512.0,
        "items": {"tokens": 60},
        "per_second": {"tokens": 10.0},
    }
    return {
        "seed": seed,
        "stopped": "enough",
        "base": part(0.2) | {"dev": part(0.25)},
        "cycles": [cycle_0],
        "gain": {"value": last - 0.2, "low": 0.05, "high": 0.4, "n": 30},
        "controls": {"labels_only": part(0.31)},
        "stages": {"generate": times},
    }


def test_what_no_clip_measured_is_said_to_be_so():
    from vstar_fast import console

    nothing = dict.fromkeys(("value", "low", "high"), float("nan")) | {"n": 0}
    assert console.points(nothing) == console.percent(nothing) == "not measured (no clips)"


def test_several_seeds_are_shown_one_by_one_and_pooled(toml, monkeypatch, tmp_path):
    runs = [made_up(3, 0.4), made_up(4, 0.6)]
    pooled = {"base": part(0.2), "last": part(0.5), "controls": {"labels_only": part(0.31)}}
    gain = {"value": 0.3, "low": 0.125, "high": 0.475, "n": 60}
    summary = {"seeds": [3, 4], "runs": runs, "gain": gain} | pooled
    monkeypatch.setattr(cycle, "run_seeds", lambda *args, **kwargs: summary)
    shown = " ".join(call("cycle", "--config", toml, "--seeds", 2, "--run", tmp_path).stdout.split())
    for words in (
        "seed 3 test accuracy",
        "base 20.0 % [10.0, 30.0] 25.0 %",
        "cycle 0 40.0 % [30.0, 50.0] 50.0 % 4 of 9 2 of 5 wrong_label 11",
        "labels only 31.0 % [21.0, 41.0]",
        "generate 6.0 100 % 9.0 512 60 tokens (10/s)",
        "cycle 0 60.0 %",
        "over 2 seeds test accuracy base 20.0 % [10.0, 30.0] last cycle 50.0 % [40.0, 60.0]",
        "gain on test: +30.0 points [+12.5, +47.5], 60 clips",
        f"vstar-fast report {tmp_path}/seed-3",
    ):
        assert words in shown, words
    lines = call("cycle", "--config", toml, "--seeds", 2, "--run", tmp_path, "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"event": "summary", "summary": summary}]
    assert call("cycle", "--config", toml, "--seeds", 2, "--run", tmp_path, "--quiet").output == ""


# -- init ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    return tiny.write_data(root / "data"), tiny.write_model(root / "model")


def test_init_writes_settings_that_load(project, tmp_path):
    data, model = project
    out = tmp_path / "run.toml"
    shown = call("init", data, model, "--out", out).stdout
    assert "12 videos: 6 train, 3 dev, 3 test" in shown and "label set colours: 3 names" in shown
    assert settings.load(out) == settings.from_dict({"data": {"path": str(data)}, "model": {"base": str(model)}})
    text = out.read_text()
    assert f"vstar-fast cycle --config {out}" in text and "# Candidates a question.\n#samples = 4\n" in text
    assert tomllib.loads(text)["loop"] == {} and "\n#max_cycles = 3\n" in text
    paper = settings.load(out, {"recipe": "paper"})
    assert (paper.generate.samples, paper.match.profile) == (1, "paper")
    assert "--force" in call("init", data, model, "--out", out, code=2).stderr
    assert "not looked up" in call("init", data, "owner/name", "--out", out, "--force").stdout
    assert settings.load(out).model.base == "owner/name"


def test_init_tells_what_is_missing(project, tmp_path):
    data, model = project
    out = tmp_path / "run.toml"
    (tmp_path / "bare").mkdir()
    for folder, message in (("bare", "has no config.json"), ("nowhere/at/all", "neither a model folder nor a hub id")):
        assert message in call("init", data, tmp_path / folder, "--out", out, code=1).stderr
    (tmp_path / "bare" / "config.json").write_text("{}")
    assert "has no processor" in call("init", data, tmp_path / "bare", "--out", out, code=1).stderr
    assert "none" in call("init", tmp_path / "none", model, "--out", out, code=2).stderr
    assert not out.exists()


def test_init_counts_rows_left_out(project, tmp_path):
    data, model = project
    rows = data.read_text().splitlines()
    rows.append(
        json.dumps({"id": "odd", "path": "train/0.mp4", "labels": [{"kind": "colour", "name": "x", "value": 1}]})
    )
    worse = data.parent / "worse.jsonl"
    worse.write_text("\n".join(rows))
    lines = starter.write(worse, str(model), tmp_path / "run.toml")
    (left,) = [line for line in lines if "left out" in line]
    assert left.startswith("1 rows left out: ") and "worse.jsonl" in left and "colour" in left


def test_init_says_that_there_is_nothing_to_learn_from(project, tmp_path):
    data, model = project
    held_out = data.parent / "held_out.jsonl"
    held_out.write_text("".join(r + "\n" for r in data.read_text().splitlines() if '"train"' not in r))
    lines = starter.write(held_out, str(model), tmp_path / "run.toml")
    assert lines[0] == "6 videos: 0 train, 3 dev, 3 test" and any("no train videos" in line for line in lines)


def test_init_takes_what_the_data_cannot_say(project, tmp_path):
    data, model = project
    table = data.parent / "what.csv"
    table.write_text("clip,what\n" + "".join(f"train/{i}.mp4,{'red' if i else 'blue'}\n" for i in range(4)))
    out = tmp_path / "run.toml"
    shown = call("init", table, model, "--out", out, code=2).stderr
    assert 'name it in data.columns, e.g. columns = {label = "what"}' in shown and not out.exists()
    sets = ("--set", "data.columns.label=what", "--set", "data.test_fraction=0", "--set", "seed=3")
    assert "label set what: 2 names" in call("init", table, model, "--out", out, *sets).stdout
    config = settings.load(out)
    assert (config.data.columns, config.data.test_fraction, config.seed) == ({"label": "what"}, 0, 3)
    assert config.model.base == str(model)


def test_init_says_that_one_name_teaches_nothing(project, tmp_path):
    data, model = project
    table = data.parent / "one.csv"
    table.write_text("video,label\n" + "".join(f"train/{i}.mp4,red\n" for i in range(4)))
    lines = starter.write(table, str(model), tmp_path / "run.toml")
    assert "label set action has one name: every answer is right, and there is nothing to learn" in lines


# -- export ----------------------------------------------------------------------------------------------


def accepted(root):
    """A run folder with two accepted answers about one clip and one about a window of another."""
    run = root / "run"
    label = (Label("class", "action", "spin kick"),)
    videos = [
        LabeledVideo("a", "/clips/a.mp4", label),
        LabeledVideo("b", "/clips/b.mp4", label, start_s=2.0, end_s=3.5),
    ]
    asked = [Question(f"{v}/0", v, f"Which action is in {v}?", label, "class/1") for v in "ab"]
    write_jsonl(run / "videos.jsonl", [to_dict(v) for v in videos])
    (run / "config.toml").write_text("seed = 0\n")
    for name in ("cycle-00", "cycle-01"):
        write_jsonl(run / name / "questions.jsonl", [to_dict(q) for q in asked])
    write_jsonl(run / "cycle-00" / "examples.jsonl", [to_dict(Example("a", "a/0", "?", "old", "direct"))])
    texts = [("a", "It turns. Answer: spin kick"), ("a", "A leg swings. Answer: spin kick"), ("b", "Answer: spin kick")]
    rows = [to_dict(Example(v, f"{v}/0", f"Which action is in {v}?", t, "direct", 0.5)) for v, t in texts]
    write_jsonl(run / "cycle-01" / "examples.jsonl", rows)
    return run


def test_export_forms(tmp_path):
    run = accepted(tmp_path)
    ask = 'Which action is in {}? First say what you see, step by step. Then end with "Answer:" and the action.'
    result = call("export", "--run", run, "--format", "llava")
    assert result.stdout == f"{run / 'llava.json'}: 3 examples\n"
    assert "1 of them are windows" in result.stderr
    llava = json.loads((run / "llava.json").read_text())
    assert [r["id"] for r in llava] == ["a/0", "a/0#2", "b/0"]
    assert llava[0] == {
        "id": "a/0",
        "video": "/clips/a.mp4",
        "conversations": [
            {"from": "human", "value": f"<video>\n{ask.format('a')}"},
            {"from": "gpt", "value": "It turns. Answer: spin kick"},
        ],
    }
    assert (llava[2]["start_s"], llava[2]["end_s"]) == (2.0, 3.5)

    call("export", "--run", run, "--format", "sharegpt", "--out", run / "x" / "kept.json", "--plain")
    share = json.loads((run / "x" / "kept.json").read_text())
    assert share[1] == {
        "conversations": [
            {"from": "human", "value": "<video>Which action is in a?"},
            {"from": "gpt", "value": "A leg swings. Answer: spin kick"},
        ],
        "videos": ["/clips/a.mp4"],
    }
    assert json.loads((run / "x" / "dataset_info.json").read_text()) == {
        "kept": {
            "file_name": "kept.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "videos": "videos"},
        }
    }

    call("export", "--run", run, "--format", "swift", "--plain", "--cycle", 0)
    assert [json.loads(x) for x in (run / "swift.jsonl").read_text().splitlines()] == [
        {
            "messages": [{"role": "user", "content": "<video>?"}, {"role": "assistant", "content": "old"}],
            "videos": ["/clips/a.mp4"],
        }
    ]

    call("export", "--run", run, "--format", "hf", "--plain")
    rows = [json.loads(x) for x in (run / "hf.jsonl").read_text().splitlines()]
    video = {"type": "video", "video": "/clips/b.mp4", "video_start": 2.0, "video_end": 3.5}
    assert rows[2]["messages"] == [
        {"role": "user", "content": [video, {"type": "text", "text": "Which action is in b?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Answer: spin kick"}]},
    ]


def test_llama_factory_entry_joins_what_is_there(tmp_path):
    run = accepted(tmp_path)
    (run / "dataset_info.json").write_text('{"other": {"file_name": "o.json"}}')
    call("export", "--run", run, "--format", "sharegpt")
    assert list(json.loads((run / "dataset_info.json").read_text())) == ["other", "sharegpt"]


def test_export_takes_the_cycles_that_the_summary_counts(tmp_path):
    run = accepted(tmp_path)
    write_json(run / "summary.json", {"cycles": [{}]})
    assert ": 1 examples" in call("export", "--run", run, "--format", "hf").stdout
    assert ": 3 examples" in call("export", "--run", run, "--format", "hf", "--cycle", 1).stdout
    (run / "final" / "adapter").mkdir(parents=True)
    assert "cycle-00/adapter" in call("export", "--run", run, "--merged", tmp_path / "m", code=1).stderr
    write_json(run / "summary.json", {"cycles": [{}], "final": {}})
    assert "final/adapter" in call("export", "--run", run, "--merged", tmp_path / "m", code=1).stderr


def test_a_cycle_of_an_earlier_start_is_not_taken_for_one_of_this_run(tmp_path):
    """Settings were changed, and the run was stopped before its first cycle ended: there is no summary yet."""
    run = accepted(tmp_path)
    assert ": 3 examples" in call("export", "--run", run, "--format", "hf").stdout
    os.utime(run / "cycle-01" / "questions.jsonl", (1, 1))
    assert ": 1 examples" in call("export", "--run", run, "--format", "hf").stdout
    assert [f.name for f in contents.cycles_of(run, None)] == ["cycle-00"]
    assert len(contents.cycles_of(run, {"cycles": [{}, {}]})) == 2


def test_export_asks_as_the_run_asked(tmp_path):
    run = accepted(tmp_path)
    (run / "config.toml").write_text("[generate]\nreason = false\n")
    call("export", "--run", run, "--format", "llava")
    talk = json.loads((run / "llava.json").read_text())[0]["conversations"]
    assert talk[0]["value"] == '<video>\nWhich action is in a? Reply with "Answer:" and the action.'


def test_export_of_nothing(tmp_path):
    assert "no cycle with examples.jsonl" in call("export", "--run", tmp_path, "--format", "hf", code=1).stderr
    run = accepted(tmp_path)
    assert "cycle-07 has no examples" in call("export", "--run", run, "--format", "hf", "--cycle", 7, code=1).stderr
    missing = call("export", "--run", run, "--merged", tmp_path / "m", code=1).stderr
    assert "has come to its adapter yet; start its `vstar-fast cycle` again" in missing
    (run / "videos.jsonl").unlink()
    missing = call("export", "--run", run, "--format", "hf", code=1).stderr
    assert "videos.jsonl: No such file" in missing and "cycle` again" in missing
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert "is not empty" in call("export", "--run", run, "--merged", tmp_path / "full", code=1).stderr


def test_the_folder_of_several_seeds_names_them_and_shows_their_cache(tmp_path):
    (tmp_path / "seed-3").mkdir()
    (tmp_path / "seed-3" / "config.toml").write_text(f"[cache]\nfolder = '{tmp_path}/cache'\n")
    (tmp_path / "summary.json").write_text('{"seeds": [3], "runs": []}')
    for args in (["--format", "hf"], ["--merged", tmp_path / "m"]):
        assert "several seeds; give one of" in call("export", "--run", tmp_path, *args, code=1).stderr
    assert f"{tmp_path}/cache/frames" in call("cache", "info", "--run", tmp_path).output


# -- a real run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(project, tmp_path_factory):
    """The whole cycle on the model in miniature, through the command line."""
    folder = tmp_path_factory.mktemp("ran")
    own = {"match": {"profile": "paper"}, "finetune": {"steps": 3}}
    config = settings.from_dict(settings.merge(tiny.settings(*project), own))
    (folder / "run.toml").write_text(settings.to_toml(config))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small for more: threads would only wait for one another
    result = call("cycle", "--config", folder / "run.toml", "--run", folder / "run")
    torch.set_num_threads(threads)
    return folder / "run", result


def test_cycle_prints_its_results(ran):
    folder, result = ran
    summary = json.loads((folder / "summary.json").read_text())
    shown = " ".join(result.stdout.split())
    for name, model in [("base", summary["base"]), *((f"cycle {i}", c) for i, c in enumerate(summary["cycles"]))]:
        value, low, high = (100 * model["accuracy"][k] for k in ("value", "low", "high"))
        assert f"{name} {value:.1f} % [{low:.1f}, {high:.1f}]" in shown
    first = summary["cycles"][0]
    assert f"{first['kept']['direct']} of {first['asked']['direct']}" in shown
    assert all(f"{reason} {n}" in shown for reason, n in list(first["rejected"].items())[:3])
    assert all(stage in shown for stage in summary["stages"])
    assert f"stopped: {summary['stopped']}" in shown
    assert str(folder / "summary.json") in shown and f"vstar-fast report {folder}" in shown
    assert "cycle-00 generate: 6/6" in result.stderr


def test_report_of_a_real_run(ran):
    folder, _ = ran
    assert call("report", folder).stdout.strip() == str(folder / "report.html")
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 6
    summary = json.loads((folder / "summary.json").read_text())
    assert f'<span id="last-accuracy">{100 * summary["cycles"][-1]["accuracy"]["value"]:.1f}</span>' in page


def test_merged_model_answers_like_model_and_adapter(ran, tmp_path):
    from peft import PeftModel

    from vstar_fast import models

    folder, _ = ran
    out = tmp_path / "merged"
    assert call("export", "--run", folder, "--merged", out).stdout.strip() == str(out)
    base = settings.load(folder / "config.toml").model.base
    adapter = sorted(folder.glob("cycle-*"))[-1] / "adapter"
    plain, merged = models.load(base, device="cpu"), models.load(str(out), device="cpu")
    adapted = PeftModel.from_pretrained(models.load(base, device="cpu").model, str(adapter)).eval()
    words = plain.tokenizer(["which colour a red", "I see a blue"], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = {n: m(input_ids=words).logits for n, m in (("base", plain.model), ("adapter", adapted))}
        found = merged.model(input_ids=words).logits
    assert (found - logits["adapter"]).abs().max() < 1e-4
    assert (found - logits["base"]).abs().max() > 1e-3
    trained = {n: p for n, p in adapted.named_parameters() if "modules_to_save.default" in n}
    assert trained
    own = dict(merged.model.named_parameters())
    for name, value in trained.items():
        plain_name = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        assert torch.equal(own[plain_name], value)


# -- as a process ----------------------------------------------------------------------------------------


def test_bars_of_other_libraries_stay_off_the_terminal(tmp_path):
    code = "from vstar_fast.cli.settings import quieten; quieten(); from tqdm.auto import tqdm; list(tqdm(range(3)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("", "")


def test_help_is_cheap():
    code = (
        "import time, sys\nfrom vstar_fast import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "assert not {'torch', 'numpy', 'rich', 'av', 'transformers'} & set(sys.modules)\n"
        "print(time.process_time())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "rationalize" in out
    assert float(out.splitlines()[-1]) < 0.5


def test_ctrl_c_says_how_to_go_on(toml, tmp_path):
    code = (
        "import pathlib, signal, time\nfrom vstar_fast import cli, cycle\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test run in the background ignores it
        "def run(config, run_dir, *, profiler, progress, controls):\n"
        "    with progress.task('generate', 9):\n        pathlib.Path('began').touch()\n        time.sleep(60)\n"
        "cycle.run = run\ncli.main()"
    )
    options = ["cycle", "--config", str(toml), "--run", "my run", "--seed", "3"]
    process = subprocess.Popen([sys.executable, "-c", code, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "began").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert f"To go on: vstar-fast cycle --config {toml} --run 'my run' --seed 3\n" in err
    assert "Traceback" not in err


def test_a_cache_that_cannot_be_cleared_says_so(tmp_path):
    (tmp_path / "frames" / "ab" / "entry.vfc").mkdir(parents=True)
    found = CliRunner().invoke(cli.main, ["cache", "clear", "--folder", str(tmp_path)])
    assert found.exit_code == 2 and "entry.vfc" in found.output and "Traceback" not in found.output


def test_cache_info_clear_and_warm(tmp_path):
    data, model = tiny.write_data(tmp_path / "data"), tiny.write_model(tmp_path / "model")
    toml = tmp_path / "run.toml"
    toml.write_text(f'[data]\npath = "{data}"\n[model]\nbase = "{model}"\n[frames]\ncount = 4\nisolate = false\n')
    kept = tmp_path / "kept"
    flags = ["--config", toml, "--run", tmp_path / "run", "--set", f"cache.folder={kept}"]
    first = call("cache", "warm", *flags).output
    contents = len({p.read_bytes() for p in data.parent.rglob("*.mp4")})
    assert f"\ndecoded: {contents}\n" in first and f"\nencoded: {contents}\n" in first, first
    again = call("cache", "warm", *flags).output
    assert "encoded" not in again and "decoded" not in again and "embeddings_hit: 12" in again
    shown = call("cache", "info", "--folder", kept).output
    assert f"frames: {contents} entries" in shown and f"embeddings: {contents} entries" in shown
    assert "MiB freed" in call("cache", "clear", "--folder", kept, "frames").output
    shown = call("cache", "info", "--folder", kept).output
    assert "frames: 0 entries" in shown and f"embeddings: {contents} entries" in shown
    assert "say which cache" in call("cache", "info", code=2).stderr
