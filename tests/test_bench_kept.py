"""What a bench leaves when it is cut short, and what its header says of a card."""

import json
import subprocess

import pytest
from vstar_fast.bench import machine, roofline_page, runner

NVIDIA_SMI = "#!/bin/sh\necho '580.159.04, 1980, 3201, 1980, 3201, 41, 310.22, 700.00, Enabled'\n"


def test_a_bench_that_breaks_leaves_the_rows_that_it_has(tmp_path, monkeypatch):
    from vstar_fast.bench import sample

    fixed = {"subject": "a", "baseline": "b", "metric": "cpu", "unit": "us", "ratio": 2.0, "equal": True}

    def breaks(bench, quick):
        bench.add(case="first", value=1.0, **fixed)
        bench.absent("second", "a", "it is not here")
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(sample, "run", breaks)
    path = tmp_path / "bench-sample.json"
    with pytest.raises(RuntimeError, match="out of memory"):
        runner.main("sample", quick=True, json_path=path)
    report = json.loads(path.read_text())
    assert [row["case"] for row in report["rows"]] == ["first", "second"] and report["cut"] is True
    report["header"]["gpu"] = "NVIDIA H200"
    path.write_text(json.dumps(report))
    assert "### sample: NVIDIA H200" in (text := roofline_page.page(tmp_path)) and ", cut short" in text


def test_the_header_has_the_cards_driver_and_clocks(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.card() is None
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = machine.card()
    assert found["driver_version"] == "580.159.04" and found["clocks.sm"] == "1980"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert machine.card() is None


def test_the_header_has_the_commit_of_a_checkout_and_no_other(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    mail = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", tmp_path, *mail, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    told = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "bench" / "machine.py"))
    assert told.stdout.startswith(machine.commit())
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "site-packages" / "vstar_fast" / "bench" / "machine.py"))
    assert machine.commit() is None
