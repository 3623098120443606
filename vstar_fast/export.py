"""What a run hands on: its accepted examples in the forms other trainers read, and its model, adapter merged in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vstar_fast import config as settings
from vstar_fast.errors import DataError, RunError
from vstar_fast.files import read_json, read_jsonl, read_object, write_json, write_jsonl, write_text, writing
from vstar_fast.questions import prompt_text
from vstar_fast.records import FAILED, Example, LabeledVideo, Question, question_from_dict, video_from_dict
from vstar_fast.run.contents import check_one_seed, cycles_of


class Written(NamedTuple):
    """What `write_examples` wrote: `windows` counts examples about a part of a longer file."""

    path: Path
    examples: int
    windows: int


class _Turn(NamedTuple):
    """One example as every form needs it."""

    id: str
    question: str
    answer: str
    video: LabeledVideo

    @property
    def window(self) -> dict[str, float]:
        bounds = {"start_s": self.video.start_s, "end_s": self.video.end_s}
        return {k: v for k, v in bounds.items() if v is not None}


def _llava(turn: _Turn) -> dict[str, Any]:
    talk = [{"from": "human", "value": f"<video>\n{turn.question}"}, {"from": "gpt", "value": turn.answer}]
    return {"id": turn.id, "video": turn.video.path, "conversations": talk, **turn.window}


def _sharegpt(turn: _Turn) -> dict[str, Any]:
    talk = [{"from": "human", "value": f"<video>{turn.question}"}, {"from": "gpt", "value": turn.answer}]
    return {"conversations": talk, "videos": [turn.video.path], **turn.window}


def _swift(turn: _Turn) -> dict[str, Any]:
    talk = [{"role": "user", "content": f"<video>{turn.question}"}, {"role": "assistant", "content": turn.answer}]
    return {"messages": talk, "videos": [turn.video.path], **turn.window}


def _hf(turn: _Turn) -> dict[str, Any]:
    # video_start and video_end are the names that qwen-vl-utils reads.
    window = {f"video_{k.removesuffix('_s')}": v for k, v in turn.window.items()}
    ask = [{"type": "video", "video": turn.video.path, **window}, {"type": "text", "text": turn.question}]
    reply = [{"type": "text", "text": turn.answer}]
    return {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": reply}]}


class _Form(NamedTuple):
    row: Callable[[_Turn], dict[str, Any]]
    lines: bool
    """JSON lines rather than one JSON list."""


FORMS = {
    "llava": _Form(_llava, lines=False),
    "sharegpt": _Form(_sharegpt, lines=False),
    "swift": _Form(_swift, lines=True),
    "hf": _Form(_hf, lines=True),
}


def write_examples(
    run_dir: Path, form: str, out: Path | None = None, *, cycle: int | None = None, plain: bool = False
) -> Written:
    """Write the examples that `cycle` (default: the last) was trained on.

    The question reads as the model was asked, with the instruction on the form of the answer; `plain` leaves
    that out. Videos go by absolute path. For `sharegpt` a `dataset_info.json` entry is written beside the file.
    """
    turns = _turns(run_dir, cycle, plain)
    kind = FORMS[form]
    path = out or run_dir / f"{form}.{'jsonl' if kind.lines else 'json'}"
    rows = [kind.row(turn) for turn in turns]
    if kind.lines:
        write_jsonl(path, rows)
    else:
        write_json(path, rows)
    if form == "sharegpt":
        _describe(path)
    return Written(path, len(turns), sum(1 for t in turns if t.window))


def write_merged(run_dir: Path, out: Path, *, cycle: int | None = None) -> Path:
    """Write a cycle's model as an ordinary model folder, the adapter merged into its weights."""
    from vstar_fast import models, torchvision_compat
    from vstar_fast.models import base_model

    torchvision_compat.ensure()
    from peft import PeftModel

    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty; give another folder for the merged model")
    adapter = _adapter(run_dir, cycle)
    config = settings.load(run_dir / "config.toml")
    base = config.model.init or config.model.base
    lm = models.load(
        base,
        dtype="float32" if config.model.dtype == "mixed" else config.model.dtype,
        device="cpu",
        family=config.model.family,
    )
    base_model.check(lm, adapter)
    merged = PeftModel.from_pretrained(lm.model, str(adapter)).merge_and_unload()
    with writing(out):
        merged.save_pretrained(str(out))
        lm.processor.save_pretrained(str(out))
        for code in sorted(Path(base).glob("*.py")):
            shutil.copy(code, out / code.name)
    return out


def _adapter(run_dir: Path, cycle: int | None) -> Path:
    folder = _cycle(run_dir, cycle, "adapter") / "adapter"
    if cycle is None and "final" in _summary(run_dir):
        folder = run_dir / "final" / "adapter"
    if not (folder / "adapter_config.json").is_file():
        which = "" if cycle is None else f" --cycle {cycle}"
        raise RunError(f"{folder} holds no adapter yet; run `vstar-fast finetune --run {run_dir}{which}` first")
    return folder


def _cycle(run_dir: Path, cycle: int | None, needed: str) -> Path:
    """Folder of a cycle; by default the last one of the run's summary, else the last that has `needed`."""
    counted = len(_summary(run_dir).get("cycles", ()))
    if cycle is not None or counted:
        return run_dir / f"cycle-{counted - 1 if cycle is None else cycle:02d}"
    done = [p for p in cycles_of(run_dir, None) if (p / needed).exists()]
    if not done and (run_dir / "config.toml").is_file():
        raise RunError(f"no cycle of {run_dir} has come to its {needed} yet; start its `vstar-fast cycle` again")
    if not done:
        raise RunError(f"{run_dir} holds no cycle with {needed}; is it a run folder?")
    return done[-1]


def _summary(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "summary.json"
    found = read_object(path) if path.is_file() else {}
    check_one_seed(run_dir, found)
    return found


def _turns(run_dir: Path, cycle: int | None, plain: bool) -> list[_Turn]:
    folder = _cycle(run_dir, cycle, "examples.jsonl")
    if not (folder / "examples.jsonl").is_file():
        raise RunError(f"{folder} has no examples.jsonl yet; run `vstar-fast finetune --run {run_dir}` first")
    reason = settings.load(run_dir / "config.toml").generate.reason
    videos = {row["id"]: video_from_dict(row) for row in read_jsonl(run_dir / "videos.jsonl")}
    asked = {row["id"]: question_from_dict(row) for row in read_jsonl(folder / "questions.jsonl")}
    turns: list[_Turn] = []
    seen: dict[str, int] = {}
    for row in read_jsonl(folder / "examples.jsonl"):
        example = Example(**row)
        if example.source == FAILED:
            continue
        nth = seen[example.question_id] = seen.get(example.question_id, 0) + 1
        name = example.question_id if nth == 1 else f"{example.question_id}#{nth}"
        turns.append(_turn(name, example, None if plain else asked.get(example.question_id), videos, reason))
    return turns


def _turn(
    name: str, example: Example, question: Question | None, videos: dict[str, LabeledVideo], reason: bool
) -> _Turn:
    """`question`: asked with its instruction on the form of the answer; None leaves that out."""
    video = videos.get(example.video_id)
    if video is None:
        raise DataError(f"example {name!r} is about video {example.video_id!r}, which videos.jsonl lacks")
    text = prompt_text(question, reason=reason) if question is not None else example.question
    return _Turn(name, text, example.answer, video)


def _describe(path: Path) -> None:
    """Add the file to the `dataset_info.json` that LLaMA-Factory looks for."""
    info = path.parent / "dataset_info.json"
    known = read_json(info) if info.is_file() else {}
    columns = {"messages": "conversations", "videos": "videos"}
    known[path.stem] = {"file_name": path.name, "formatting": "sharegpt", "columns": columns}
    write_text(info, json.dumps(known, indent=1, ensure_ascii=False) + "\n")
