"""The user's original instruction data: LLaVA JSON, ShareGPT and Hugging Face messages, as examples.

A file is a JSON list or JSON lines; its rows may be about a video, an image or neither. An image is shown as a clip
that stands still. Of a conversation the first question and its answer are used, behind the system's words if any.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vstar_fast import clip_files
from vstar_fast.errors import DataError
from vstar_fast.records import Example, Label, LabeledVideo

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant", "model")
MARKS = re.compile(r"\s*<(?:video|image)>\s*")
NEEDS = "needs `conversations` (LLaVA, ShareGPT) or `messages` with a question and its answer, and at most one video"
WINDOW = re.compile(r"#t=([\d.]*),([\d.]*)$")
"""A part of a file in seconds, as a media fragment (W3C) writes it: `clip.mp4#t=2.0,5.5`."""


class _Media(NamedTuple):
    path: str
    start_s: float | None = None
    end_s: float | None = None


def read(path: str, count: int, seed: int) -> list[Example]:
    """`count` examples of the file, drawn by seed. Raises DataError for a row that is of none of the three forms.

    `video_id` of an example is the path of its video or image (with `#t=start,end` where the row names a window),
    empty where it has none.
    """
    file = Path(path)
    rows = _rows(file)
    if count > len(rows):
        raise DataError(f"{path} has {len(rows)} examples but finetune.mix_ratio asks for {count}; lower it")
    examples = [_example(file, number, row) for number, row in enumerate(rows)]
    return random.Random(seed).sample(examples, count)


def video(video_id: str) -> LabeledVideo:
    """The video that an instruction example's `video_id` stands for."""
    found = WINDOW.search(video_id)
    path = video_id[: found.start()] if found else video_id
    start, end = (float(x) if x else None for x in found.groups()) if found else (None, None)
    return LabeledVideo(video_id, path, (Label("answer", "instruction", "any"),), start_s=start, end_s=end)


def _rows(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".jsonl":
            # Not splitlines(): it also splits at U+2028 and the like, which JSON leaves as they are.
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        rows = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read data.instructions {file}: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"data.instructions {file} must hold a list of rows, got a {type(rows).__name__}")
    return rows


def _example(file: Path, number: int, row: Any) -> Example:
    try:
        turns = [_turn(turn) for turn in row.get("conversations") or row["messages"]]
        media = [*_named(row), *(m for _, _, found in turns for m in found)]
        system = [text for role, text, _ in turns if role == "system"]
        asked = next(i for i, (role, _, _) in enumerate(turns) if role in ASKS)
        question, (role, answer, _) = turns[asked][1], turns[asked + 1]
    except (KeyError, IndexError, TypeError, AttributeError, StopIteration, ValueError):
        raise DataError(f"{file}, row {number}: {NEEDS}") from None
    if role not in ANSWERS or not answer.strip() or len(media) > 1:
        raise DataError(f"{file}, row {number}: {NEEDS}; got {len(media)} videos or images and an answer of {role!r}")
    words = "\n".join([*system, question])
    return Example(_id(file, media), f"instruction/{number}", words, answer, "instruction")


def _turn(turn: Mapping[str, Any]) -> tuple[str, str, list[_Media]]:
    """(role, text without marks, media) of one turn of either form."""
    role = turn.get("from") or turn["role"]
    content = turn["value"] if "value" in turn else turn["content"]
    if isinstance(content, str):
        return role, MARKS.sub("\n", content).strip(), []
    texts = [part["text"] for part in content if part.get("type") == "text"]
    media = [
        _Media(str(part[kind]), part.get("video_start"), part.get("video_end"))
        for part in content
        for kind in ("video", "image")
        if part.get("type") == kind
    ]
    return role, "\n".join(texts).strip(), media


def _named(row: Mapping[str, Any]) -> list[_Media]:
    """Media that stand beside the conversation."""
    found: list[str] = []
    for one, many in (("video", "videos"), ("image", "images")):
        found += [row[one]] if row.get(one) else []
        found += row.get(many) or []
    return [_Media(str(path), row.get("start_s"), row.get("end_s")) for path in found]


def _id(file: Path, media: Sequence[_Media]) -> str:
    if not media:
        return ""
    path = media[0].path.removeprefix("file://")
    if not clip_files.is_url(path):
        path = str((file.parent / path).resolve())
    window = ["" if t is None else f"{float(t)}" for t in media[0][1:]]
    return f"{path}#t={','.join(window)}" if any(window) else path
