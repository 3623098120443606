"""The user's original instruction data: LLaVA JSON, ShareGPT and Hugging Face messages, as examples.

A file is a JSON list or JSON lines; its rows may be about a video, an image or neither. An image is shown as a clip
that stands still. Every answer of a conversation is an example of its own, with what was said before it; the system's
words stand before the first question, and so does the video, wherever it is shown. A row that cannot be used is a
Rejected with its number.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vstar_fast import clip_files
from vstar_fast.errors import DataError
from vstar_fast.records import Example, Label, LabeledVideo, Rejected

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant", "model")
MARKS = re.compile(r"\s*<(?:video|image)>\s*")
NEEDS = (
    "needs `conversations` (LLaVA, ShareGPT) or `messages`, questions and their answers in turn, and one video at most"
)
BAD_ROW = "bad_instruction"
WINDOW = re.compile(r"#t=([\d.]*),([\d.]*)$")
"""A part of a file in seconds, as a media fragment (W3C) writes it: `clip.mp4#t=2.0,5.5`."""


class _Media(NamedTuple):
    path: str
    start_s: float | None = None
    end_s: float | None = None


def read(path: str, count: int, seed: int) -> tuple[list[Example], list[Rejected]]:
    """Examples of `count` rows of the file, drawn by seed, and the rows that cannot be used.

    `video_id` of an example is the path of its video or image (with `#t=start,end` where the row names a window),
    empty where it has none. Raises DataError for a file that cannot be read or has too few good rows.
    """
    file = Path(path)
    good: list[list[Example]] = []
    bad: list[Rejected] = []
    for number, row in enumerate(_rows(file)):
        try:
            good.append(_examples(file, number, row))
        except ValueError as error:
            bad.append(Rejected("instructions", f"{path}, row {number}", BAD_ROW, str(error)))
    if count > len(good):
        unusable = (
            f" that can be used ({len(bad)} cannot; row {bad[0].id.rsplit(' ', 1)[-1]}: {bad[0].detail})" if bad else ""
        )
        raise DataError(f"{path} has {len(good)} examples{unusable} but finetune.mix_ratio asks for {count}; lower it")
    return [e for talk in random.Random(seed).sample(good, count) for e in talk], bad


def video(video_id: str) -> LabeledVideo:
    """The video that an instruction example's `video_id` stands for."""
    found = WINDOW.search(video_id)
    path = video_id[: found.start()] if found else video_id
    start, end = (float(x) if x else None for x in found.groups()) if found else (None, None)
    return LabeledVideo(video_id, path, (Label("answer", "instruction", "any"),), start_s=start, end_s=end)


class _Broken(NamedTuple):
    """A line that is no JSON."""

    why: str


def _rows(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8")
        # Not splitlines(): it also splits at U+2028 and the like, which JSON leaves as they are.
        lines = [line for line in text.split("\n") if line.strip()]
        rows = [_line(line) for line in lines] if file.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read data.instructions {file}: {error}") from None
    if not isinstance(rows, list):
        raise DataError(f"data.instructions {file} must hold a list of rows, got a {type(rows).__name__}")
    return rows


def _line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return _Broken(f"it is no JSON: {error}")


def _examples(file: Path, number: int, row: Any) -> list[Example]:
    """One example for each answer of a row. Raises ValueError that says what the row lacks."""
    if isinstance(row, _Broken):
        raise ValueError(row.why)
    try:
        turns = [_turn(turn) for turn in row.get("conversations") or row["messages"]]
        media = [*_named(row), *(m for _, _, found in turns for m in found)]
        video_id = _id(file, media)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        raise ValueError(NEEDS) from None
    _check_media(media)
    if len(media) > 1:
        raise ValueError(f"{NEEDS}; got {len(media)} videos or images")
    talk = _exchanges([(role, text) for role, text, _ in turns])
    names = [f"instruction/{number}" + (f"/{n}" if len(talk) > 1 else "") for n in range(len(talk))]
    return [
        Example(video_id, name, question, answer, "instruction", history=tuple(talk[:n]))
        for n, (name, (question, answer)) in enumerate(zip(names, talk, strict=True))
    ]


def _check_media(media: Sequence[_Media]) -> None:
    for path, start, end in media:
        if not isinstance(path, str):
            raise ValueError(f"a video or an image is named by its path, got {path!r:.60}")
        first, last = float(start or 0), math.inf if end is None else float(end)
        if not 0 <= first < last:
            raise ValueError(f"a window starts at 0 s or later and ends behind its start, got {start} to {end}")


def _exchanges(turns: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(question, answer) in turn; what the system says goes before the first, a last question without answer away."""
    system = [text for role, text in turns if role == "system"]
    said = [(role, text) for role, text in turns if role != "system"]
    pairs = list(zip(said[::2], said[1::2], strict=False))
    for (asks, _), (answers, answer) in pairs:
        if asks not in ASKS or answers not in ANSWERS or not answer.strip():
            raise ValueError(f"{NEEDS}; got a turn of {asks!r} and behind it {answer[:40]!r} of {answers!r}")
    if not pairs:
        raise ValueError(f"{NEEDS}; got {len(said)} turn(s)")
    for text in (*system, *(text for pair in pairs for _, text in pair)):
        text.encode()  # half a character (a lone surrogate) is no text; that is a ValueError, too
    talk = [(question, answer) for (_, question), (_, answer) in pairs]
    return [("\n".join([*system, talk[0][0]]), talk[0][1]), *talk[1:]]


def _turn(turn: Mapping[str, Any]) -> tuple[str, str, list[_Media]]:
    """(role, text without marks, media) of one turn of either form."""
    role = turn.get("from") or turn["role"]
    content = turn["value"] if "value" in turn else turn["content"]
    if isinstance(content, str):
        return role, MARKS.sub("\n", content).strip(), []
    texts = [part["text"] for part in content if part.get("type") == "text"]
    media = [
        _Media(part[kind], part.get("video_start"), part.get("video_end"))
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
    return [_Media(path, row.get("start_s"), row.get("end_s")) for path in found]


def _id(file: Path, media: Sequence[_Media]) -> str:
    if not media:
        return ""
    path = str(media[0].path).removeprefix("file://")
    if not clip_files.is_url(path):
        path = str((file.parent / path).resolve())
    window = ["" if t is None else f"{round(float(t), 4)}" for t in media[0][1:]]  # without an exponent
    return f"{path}#t={','.join(window)}" if any(window) else path
