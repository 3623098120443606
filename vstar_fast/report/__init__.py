"""A run as one HTML page that works offline: figures, time, and its samples with pictures and verdicts."""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

from vstar_fast.files import write_text
from vstar_fast.progress import clock
from vstar_fast.questions import label_text
from vstar_fast.records import LabeledVideo
from vstar_fast.report import charts
from vstar_fast.run.contents import Run, Sample, choose, load, mode_of

STRIP_FRAMES = 5
STRIP_HEIGHT_PX = 96


def write(run_dir: Path, out: Path | None = None, *, samples: int = 600, thumbnails: int = 150) -> Path:
    """Write the report of a run folder to `out` (default: `report.html` in it); returns the file.

    At most `samples` answers are shown, some of every cycle, mode and reason, and `thumbnails` clips with pictures.
    """
    run = load(run_dir)
    shown = choose(run.samples, samples)
    clips = dict.fromkeys(s.candidate.video_id for s in shown)
    strips = filmstrips([run.videos[i] for i in clips if i in run.videos][:thumbnails])
    path = out or run_dir / "report.html"
    write_text(path, render(run, shown, strips))
    return path


def filmstrips(videos: Iterable[LabeledVideo]) -> dict[str, str]:
    """Frames of each readable clip side by side, as one JPEG data URI a video id."""
    import torch

    from vstar_fast import frames
    from vstar_fast.config import FramesConfig
    from vstar_fast.records import Frames

    strips: dict[str, str] = {}
    for found in frames.read(videos, FramesConfig(STRIP_FRAMES)):
        if isinstance(found, Frames):
            strip = torch.cat(list(found.data), dim=1).numpy()
            strips[found.video_id] = "data:image/jpeg;base64," + base64.b64encode(_jpeg(strip)).decode()
    return strips


def _jpeg(picture: Any) -> bytes:
    """An RGB picture `[H, W, 3]` as JPEG, STRIP_HEIGHT_PX high."""
    import av

    height = STRIP_HEIGHT_PX
    width = max(2, round(picture.shape[1] * height / picture.shape[0] / 2) * 2)
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame = frame.reformat(
        width, height, format="yuvj420p", interpolation="AREA", dst_colorspace="ITU601", dst_color_range="JPEG"
    )
    codec: Any = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = width, height, "yuvj420p", Fraction(1, 25)
    codec.options = {"qmin": "4", "qmax": "6"}
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def render(run: Run, shown: Sequence[Sample], strips: Mapping[str, str]) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(pct=lambda x: f"{100 * x:.1f}", clock=clock, percent=charts.percent)
    template = environment.from_string(_resource("report.html.jinja"))
    s = run.summary
    return template.render(
        s=s,
        name=run.root.resolve().name,
        chart=charts.accuracy(_columns(s)),
        yields=_yields(s["cycles"]),
        reasons=_reasons(s["cycles"]),
        stages=_stages(s.get("stages", {})),
        kinds=_kinds(s),
        frames=_frames(s.get("frames", {})),
        unread=Counter(f"{r['stage']}: {r['reason']}" for r in run.rejected).most_common(),
        left_out=len(run.rejected),
        rejected=run.rejected[:200],
        config=_config(run.root),
        style=_resource("report.css"),
        script=_resource("report.js"),
        data=_script_safe(_browser(run, shown, strips)),
    )


def _resource(name: str) -> str:
    return resources.files(__name__).joinpath("templates", name).read_text(encoding="utf-8")


def _config(root: Path) -> str:
    path = root / "config.toml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _script_safe(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _models(s: Mapping[str, Any]) -> dict[str, Any]:
    """The base model and every cycle's, as far as they have been measured."""
    models = {"base": s.get("base", {})} | {f"cycle {i}": c for i, c in enumerate(s["cycles"])}
    return {name: m for name, m in models.items() if "accuracy" in m}


def _columns(s: Mapping[str, Any]) -> list[list[charts.Mark]]:
    columns = [
        [charts.Mark(name, "test", m["accuracy"]), charts.Mark(name, "dev", m["dev"]["accuracy"])]
        for name, m in _models(s).items()
    ]
    others = ({"final": s["final"]} if s.get("final") else {}) | (s.get("controls") or {})
    return columns + [[charts.Mark(n.replace("_", " "), "control", c["accuracy"])] for n, c in others.items()]


def _yields(cycles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One bar a cycle and mode: questions asked, those with an answer that passed, examples kept."""
    most = max([c["asked"][m] for c in cycles for m in c["asked"]], default=0) or 1
    rows = []
    for i, c in enumerate(cycles):
        for mode, asked in c["asked"].items():
            if asked:
                share = c["yield"][mode] if "yield" in c else c["kept"][mode] / asked
                widths = {"width": 100 * asked / most, "passed": 100 * share, "fill": 100 * c["kept"][mode] / asked}
                chance = c["chance_acceptance"] if mode == "direct" else None
                row = {"cycle": i, "mode": mode, "asked": asked, "kept": c["kept"][mode], "share": share}
                rows.append(row | widths | {"chance": chance})
    return rows


def _reasons(cycles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rejection reasons, commonest first, with a count a cycle."""
    total: Counter[str] = Counter()
    for c in cycles:
        total.update(c["rejected"])
    most = max([c["rejected"].get(r, 0) for c in cycles for r in total], default=0) or 1
    return [
        {"reason": r, "counts": [(n := c["rejected"].get(r, 0), 100 * n / most) for c in cycles]}
        for r, _ in total.most_common()
    ]


def _stages(stages: Mapping[str, Any]) -> dict[str, Any]:
    total = sum(v["seconds"] for v in stages.values())
    most = max([v["seconds"] for v in stages.values()], default=0) or 1
    rows = [
        {"name": name, **v, "width": 100 * v["seconds"] / most, "share": 100 * v["seconds"] / (total or 1)}
        for name, v in sorted(stages.items(), key=lambda item: -item[1]["seconds"])
    ]
    return {"rows": rows, "total": total, "peak_mib": max([v["peak_mib"] for v in stages.values()], default=0)}


def _frames(counts: Mapping[str, float]) -> list[tuple[str, str]]:
    """What reading frames took: counts in words, errors by reason last."""
    named = {
        "decoded": "clips decoded",
        "frames": "frames decoded",
        "cached": "clips from the frame cache",
        "encoded": "clips encoded",
        "embeddings_hit": "encodings from the cache",
        "fallback": "clips DALI or torchcodec failed on, read by PyAV",
        "stalls": "times the model waited for a clip",
        "stall_s": "seconds it waited",
        "decode_cpu_s": "CPU seconds of decoding",
        "frames_damaged": "damaged cache entries, made again",
        "embeddings_damaged": "damaged encodings, made again",
    }
    rows = [(words, f"{counts[name]:g}") for name, words in named.items() if counts.get(name)]
    for kind, words in (("route:", "routed to "), ("error:", "not read: ")):
        rows += [(words + n.removeprefix(kind), f"{c:g}") for n, c in sorted(counts.items()) if n.startswith(kind)]
    return rows


def _kinds(s: Mapping[str, Any]) -> dict[str, Any]:
    """Test figures per label kind, one column a model."""
    models = _models(s)
    rows: dict[tuple[str, str], list[float | None]] = defaultdict(list)
    names = dict.fromkeys((k, n) for m in models.values() for k, v in m["metrics"].items() for n in v if n != "n")
    for model in models.values():
        for kind, name in names:
            value = model["metrics"].get(kind, {}).get(name)
            rows[kind, name].append(value if value == value else None)
    return {"models": list(models), "rows": [(k, n.replace("_", " "), v) for (k, n), v in rows.items()]}


def _browser(run: Run, shown: Sequence[Sample], strips: Mapping[str, str]) -> dict[str, Any]:
    """What the script of the page works on: questions, each with its samples, and the pictures."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for s in shown:
        groups[s.candidate.question_id].append(_sample_row(s, run))
    questions = [_question_row(run, q, rows) for q, rows in groups.items()]
    return {"questions": questions, "strips": dict(strips), "total": len(run.samples)}


def _question_row(run: Run, question_id: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    question = run.questions[question_id]
    video = run.videos.get(question.video_id)
    return {
        "text": question.text,
        "video": question.video_id,
        "file": Path(video.path).name if video else "",
        "split": video.split if video else "",
        "kind": question.labels[0].kind,
        "labels": [label_text(label) for label in question.labels],
        "samples": rows,
    }


def _sample_row(s: Sample, run: Run) -> dict[str, Any]:
    spans = sorted({span.char for span in s.verdict.spans if span is not None})
    return {
        "cycle": s.cycle,
        "mode": mode_of(s, run),
        "sample": s.candidate.sample,
        "passed": s.verdict.passed,
        "reason": s.verdict.reason,
        "kept": s.kept,
        "text": s.candidate.text,
        "spans": spans,
        "extracted": [_plain(value) for value in s.verdict.extracted],
    }


def _plain(value: Any) -> str:
    """An extracted value in words."""
    if value is None:
        return "nothing"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(v) for v in value)
    return str(value)
