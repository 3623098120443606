"""The bench runner: equality before time, the JSON's schema, and every bench once, quickly."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from vstar_fast.bench import constrained_answers, cycle, runner

from vstar_fast.errors import ConfigError

ROW = {
    "case",
    "subject",
    "baseline",
    "metric",
    "value",
    "unit",
    "ratio",
    "equal",
    "target",
    "met",
    "threads",
    "backend",
}
BENCHES = runner.names()


def check_row(row: dict) -> None:
    """One JSON row has exactly the documented fields, with sound values."""
    assert set(row) == ROW
    for name in ("case", "subject", "baseline", "metric", "unit", "backend"):
        assert isinstance(row[name], str) and row[name]
    assert row["equal"] is True
    if row["metric"] == runner.ABSENT:
        assert row["value"] is None and row["ratio"] is None
        return
    assert row["value"] > 0
    assert row["ratio"] is None or row["ratio"] > 0
    assert (row["target"] is None) == (row["met"] is None)
    assert row["threads"] >= 1


def test_rows_have_exactly_the_documented_fields():
    assert [field.name for field in fields(runner.Row)] == list(runner.Row.__annotations__)
    assert {field.name for field in fields(runner.Row)} == ROW


def test_benches_are_the_files_that_define_run():
    folder = Path(runner.__file__).parent
    assert set(BENCHES) >= {"label_match", "sample"}
    assert set(BENCHES) == {p.stem for p in folder.glob("*.py") if "\ndef run(" in p.read_text()} - runner.HELPERS


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_runs_quickly(name, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert runner.main(name, quick=True, json_path=path) == 0
    report = json.loads(path.read_text())
    assert set(report) == {"header", "rows", "ran", "seconds"}
    assert report["seconds"] > 0
    assert report["rows"]
    for row in report["rows"]:
        check_row(row)
    head = report["header"]
    assert head["bench"] == name and head["quick"] is True and head["cores"] >= 1 and head["cpu"]
    assert set(head["versions"]) >= {"vstar-fast", "python", "torch", "cuda", "triton", "transformers"}
    assert len(capsys.readouterr().out.splitlines()) >= len(report["rows"])


def bench() -> runner.Bench:
    return runner.Bench("test", quick=True, echo=False)


def test_what_is_not_equal_is_not_timed():
    calls = []
    made = bench()
    made.compare(
        "one", lambda: calls.append(1) or 1, lambda: 2, equal=lambda a, b: a == b, names=("a", "b"), target=2.0
    )
    (row,) = made.rows
    assert calls == [1]
    assert (row.equal, row.value, row.ratio, row.met) == (False, None, None, False)
    assert "DIFFER" in runner.describe(row)


def test_ratio_says_how_many_times_faster_the_subject_is():
    def spin(count: int) -> int:
        return sum(range(count))

    made = bench()
    made.compare(
        "sum", lambda: spin(2_000), lambda: spin(60_000), equal=lambda a, b: True, names=("short", "long"),
        work=(2_000, "item"), target=3.0, threads=1, backend="python",
    )  # fmt: skip
    cpu, wall = made.rows
    assert (cpu.metric, wall.metric, cpu.unit) == ("cpu", "wall", "us/item")
    assert 8 < cpu.ratio < 120
    assert cpu.met is True and wall.target is None and wall.met is None
    assert 0 < cpu.value < 10
    assert "target 3x: met" in runner.describe(cpu)


def test_a_target_that_is_missed_is_told():
    made = bench()
    made.add(
        case="m", subject="a", baseline="b", metric="peak", value=5.0, unit="MiB", ratio=1.5, equal=True, target=2.0
    )
    assert made.rows[0].met is False
    assert "MISSED" in runner.describe(made.rows[0])


def test_exit_status(monkeypatch, tmp_path, capsys):
    assert runner.main("no-such-bench") == 2
    assert "there are: " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no bench named"):
        runner.run("no-such-bench")
    row = {"case": "c", "equal": True}
    for rows, status in (([row], 0), ([{**row, "equal": False}], 1), ([], 1)):
        monkeypatch.setattr(runner, "run", lambda *_args, rows=rows, **_kw: {"rows": rows})
        assert runner.main("sample") == status
    monkeypatch.setattr(runner, "run", lambda *_args, **_kw: {"rows": [row]})
    assert runner.main("all", json_path=tmp_path / "all.json") == 0
    assert len(json.loads((tmp_path / "all.json").read_text())) == len(BENCHES)
    assert runner.main("sample", json_path=tmp_path / "no" / "folder.json") == 2


def test_the_torch_baseline_of_sample_draws_what_ours_draws():
    from vstar_fast.bench import sample

    assert sample.draws_alike("cpu", 0.7)
    assert not sample.fits(sample.torch.zeros(1000, dtype=int), sample.torch.full((4,), 0.25))


def test_triton_kernels_compile_ahead_of_time():
    """For one architecture and op here; CI does all."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "vstar_fast.bench.compile_kernels", "--arch", "90", "--op", "sample"]
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    lines = [line for line in out.splitlines() if line.startswith("sm_90 sample")]
    assert len(lines) == 3
    assert all("stack 0 B" in line for line in lines)


@pytest.mark.parametrize(
    ("arch", "shared", "spill", "used", "found"),
    [
        (90, 1000, 0, "wgmma.mma_async", []),
        (90, 1000, 8, "wgmma.mma_async", ["8 B spilled a thread"]),
        (80, 170_000, 0, "mma.sync", ["170000 B of shared memory, sm_80 has 166912"]),
        (90, 1000, 0, "mma.sync", ["no wgmma.mma_async, but mma.sync"]),
        (100, 1000, 0, "", ["no tcgen05.mma, but no tensor cores"]),
        (80, 1000, None, "mma.sync", ["registers and spills are not known: Triton came without cuobjdump"]),
    ],
)
def test_what_is_a_fault_of_a_compiled_kernel(arch, shared, spill, used, found):
    from vstar_fast.bench import compile_kernels

    assert list(compile_kernels._faults(arch, shared, spill, used, wanted=True)) == found


def test_the_gpu_script_parses_and_says_how_it_is_used():
    script = Path(__file__).parents[1] / "bench" / "on_gpu.sh"
    subprocess.run(["bash", "-n", script], check=True)
    help_text = subprocess.run(["bash", script], capture_output=True, text=True)
    assert help_text.returncode == 2 and "bench/on_gpu.sh OUTDIR" in help_text.stdout


SMALL = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 48}


@pytest.mark.parametrize(
    ("names", "more"),
    [
        (("qwen2_5_vl", "Qwen2_5_VLVisionConfig", "Qwen2_5_VisionTransformerPretrainedModel"), {}),
        (("qwen3_vl", "Qwen3VLVisionConfig", "Qwen3VLVisionModel"), {"deepstack_visual_indexes": [0]}),
    ],
)
def test_towers_of_the_bench_give_the_tokens_they_say(names, more):
    import torch
    from vstar_fast.bench import towers

    tower, see, tokens = towers.qwen(*names, **SMALL, **more)(400)
    with torch.no_grad():
        assert see("cpu").pooler_output.shape == (tokens, 48) and tokens == 392


def test_a_model_that_does_not_fit_is_refused_before_it_is_made(monkeypatch):
    from vstar_fast.bench import language_models

    from vstar_fast.models import memory

    monkeypatch.setattr(memory, "free_bytes", lambda _: 20 << 30)
    language_models.check_size("SmolLM2-135M", "cpu")
    with pytest.raises(ConfigError, match="Qwen2.5-VL-7B take 28.* 20.0 GiB are free on cpu; take a smaller"):
        language_models.check_size("Qwen2.5-VL-7B", "cpu")
    with pytest.raises(ConfigError, match="no model named 'x'; there are: tiny, "):
        language_models.check_size("x", "cpu")


def test_what_is_absent_is_a_row_that_says_why(capsys):
    made = bench()
    made.echo = True
    made.absent("one", "vLLM", "not importable")
    assert "vLLM is not measured: not importable" in capsys.readouterr().out
    check_row(asdict(made.rows[0]))


def test_a_bench_takes_its_own_options(capsys):
    shape = ["--model", "tiny", "--videos", "2", "--questions", "2", "--k", "2", "--prefix", "40", "--tokens", "3"]
    assert runner.main("generate", arguments=[*shape, "--baseline-videos", "1"]) == 0
    assert "tiny, 2 x 2 questions x 2, P=40, 3 new (baseline: 2 prompts)" in capsys.readouterr().out
    assert runner.main("score", arguments=["--k", "2"]) == 2
    assert "bench score takes no further options, got: --k 2" in capsys.readouterr().out


def test_the_roofline_page_is_up_to_date_and_takes_figures_of_a_card(tmp_path):
    from vstar_fast.bench import roofline_page

    page = Path(__file__).parents[1] / "bench" / "ROOFLINE.md"
    assert page.read_text() == roofline_page.page(), "run: python -m vstar_fast.bench.roofline_page > bench/ROOFLINE.md"
    row = runner.Row("a shape", "shared", "a copy", "gpu", 12.5, "us", 3.0, True, 2.0, True, 1, "triton")
    head = runner.header("prefix_attention", False, "cuda") | {"gpu": "NVIDIA H200"}
    report = {"header": head, "rows": [row.__dict__]}
    (tmp_path / "bench-prefix_attention.json").write_text(json.dumps(report))
    (tmp_path / "bench-sample.json").write_text(json.dumps({"header": head | {"gpu": None}, "rows": []}))
    text = roofline_page.page(tmp_path)
    assert "| a shape | shared [triton] | gpu | 12.5 us | 3.00x a copy | 2x met |" in text
    assert "No card has run this" not in text and text.count("### ") == 1


def test_costs_are_bytes_or_operations_over_what_a_card_reaches():
    from vstar_fast.bench import cost

    card = cost.Card("test", 100, 1e12, 1e15)
    moving = cost.Cost(9e9, 1e9, 1000, 2)
    assert moving.seconds(card) == pytest.approx(0.01) and moving.seconds(card, 1e12) == pytest.approx(0.009)
    computing = cost.Cost(1e6, 8e12, 150, 1)
    assert computing.waves(card) == 1.5 and computing.filled(card) == 0.75
    assert computing.seconds(card) == pytest.approx(0.01 / 0.75)
    assert "bound by operations" in computing.line(card) and "bound by bytes" in moving.line(card)
    assert cost.Cost(1e9, 1e6, 25, 1).seconds(card) == pytest.approx(1e9 / 0.9e12 / 0.5)  # a quarter of the processors


def test_prompts_of_the_bench_are_equal_and_what_is_absent_is_said(monkeypatch):
    from vstar_fast.bench import cost, prefix_attention

    op = prefix_attention.prefix_attention
    monkeypatch.setattr(prefix_attention, "prefix_attention", lambda q, levels, backend: op(q, levels, backend="flash"))
    made = bench()
    shape = prefix_attention.Shape("small", 4, 2, 16)
    prefix_attention.prompts(made, shape, cost.CARDS["H200"], count=2, tokens=40)
    assert [row.metric for row in made.rows if row.subject == "flash"] == ["cpu", "wall"]
    assert all(row.equal for row in made.rows)
    assert {row.subject for row in made.rows if row.metric == "absent"} == {f"flash-attn-{n}" for n in (2, 3, 4)}


def test_the_cycle_of_a_models_shape_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("VSTAR_FAST_CACHE", str(tmp_path))
    chosen = ["--model", "tiny", "--clips", "2", "--samples", "1", "--tokens", "6", "--steps", "1"]
    path = tmp_path / "out.json"
    assert runner.main("cycle", json_path=path, arguments=chosen) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["equal"] for row in rows] == [True] * 4 and "tiny" in rows[-1]["case"]


def test_constrained_answers_of_a_models_shape_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("VSTAR_FAST_CACHE", str(tmp_path))
    monkeypatch.setitem(cycle.MODELS, "cpu", "tiny")
    monkeypatch.setattr(constrained_answers, "TURNS", 1)
    assert all(row["equal"] for row in runner.run("constrained_answers")["rows"])
