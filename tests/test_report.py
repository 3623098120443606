"""The report of a made-up run: every number on the page, the samples, and the filters at work in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tiny
from vstar_fast import report
from vstar_fast.errors import RunError
from vstar_fast.files import write_json, write_jsonl
from vstar_fast.records import Candidate, Example, Label, LabeledVideo, Question, Rejected, Span, Verdict, to_dict
from vstar_fast.report import charts
from vstar_fast.run import contents

COLOURS = ("red", "green", "blue")
NASTY = 'a </script><img src=x onerror="document.title=1"> & 🎈 Answer: red'


def estimate(value: float, low: float, high: float, n: int = 300) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def stage(seconds: float, peak_mib: float) -> dict[str, Any]:
    return {"seconds": seconds, "cpu_seconds": seconds, "calls": 1, "peak_mib": peak_mib, "items": {}, "per_second": {}}


def model(value: float, spread: float) -> dict[str, Any]:
    return {
        "accuracy": estimate(value, value - spread, value + spread),
        "metrics": {
            "class": {"n": 300, "accuracy": value},
            "number": {"n": 9, "accuracy": 0.125, "median_relative_error": float("nan")},
        },
        "dev": {"accuracy": estimate(value + 0.031, value - 0.04, value + 0.1, 75), "metrics": {}},
    }


SUMMARY: dict[str, Any] = {
    "state": "done",
    "stopped": "loop.max_cycles = 2 reached",
    "recipe": "fast",
    "seed": 7,
    "config_hash": "0123456789abcdef",
    "primary": "class",
    "videos": {"train": 6, "dev": 3, "test": 3},
    "base": model(0.413, 0.055),
    "cycles": [
        model(0.567, 0.054)
        | {
            "asked": {"direct": 240, "rationalized": 90},
            "kept": {"direct": 150, "rationalized": 71},
            "yield": {"direct": 0.625, "rationalized": 0.8},
            "rejected": {"wrong_label": 311, "no_answer": 42, "leak": 19},
            "chance_acceptance": 0.233,
        },
        model(0.634, 0.05)
        | {
            "asked": {"direct": 240, "rationalized": 0},
            "kept": {"direct": 187, "rationalized": 0},
            "yield": {"direct": 0.779, "rationalized": 0.0},
            "rejected": {"wrong_label": 207, "no_answer": 8},
            "chance_acceptance": 0.233,
        },
    ],
    "gain": {"value": 0.221, "low": 0.163, "high": 0.278, "n": 300},
    "controls": {
        "labels_only": {"accuracy": estimate(0.6, 0.55, 0.65)},
        "shuffled": {"accuracy": estimate(0.394, 0.34, 0.45)},
    },
    "stages": {"generate": stage(191.4, 2210.0), "encode": stage(48.0, 1650.5), "finetune": stage(125.5, 3105.2)},
    "frames": {"decoded": 12, "embeddings_hit": 36, "stalls": 3, "stall_s": 0.25, "error:truncated": 1},
    "backends": {"frames": {"pyav": 12}, "label_match": {"cpp": 4}},
    "reasons": {"generation": "plain: its layers cannot be packed"},
    "versions": {"torch": "2.13.0"},
}


def answer(
    question: Question, sample: int, mode: str, text: str, reason: str, read: str | None
) -> dict[str, dict[str, Any]]:
    """One row of judged.jsonl, the last word marked when something was read."""
    start = len(text) - len(text.split()[-1])
    span = None if read is None else Span((start, len(text)), (len(text[:start].encode()), len(text.encode())))
    candidate = Candidate(
        question.id, question.video_id, sample, mode, text, (1, 2), -3.5, "stop", 5, "tok", {}, "class/1"
    )
    passed = reason == "ok"
    verdict = Verdict(question.id, mode, sample, passed, reason, (read,), (span,), (float(passed),))
    return {"candidate": to_dict(candidate), "verdict": to_dict(verdict)}


def write_run(root: Path) -> Path:
    """A run folder of two cycles over six training clips and three test clips, one of them lost."""
    videos, asked = [], []
    for i in range(9):
        split, colour = ("train" if i < 6 else "test"), COLOURS[i % 3]
        path = tiny.write_clip(root / "clips" / f"{i}.mp4", tiny.COLOURS[colour])
        labels = (Label("class", "colour", colour, set="colours"),)
        videos.append(LabeledVideo(f"{split}-{i}", str(path), labels, split))
        asked.append(Question(f"{split}-{i}/0-class", f"{split}-{i}", f"Which colour is clip {i}?", labels, "class/1"))
    (root / "clips" / "5.mp4").unlink()
    run = root / "run"
    write_json(run / "summary.json", SUMMARY)
    (run / "config.toml").write_text('seed = 7\n[model]\nbase = "<tiny>"\n')
    write_jsonl(run / "videos.jsonl", [to_dict(v) for v in videos])
    write_jsonl(run / "questions.jsonl", [to_dict(q) for q in asked])
    gone = [Rejected("frames", "x", "truncated", "x.mp4: cut off"), Rejected("read", "y", "unknown_kind", "row 3")]
    write_jsonl(run / "rejected.jsonl", [to_dict(r) for r in gone])
    train, test = asked[:6], asked[6:]
    for cycle in range(2):
        where = run / f"cycle-{cycle:02d}"
        direct, kept = [], []
        for i, q in enumerate(train):
            gold = q.labels[0].value
            right = f"A plain {gold} field. Answer: {gold}" if i else NASTY
            wrong = f"It looks dull. Answer: {COLOURS[(i + 1) % 3]}"
            direct += [answer(q, 0, "direct", wrong, "wrong_label", wrong.split()[-1])]
            direct += [answer(q, 1, "direct", right, "ok", gold)] if i < 4 + cycle else []
            kept += [Example(q.video_id, q.id, q.text, right, "direct")] if i < 4 else []
        direct.append(answer(train[0], 2, "direct", "I cannot tell", "no_answer", None))
        write_jsonl(where / "generate" / "judged.jsonl", direct)
        write_jsonl(where / "generate" / "parts" / "abc.jsonl", [])
        if cycle == 0:
            text = f"Its field is even. Answer: {train[5].labels[0].value}"
            rows = [answer(train[5], 0, "rationalized", text, "ok", train[5].labels[0].value)]
            write_jsonl(where / "rationalize" / "judged.jsonl", rows)
        write_jsonl(where / "examples.jsonl", [to_dict(e) for e in kept])
        tested = [answer(q, 0, "direct", f"Answer: {q.labels[0].value}", "ok", q.labels[0].value) for q in test]
        write_jsonl(where / "metrics" / "test" / "judged.jsonl", tested)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return report.write(run)


def text_of(page: str) -> str:
    """What a reader sees of HTML: no tags, no scripts, one space between words."""
    page = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), flags=re.S)
    assert found
    return json.loads(found[1])


def test_numbers_on_the_page(page: Path) -> None:
    text = text_of(page.read_text())
    for part in (
        "41.3 → 63.4 % accuracy on test",
        "by +22.1 points (95 % interval +16.3 to +27.8, paired over 300 clips",
        "6 train, 3 dev, 3 test",
        "stopped loop.max_cycles = 2 reached",
        "0 direct 150 of 240 0 rationalized 71 of 90 1 direct 187 of 240",
        "wrong label 311 207 no answer 42 8 leak 19 0",
        "generate 3 min 11 s 2210 MiB finetune 2 min 05 s 3105 MiB encode 48.0 s 1650 MiB",
        "class accuracy 0.413 0.567 0.634",
        "number median relative error – – –",
        "clips decoded 12 encodings from the cache 36 times the model waited for a clip 3 seconds it waited 0.25",
        "not read: truncated 1",
        "2 inputs left out: frames: truncated 1, read: unknown_kind 1",
        'base = "<tiny>"',
        "frames pyav (12 calls)",
        "generation plain: its layers cannot be packed",
        "torch 2.13.0",
    ):
        assert part in text, part


def test_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", text)
    assert "url(" not in text and "@import" not in text and "fetch(" not in text


def test_chart_puts_estimates_at_their_height() -> None:
    marks = [
        [charts.Mark("base", "test", estimate(0.2, 0.1, 0.3))],
        [charts.Mark("x<y", "control", estimate(0.4, 0.3, 0.5))],
    ]
    svg = charts.accuracy(marks)
    scale = {int(v): float(y) - 4 for y, v in re.findall(r'class="tick" x="[\d.]+" y="([\d.]+)">(\d+) %', svg)}
    assert list(scale) == [0, 10, 20, 30, 40, 50, 60]
    dot = re.search(r'<circle class="dot" cx="[\d.]+" cy="([\d.]+)"', svg)
    square = re.search(r'<rect class="dot" x="[\d.]+" y="([\d.]+)" width="9"', svg)
    assert dot and square
    assert float(dot[1]) == pytest.approx(scale[20], abs=0.1)
    assert float(square[1]) + 4.5 == pytest.approx(scale[40], abs=0.1)
    whiskers = re.findall(r'd="M[\d.]+ ([\d.]+)h10m-5 0V([\d.]+)m', svg)
    assert [tuple(map(float, w)) for w in whiskers] == [
        pytest.approx((scale[10], scale[30]), abs=0.1),
        pytest.approx((scale[30], scale[50]), abs=0.1),
    ]
    assert "<title>base, test: 20.0 % [10.0, 30.0] (n = 300)</title>" in svg and "x&lt;y" in svg


def test_samples_with_spans_and_what_was_kept(page: Path) -> None:
    data = data_of(page)
    first = next(q for q in data["questions"] if q["video"] == "train-0")
    assert (first["text"], first["labels"], first["file"]) == ("Which colour is clip 0?", ["red"], "0.mp4")
    nasty = next(s for s in first["samples"] if s["cycle"] == 0 and s["sample"] == 1)
    assert nasty["text"] == NASTY and nasty["kept"] and nasty["passed"]
    ((start, end),) = nasty["spans"]
    assert NASTY[start:end] == "red"
    wrong = next(s for s in first["samples"] if s["cycle"] == 1 and s["sample"] == 0)
    assert (wrong["reason"], wrong["extracted"], wrong["kept"]) == ("wrong_label", ["green"], False)
    modes = {(s["cycle"], s["mode"]) for q in data["questions"] for s in q["samples"]}
    assert modes == {(0, "direct"), (1, "direct"), (0, "rationalized"), (0, "test"), (1, "test")}
    # One more passes in cycle 1, but only four are in examples.jsonl.
    kept = [s for q in data["questions"] for s in q["samples"] if s["kept"]]
    assert len(kept) == 8


def test_strips_show_the_clips(page: Path, run: Path) -> None:
    import base64
    import io

    import av

    strips = data_of(page)["strips"]
    assert sorted(strips) == sorted([f"train-{i}" for i in range(5)] + [f"test-{i}" for i in range(6, 9)])
    for name, colour in (("train-0", (220, 30, 30)), ("train-1", (30, 200, 40)), ("test-8", (40, 40, 220))):
        with av.open(io.BytesIO(base64.b64decode(strips[name].removeprefix("data:image/jpeg;base64,")))) as file:
            picture = next(file.decode(video=0)).to_ndarray(format="rgb24")
        assert picture.shape == (96, 5 * 96, 3)
        for k in range(5):
            part = picture[:, 96 * k : 96 * (k + 1)].reshape(-1, 3)
            bright = part[part.max(axis=1) > 100]
            # Seven eighths are the colour, the moving bar is black.
            assert 0.75 < len(bright) / len(part) < 0.95
            assert abs(bright.mean(axis=0) - colour).max() < 20, (name, k)


def test_choice_keeps_rare_kinds(run: Path) -> None:
    samples = contents.load(run).samples
    assert len(samples) == 6 * 2 + 4 + 5 + 2 + 1 + 6
    assert contents.choose(samples, 1000) == samples
    many = samples * 30
    chosen = contents.choose(many, 60)
    assert len(chosen) == 60
    assert {s.stratum for s in chosen} == {s.stratum for s in samples}
    # After the strata whole questions are filled in, asked and held-out ones in turn.
    more = contents.choose(many, 300)
    assert 0.2 < sum(s.evaluated for s in more) / 300 < 0.8
    assert [many.index(s) for s in chosen[:9]] == sorted(many.index(s) for s in chosen[:9])


def test_caps(run: Path, tmp_path: Path) -> None:
    data = data_of(report.write(run, tmp_path / "small.html", samples=5, thumbnails=2))
    assert sum(len(q["samples"]) for q in data["questions"]) == 5
    assert len(data["strips"]) <= 2


def test_what_cannot_be_reported(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no answers yet"):
        report.write(tmp_path)
    write_json(tmp_path / "summary.json", {"runs": [], "seeds": [3, 4]})
    with pytest.raises(RunError, match="seed-3, .*seed-4"):
        report.write(tmp_path)


def test_a_run_without_test_clips_says_so_and_shows_no_nan(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    none = {"value": None, "low": None, "high": None, "n": 0}
    for part in (summary["base"], *summary["cycles"], *summary["controls"].values()):
        part |= {"accuracy": none, "dev": {"accuracy": none, "metrics": {}}, "metrics": {}}
    summary["gain"] = none
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    page = report.write(tmp_path / "run").read_text()
    head = text_of(page[: page.index("<script")])
    assert "Not measured" in head and "the data has no test clips" in head
    assert "nan" not in page[: page.index("<script")].lower()


def test_run_without_a_summary_shows_why_it_stopped(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "early"
    shutil.copytree(run, folder)
    for path in ("summary.json", "cycle-01", "cycle-00/metrics", "cycle-00/adapter"):
        shutil.rmtree(folder / path, ignore_errors=True)
        (folder / path).unlink(missing_ok=True)
    page = report.write(folder)
    text = text_of(page.read_text())
    assert "Not finished" in text and "stopped not finished" in text and "accuracy on test" not in text
    assert "0 direct 4 of 6 0 rationalized 0 of 1" in text
    assert "wrong label 6 no answer 1" in text
    assert sum(len(q["samples"]) for q in data_of(page)["questions"]) == 6 + 4 + 1 + 1


# -- in a browser --------------------------------------------------------------------------------------

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="headless Chromium is missing: apt-get install chromium")


def chromium(*options: str, url: str, profile: Path) -> str:
    assert CHROMIUM
    quiet = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
    command = [CHROMIUM, *quiet, f"--user-data-dir={profile}", "--virtual-time-budget=3000", *options, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@browser
@pytest.mark.parametrize(
    ("filters", "count", "inside", "outside"),
    [
        ("", 30, "Which colour is clip 8?", None),
        ("#verdict=passed&cycle=1", 8, "A plain green field.", "It looks dull."),
        ("#reason=no_answer", 2, "I cannot tell", "A plain"),
        ("#label=blue&mode=test", 2, "Which colour is clip 8?", "Which colour is clip 2?"),
        ("#q=even+field", 1, "Its field is even.", "A plain"),
        ("#q=nowhere", 0, "No sample fits", "A plain"),
    ],
)
def test_filters(page: Path, tmp_path: Path, filters: str, count: int, inside: str, outside: str | None) -> None:
    dom = chromium("--dump-dom", url=page.as_uri() + filters, profile=tmp_path)
    text = text_of(dom)
    assert f"{count} of 30 shown" in text
    cards = text[text.index("Show all") :]
    assert inside in cards
    assert outside is None or outside not in cards
    if not filters:
        assert text_of(NASTY.replace("<", "&lt;")) in cards
        assert "Answer: <mark>red</mark>" in dom and "✓ kept" in cards and "✗ wrong label" in cards
        assert "read as: green" in cards
        assert "<title>run: vstar-fast report</title>" in dom
        assert dom.count('src="data:image/jpeg') == 8 and "no picture" in cards


@browser
def test_screenshot_is_not_blank(page: Path, tmp_path: Path) -> None:
    import av

    shot = tmp_path / "shot.png"
    chromium(f"--screenshot={shot}", "--window-size=1200,1000", url=page.as_uri(), profile=tmp_path / "profile")
    with av.open(str(shot)) as file:
        picture = next(file.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert picture.shape == (1000, 1200, 3)
    teal = (abs(picture - (31, 111, 139)).max(axis=2) < 12).sum()
    assert teal > 2000  # the last accuracy, the chart and the bars
