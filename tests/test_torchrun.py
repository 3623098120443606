"""Several processes at one run: each does its share, and the run comes out as one process makes it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", "--"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    given = tiny.settings(tiny.write_data(root / "data", train=9), tiny.write_model(root / "model"))
    given["loop"] = {"max_cycles": 1}
    given["generate"] |= {"batch_size": 8}
    given["evaluate"] |= {"score_labels": True, "batch_size": 2}
    given["finetune"] |= {"checkpoint_steps": 1}
    lines = [f"[{s}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in rows.items()) for s, rows in given.items()]
    (root / "run.toml").write_text("\n".join(lines) + "\n")
    return root / "run.toml"


def command(settings, run):
    return [str(Path(sys.executable).with_name("vstar-fast")), "cycle", "--config", str(settings), "--run", str(run)]


def lines(path):
    return [json.loads(x) for x in Path(path).read_text().splitlines()]


def steady(run):
    """What must not depend on time or on how many processes there were."""
    drop = ("stages", "backends", "frames", "processes", "versions")
    return {k: v for k, v in json.loads((run / "summary.json").read_text()).items() if k not in drop}


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    run = tmp_path_factory.mktemp("one") / "run"
    done = subprocess.run(command(settings, run), capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.fixture(scope="module")
def together(settings, tmp_path_factory):
    """(the run of two processes, what they said)."""
    run = tmp_path_factory.mktemp("two") / "run"
    done = subprocess.run([*TORCHRUN, *command(settings, run)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    return run, done.stderr


def test_two_processes_make_the_run_of_one(alone, together):
    run, said = together
    assert steady(run) == steady(alone) and json.loads((run / "summary.json").read_text())["processes"] == 2
    parts = {str(p.relative_to(alone)) for p in alone.rglob("parts/*.jsonl")}
    assert {str(p.relative_to(run)) for p in run.rglob("parts/*.jsonl")} == parts and len(parts) > 8
    for name in ("cycle-00/generate/judged.jsonl", "cycle-00/examples.jsonl", "questions.jsonl"):
        assert lines(run / name) == lines(alone / name)
    mine, other = (load_file(at / "cycle-00/adapter/adapter_model.safetensors") for at in (run, alone))
    for name, value in other.items():
        torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-4)
    told = [x for x in said.splitlines() if "generate" in x and "done in" in x]
    assert len(told) == 1, said  # the second process keeps quiet
    assert not list(run.rglob("*.tmp"))


def test_split_weights_are_whole_again_when_answers_are_drawn(settings, alone, tmp_path):
    run = tmp_path / "run"
    split = [*TORCHRUN, *command(settings, run), "--set", "finetune.split=true"]
    done = subprocess.run(split, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert steady(run) | {"config_hash": ""} == steady(alone) | {"config_hash": ""}
    mine, other = (load_file(at / "cycle-00/adapter/adapter_model.safetensors") for at in (run, alone))
    for name, value in other.items():
        torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-4)


def test_each_process_draws_its_share(together):
    """What the first process drew: about half of the answers, never all of them."""
    run, _ = together
    stages = json.loads((run / "stages.json").read_text())
    drawn = len(lines(run / "cycle-00/generate/judged.jsonl"))
    assert 0.1 * drawn < stages["generate"]["items"]["answers"] < 0.9 * drawn
    assert 0 < stages["evaluate"]["items"]["scored"] < 12


def test_the_death_of_one_is_an_error_on_all(settings, tmp_path):
    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    started = subprocess.Popen(
        [*TORCHRUN, *command(settings, run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        victim = _child(started.pid, run)
        os.kill(victim, signal.SIGKILL)
        _, errors = started.communicate(timeout=120)
    finally:
        started.kill()
    assert started.returncode != 0 and "Signal 9 (SIGKILL)" in errors
    assert not (run / "summary.json").exists()
    done = subprocess.run([*TORCHRUN, *command(settings, run)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]


def _child(parent, run):
    """The second worker, once the run has begun."""
    for _ in range(600):
        time.sleep(0.1)
        if (run / "questions.jsonl").exists():
            for folder in Path("/proc").glob("[0-9]*"):
                if _is_second(folder, parent):
                    return int(folder.name)
    raise AssertionError("no second process was started")


def _is_second(folder, parent):
    try:
        ours = f"PPid:\t{parent}\n" in (folder / "status").read_text()
        return ours and b"\0RANK=1\0" in b"\0" + (folder / "environ").read_bytes()
    except OSError:
        return False
