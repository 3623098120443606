"""What the package costs to import, what a wheel holds, and that our folder names clash with nobody's."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vstar_fast import backends, probes
from vstar_fast.errors import BackendError

ROOT = Path(__file__).parents[1]
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("COV_", "COVERAGE", "PYTEST"))}


def python(code: str, **variables: str) -> object:
    """What `code` prints as JSON, in a fresh process outside the repository."""
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", env={**CLEAN, **variables})
    return json.loads(out.stdout)


IMPORT = """
import json, sys, time
began = time.process_time()
import vstar_fast, vstar_fast.backends, vstar_fast.errors, vstar_fast.ops
taken = time.process_time() - began
heavy = [m for m in ("torch", "transformers", "torchvision", "numpy", "av", "triton", "peft") if m in sys.modules]
print(json.dumps([taken, heavy]))
"""


def test_the_package_imports_nothing_heavy_in_under_300_ms():
    runs = [python(IMPORT) for _ in range(3)]
    assert [heavy for _, heavy in runs] == [[], [], []]
    assert min(taken for taken, _ in runs) < 0.3


def test_ops_work_without_transformers():
    """The page other projects import needs torch alone; every name on it loads."""
    code = """
import json, sys
import vstar_fast.ops as ops
names = [getattr(ops, name).__name__ for name in ops.__all__]
print(json.dumps([names, [m for m in ("transformers", "torchvision", "triton", "peft", "av") if m in sys.modules]]))
"""
    names, heavy = python(code)
    assert "label_match" in names and "sample" in names
    assert heavy == []


def test_ops_lists_its_names_and_no_others():
    import vstar_fast.ops as ops

    assert dir(ops) == sorted(ops.__all__)
    with pytest.raises(AttributeError, match="no attribute 'labelmatch'"):
        ops.labelmatch  # noqa: B018


@pytest.mark.parametrize("folder", ["kernels", "bench"])
def test_folders_beside_the_package_are_no_packages_of_their_own(folder):
    """An __init__.py there would hide Hugging Face's `kernels` from everything run in the repository."""
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_nobody_imports_the_bare_folders():
    bare = re.compile(r"^\s*(?:from|import)\s+(?:kernels|bench)\b", re.MULTILINE)
    files = [p for folder in ("vstar_fast", "kernels", "bench", "tests", "csrc") for p in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20
    assert [str(path) for path in files if bare.search(path.read_text())] == []


def test_ops_are_one_module_each():
    from vstar_fast import kernels, ops

    assert ops.label_match is sys.modules["vstar_fast.kernels.label_match"].label_match
    assert not any(name.split(".")[0] in ("kernels", "bench") for name in sys.modules if "label_match" in name)
    assert any(Path(place) == ROOT / "kernels" for place in kernels.__path__) or "site-packages" in str(
        kernels.__path__
    )


def test_the_compiled_module_has_the_types_its_stub_says():
    from vstar_fast import _C

    stub = (ROOT / "vstar_fast" / "_C.pyi").read_text()
    declared = set(re.findall(r"^(?:def )?(\w+)(?=\(|: )", stub, re.MULTILINE))
    built = {name for name in vars(_C) if not name.startswith("_")}
    optional = {name for name in declared if name.endswith("_cuda")}
    assert declared - optional <= built <= declared


def test_the_compiled_module_needs_no_cuda_libraries():
    from vstar_fast import _C

    needed = subprocess.run(["ldd", _C.__file__], capture_output=True, text=True).stdout
    assert "libc.so" in needed
    assert not re.search(r"libcud|libtorch|libnvrtc|not found", needed)


@pytest.mark.slow
def test_a_wheel_holds_code_data_and_script(tmp_path):
    """Built without CUDA, imported from the wheel's own contents in a process that sees no checkout."""
    pytest.importorskip("scikit_build_core")
    flags = ["--no-deps", "--no-build-isolation", "-q", f"-Cbuild-dir={tmp_path}/build", "-w", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", *flags, str(ROOT)]
    subprocess.run(command, check=True, env={**CLEAN, "VSTAR_CUDA": "OFF"})
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    for path in [*ROOT.glob("vstar_fast/**/*.jinja"), *ROOT.glob("vstar_fast/demo/assets/*")]:
        assert str(path.relative_to(ROOT)) in names
    for name in ("bench/on_gpu.sh", "bench/runner.py", "kernels/label_match/reference.py", "py.typed", "_C.pyi"):
        assert f"vstar_fast/{name}" in names
    assert not [name for name in names if name.endswith((".cu", ".cpp", ".pyc"))]
    code = """
import json, os, sys
sys.meta_path = [f for f in sys.meta_path if "ScikitBuild" not in type(f).__name__]
sys.path.insert(0, os.environ["SITE"])
import vstar_fast
from vstar_fast.ops import LabelSet, label_match
from vstar_fast.bench import runner
matched = label_match(["a Kick"], LabelSet(["kick"]), [0]).matched.tolist()
print(json.dumps([vstar_fast.__file__, matched, runner.names()]))
"""
    home, matched, benches = python(code, SITE=str(tmp_path / "site"))
    assert home.startswith(str(tmp_path)) and matched == [True] and "label_match" in benches


def test_backends_explain_themselves():
    rows = backends.doctor()
    assert {row.name for row in rows} >= {"device", "label_match", "sample", "frames", "dali", "flash-attn-4"}
    assert all(row.why for row in rows)
    match = next(row for row in rows if row.name == "label_match")
    assert match.backend == ("cuda" if backends.available("cuda").ok else "cpp")


def test_choosing_tells_what_it_passed_over(monkeypatch):
    found = {"cuda": backends.Probe(False, "no GPU", "buy one"), "cpp": backends.Probe(True, "built")}
    monkeypatch.setattr(backends, "available", lambda name: found.get(name, backends.Probe(True, "there")))
    choice = backends.choose("label_match", "cuda:0")
    assert choice == ("cpp", "built; not cuda: no GPU")
    with pytest.raises(BackendError, match="asked to run on 'cuda', but no GPU. Remedy: buy one"):
        backends.choose("label_match", "cuda", "cuda")
    assert backends.choose("sample", "cpu", "reference") == ("reference", "asked for by name")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("paint",), "unknown op or stage 'paint'"),
        (("sample", "tpu"), "device 'tpu' is not supported"),
        (("sample", "cpu", "dali"), "sample has no backend 'dali'; it has: cpp, reference, triton"),
    ],
)
def test_bad_choices_are_named(arguments, message):
    with pytest.raises(BackendError, match=message):
        backends.choose(*arguments)


def test_a_backend_that_takes_no_such_data_is_refused(monkeypatch):
    monkeypatch.setattr(backends, "available", lambda name: backends.Probe(True, "there"))
    with pytest.raises(BackendError, match="'triton' does not take data on 'cpu'; there: cpp, reference"):
        backends.choose("sample", "cpu", "triton")


def test_nothing_that_runs_is_an_error(monkeypatch):
    monkeypatch.setattr(backends, "available", lambda name: backends.Probe(False, "gone"))
    with pytest.raises(
        BackendError, match="label_match has no backend that runs on 'cpu': not cpp: gone; not reference"
    ):
        backends.choose("label_match")
    rows = backends.doctor()
    assert next(row for row in rows if row.name == "frames").backend == "none"


def test_probes_of_packages():
    assert backends.available("pyav").ok
    assert backends.available("reference").ok
    with pytest.raises(BackendError, match="unknown backend 'abacus'"):
        backends.available("abacus")
    missing = probes._module("no_such_module_anywhere", "nothing", "run: pip install nothing")()
    assert missing == (False, "the Python module no_such_module_anywhere is not installed", "run: pip install nothing")
    assert probes._module("no_such.sub", "nothing", "")().ok is False
    assert probes._module("json", "no-distribution-json", "")() == (True, "json is importable", "")


COMPAT = """
import json
from vstar_fast.torchvision_compat import ensure
how = ensure()
import torch
from torchvision.transforms import v2
small = v2.functional.resize(torch.arange(48.0).reshape(3, 4, 4), [2, 2])
from transformers import LlavaOnevisionVideoProcessor
made = LlavaOnevisionVideoProcessor()(videos=torch.zeros(2, 3, 32, 32, dtype=torch.uint8), return_tensors="pt")
made = len(made["pixel_values_videos"])
register = torch.library.register_fake.__module__
print(json.dumps([how, ensure(), torch.version.cuda is None, list(small.shape), made, register]))
"""


def test_torchvision_works_beside_this_torch():
    """Resize and a video processor of transformers run; torch is left as it was."""
    how, again, cpu_only, shape, videos, register = python(COMPAT)
    assert how == again
    assert how in (("plain", "compat") if cpu_only else ("plain",))
    assert (shape, videos) == ([3, 2, 2], 1)
    assert register == "torch.library"
