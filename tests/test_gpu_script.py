"""bench/on_gpu.sh without a GPU: what runs in which order, what does not and is said; tools that only write down."""

import hashlib
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from vstar_fast.bench import runner

SCRIPT = Path(__file__).parents[1] / "bench" / "on_gpu.sh"
BENCHES = ("constrain", "crew", "generate", "newer", "prefix_attention")
PYTHON = """#!/bin/bash
echo "$VSTAR_CUDA $VSTAR_CUDA_ARCH $*" >>"$CALLS"
case "$*" in
  *c.has_cuda*) exit "${NO_CUDA_CODE:-0}" ;;
  *"runner.names()"*) [ -z "$BROKEN" ] || { echo "ImportError: $BROKEN" >&2; exit 1; }; printf '%s\\n' $BENCHES ;;
  *"pip install"*" -e ."*) sleep "${BUILDS:-0}" ;;
  *"pip show"*) exit 1 ;;
  *get_device_capability*) echo 90 ;;
  *"bench.runner $FAILS "*) exit 3 ;;
  *"bench.runner $HANGS "*) sleep 60 ;;
  "- "*) exec "$REAL" "$@" ;;
esac
"""
CHECK = '#!/bin/bash\nwhile [ "$1" != "$PYTHON" ]; do shift; done\nexec "$@"\n'


def tool(path, text="#!/bin/bash\n"):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def script(tmp_path):
    """Runs the script; (exit status, output, the calls of Python)."""
    tools, out, calls = tmp_path / "tools", tmp_path / "out", tmp_path / "calls"
    tools.mkdir()
    for name in ("nvidia-smi", "nvcc"):
        tool(tools / name)
    tool(tools / "compute-sanitizer", CHECK)
    base = {
        "PATH": f"{tools}:/usr/bin:/bin", "CUDA": str(tmp_path), "REAL": sys.executable, "CALLS": str(calls),
        "PYTHON": tool(tools / "python", PYTHON), "BENCHES": " ".join(BENCHES), "HOME": str(tmp_path),
        "WHEELS": str(tmp_path / "wheels"),
        **dict.fromkeys(("BROKEN", "VSTAR_CUDA"), ""), **dict.fromkeys(("FAILS", "HANGS"), "nothing"),
    }  # fmt: skip

    def run(*arguments, without=(), **more):
        calls.write_text("")
        for name in without:
            (tools / name).unlink(missing_ok=True)
        environment = {**base, **{name: str(value) for name, value in more.items()}}
        done = subprocess.run(["bash", SCRIPT, out, *arguments], capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()

    run.out = out
    return run


def steps(output):
    return re.findall(r"^== ([\w-]+)$", output, re.M)


def unproven(output):
    return list(re.findall(r"^  - (step .*)$", output, re.M))


def test_all_steps_in_order_and_none_twice(script):
    status, output, calls = script()
    assert status == 0, output
    first = ["env", "wheels", "build", "test", "benches", "bench-prefix_attention", "bench-constrain"]
    then = ["memcheck", "bench-generate", "bench-newer", "families", "racecheck", "compile", "roofline", "unproven"]
    assert steps(output) == [*first, *then]  # and none of `crew`, which is the CPU's
    assert any(call.startswith("ON 90-real -m pip install") for call in calls)
    (tested,) = [call for call in calls if "gpu-tests.xml" in call]
    assert "tests/ops/test_constrain_state.py" in tested and "test_families_on_gpu" not in tested
    checked = [call for call in calls if call.endswith("tests/ops")]
    assert len(checked) == 2 and all("label or constrain or value or" in call for call in checked)
    assert not unproven(output)
    status, output, _ = script()
    assert status == 0 and steps(output) == ["wheels", "benches", "roofline", "unproven"]
    assert "== memcheck: done before" in output


def test_without_nvcc_what_needs_no_cuda_kernel_runs_and_the_rest_is_listed(script):
    status, output, calls = script(without=("nvcc",), NO_CUDA_CODE=1)
    assert status == 1
    assert any(call.startswith("OFF 90-real -m pip install") for call in calls)
    assert any("-m pytest -m gpu" in call and call.endswith("-k not (label or constrain or value)") for call in calls)
    assert [call for call in calls if call.endswith("tests/ops") and "constrain" in call] == []
    assert any("bench.runner generate" in call for call in calls)
    assert not any("bench.runner constrain" in call for call in calls)
    assert unproven(output) == [
        "step build: without the CUDA kernels: there is no nvcc",
        "step test: without tests of the CUDA kernels, which are not built",
        "step bench-constrain: not run, it needs the CUDA kernels",
        "step memcheck: without the CUDA kernels, which are not built",
        "step racecheck: without the CUDA kernels, which are not built",
    ]
    done = {path.stem for path in script.out.glob("*.done")}
    benches = {f"bench-{name}" for name in BENCHES if name not in ("constrain", "crew")}
    assert done == {"env", "wheels", "compile", "families", "benches", *benches, "roofline", "unproven"}


def test_benches_that_cannot_be_imported_are_a_failed_step(script):
    status, output, calls = script(BROKEN="no module named x")
    assert status == 1 and "ImportError: no module named x" in output and "== benches FAILED (status 1)" in output
    assert unproven(output) == [f"step benches: failed, see {script.out}/benches.log"]
    assert not any("bench.runner" in call and "--json" in call for call in calls)
    assert script()[0] == 0


def test_a_step_that_fails_or_hangs_does_not_stop_the_others(script):
    status, output, _ = script(FAILS="constrain", HANGS="prefix_attention", LIMIT=3)
    assert status == 1
    assert (
        "== bench-prefix_attention FAILED (status 124)" in output and "== bench-constrain FAILED (status 3)" in output
    )
    assert (script.out / "bench-generate.done").exists() and (script.out / "unproven.done").exists()
    assert len(unproven(output)) == 2
    assert script()[0] == 0 and not (script.out / "not-run").exists()


def test_a_bench_with_all_its_rows_is_not_run_again_and_one_that_was_cut_is(script):
    script.out.mkdir()
    (script.out / "bench-constrain.json").write_text('{\n "header": {},\n "rows": []\n}\n')
    (script.out / "bench-generate.json").write_text('{\n "rows": [],\n "cut": true\n}\n')
    status, output, calls = script()
    assert status == 1 and "== bench-constrain: done before, with rows that are not equal" in output
    assert "bench-constrain" not in steps(output) and "bench-generate" in steps(output)


def test_what_there_is_no_time_for_is_listed_and_runs_at_the_next_call(script):
    status, output, calls = script(TOTAL=241, BUILDS=3)
    assert status == 1 and not any("gpu-tests.xml" in call for call in calls)
    found = unproven(output)
    assert any(re.fullmatch(r"step test: not run, \d+ s are left and it takes about 240; call again", x) for x in found)
    assert "bench-prefix_attention" in steps(output)  # what fits does run
    status, output, _ = script()
    assert status == 0 and "== build: done before" in output and "test" in steps(output)


def test_wheels_come_in_parts_and_what_is_left_is_kept(script, tmp_path):
    wheels, whole = tmp_path / "wheels", bytes(range(256)) * 4
    wheels.mkdir()
    (wheels / "big-1-py3-none-any.whl.sha256").write_text(
        f"{hashlib.sha256(whole).hexdigest()}  big-1-py3-none-any.whl\n"
    )
    (wheels / "big-1-py3-none-any.whl.part01").write_bytes(whole[500:])
    kept = tmp_path / "kept.tar.gz"
    status, output, calls = script("wheels", KEEP=kept)
    assert status == 64 and "wheels: without  big-1-py3-none-any.whl, whose parts are not all here" in output
    assert not any("pip install" in call for call in calls)
    with tarfile.open(kept) as archive:
        assert {"./wheels.log", "./not-run"} <= set(archive.getnames())
    (wheels / "big-1-py3-none-any.whl.part01").unlink()
    (wheels / "big-1-py3-none-any.whl.part00").write_bytes(whole[:500])
    status, output, calls = script("wheels")
    joined = script.out / "wheels" / "big-1-py3-none-any.whl"
    assert status == 0 and joined.read_bytes() == whole and not list(joined.parent.glob("*.part*"))
    assert any(f"pip install -q --no-deps {joined}" in call for call in calls)


def test_a_checker_that_is_missing_proves_nothing(script):
    status, output, _ = script("memcheck", without=("compute-sanitizer",))
    assert status == 1 and "no compute-sanitizer here" in output
    assert script("memcheque")[0] == 2


def test_the_benches_that_it_names_are_there():
    text = SCRIPT.read_text()
    lists = {name: re.search(rf'^{name}="([^"]*)"', text, re.M)[1].split() for name in ("FIRST", "OTHER", "ON_CPU")}
    assert set(sum(lists.values(), [])) <= set(runner.names())  # those in no list come last
    assert set(re.search(r'^NEED_CUDA="([^"]*)"', text, re.M)[1].split()) <= set(runner.names())
    takes = dict(re.findall(r"\[([\w-]+)\]=(\d+)", text))
    assert {f"bench-{name}" for name in lists["FIRST"]} <= set(takes)
    assert all(int(seconds) <= 540 for seconds in takes.values())
