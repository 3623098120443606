"""Stage 4: verdicts -> supervised examples. Every example can be traced to the candidate it came from."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from vstar_fast.config import MatchConfig, RationalizeConfig
from vstar_fast.errors import DataError
from vstar_fast.records import Candidate, Example, Question, Verdict

Judged = tuple[Candidate, Verdict]


def select(judged: Iterable[Judged], questions: dict[str, Question], match: MatchConfig) -> list[Example]:
    """Examples from the answers that passed, per question by `match.keep`, in the order of the questions.

    A question is left out when fewer than `match.min_correct` of its samples passed: with k samples over
    N labels some hits are luck.
    """
    by_question: dict[str, list[Judged]] = defaultdict(list)
    for candidate, verdict in judged:
        by_question[candidate.question_id].append((candidate, verdict))
    kept: list[Example] = []
    for question_id, question in questions.items():
        rows = by_question.get(question_id, [])
        passed = [c for c, v in rows if v.passed]
        if passed and len(passed) >= match.min_correct * len(rows):
            kept += _examples(question, passed, match.keep)
    return kept


def _examples(question: Question, passed: list[Candidate], keep: str) -> list[Example]:
    ordered = sorted(passed, key=_likelihood if keep == "best" else lambda c: c.sample)
    texts = list(dict.fromkeys(c.text.strip() for c in ordered))
    chosen = texts if keep == "all" else texts[:1]
    weight = 1.0 / len(chosen)
    source = ordered[0].mode
    return [Example(question.video_id, question.id, question.text, t, source, weight) for t in chosen]


def _likelihood(candidate: Candidate) -> float:
    """Sort key: the likeliest answer first; an answer that follows from its own reasoning is likelier."""
    return -candidate.logprob / max(1, len(candidate.token_ids))


def cap(rationalized: Sequence[Example], direct: int, config: RationalizeConfig, seed: int) -> list[Example]:
    """At most `max_share` x `direct` rationalized examples, drawn by seed, in their order.

    With nothing kept directly there is nothing to balance against, and all of them stay.
    """
    if direct == 0 or math.isinf(config.max_share):
        return list(rationalized)
    limit = math.floor(config.max_share * direct)
    if len(rationalized) <= limit:
        return list(rationalized)
    chosen = set(random.Random(seed).sample(range(len(rationalized)), limit))
    return [e for i, e in enumerate(rationalized) if i in chosen]


def instructions(path: str, count: int, seed: int) -> list[Example]:
    """`count` examples of the user's original instruction data (LLaVA JSON: `video` + `conversations`).

    `video_id` of such an example is the path of its video. Raises DataError for a file that is not so.
    """
    file = Path(path)
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read data.instructions {path}: {error}") from None
    examples = [_instruction(file, n, row) for n, row in enumerate(rows)]
    if count > len(examples):
        raise DataError(f"{path} has {len(examples)} examples but finetune.mix_ratio asks for {count}; lower it")
    return random.Random(seed).sample(examples, count)


def _instruction(file: Path, number: int, row: dict[str, object]) -> Example:
    try:
        turns = row["conversations"]
        question = turns[0]["value"].replace("<video>", "").strip()  # type: ignore[index]
        video = str((file.parent / str(row["video"])).resolve())
        answer = turns[1]["value"]  # type: ignore[index]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise DataError(
            f"{file}, row {number}: needs `video` and `conversations` of two turns (LLaVA format)"
        ) from None
    return Example(video, f"instruction/{number}", question, answer, "instruction")
