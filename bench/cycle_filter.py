"""The filter part of `cycle`: token ids judged by vstar-fast, and decoded and searched with `re`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vstar_fast.bench.cost import seconds_of
from vstar_fast.bench.cycle import Work, add_row

from vstar_fast import match
from vstar_fast.records import Candidate, Question, Verdict

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench


def compare_filters(bench: Bench, work: Work) -> tuple[float, float]:
    """The same candidates, right and wrong ones, through both filters, from the ids that generation leaves."""
    replayed = [_replayed(work, i) for i in range(512)]
    copies = [c for c, _ in replayed]
    tokens, tokenizer = work.lm.token_bytes, work.lm.tokenizer
    patterns = {q.id: _pattern(q) for q in work.asked}

    def judge() -> list[Verdict]:
        return match.verify(copies, work.asked, work.config.match, label_sets=work.label_sets, tokens=tokens)

    def search() -> list[bool]:
        texts = tokenizer.batch_decode([list(c.token_ids) for c in copies], skip_special_tokens=True)
        return [bool(patterns[c.question_id].search(t)) for c, t in zip(copies, texts, strict=True)]

    judge()  # tables of the label set and of the tokenizer, built once a run
    search()
    verdicts, ours = seconds_of(judge, bench.device)
    kept, theirs = seconds_of(search, bench.device)
    equal = [v.passed for v in verdicts] == kept == [right for _, right in replayed]
    pair = add_row(bench, "filter 512 candidates, from ids", "candidate", ours / 512, theirs / 512, equal)
    samples = work.config.generate.samples
    return pair[0] * samples, pair[1] * samples


def _replayed(work: Work, i: int) -> tuple[Candidate, bool]:
    question = work.asked[i % len(work.asked)]
    right = str(question.labels[0].value)
    names = [n for n in work.label_sets["actions"] if not set(n.split()) & set(right.split())]
    said = right if i % 3 else names[i % len(names)]
    text = f"The person bends both knees, turns once and lands upright in take {i}. Answer: {said}"
    ids = tuple(work.lm.answer_ids(text)[:-1].tolist())
    candidate = Candidate(question.id, question.video_id, i, "direct", "", ids, 0.0, "stop", 0, "", {}, "")
    return candidate, bool(i % 3)


def _pattern(question: Question) -> re.Pattern[str]:
    label = question.labels[0]
    names = "|".join(re.escape(n).replace(r"\ ", r"[\s_-]+") for n in (label.value, *label.aliases))
    return re.compile(rf"answer:\W*(?:{names})\b", re.IGNORECASE)
