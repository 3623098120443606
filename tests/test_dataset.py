"""Verdicts to examples."""

import dataclasses
import json
import math

import pytest

from vstar_fast import dataset
from vstar_fast.config import MatchConfig, RationalizeConfig
from vstar_fast.errors import DataError
from vstar_fast.records import Candidate, Example, Label, Question, Verdict


def question(i):
    return Question(f"q{i}", f"v{i}", "Which action?", (Label("class", "action", "run"),), "class/0")


def judged(i, sample, passed, text="it runs. Answer: run"):
    candidate = Candidate(f"q{i}", f"v{i}", sample, "direct", text, (1,), -1.0, "stop", 0, "t", {}, "class/0")
    return candidate, Verdict(f"q{i}", "direct", sample, passed, "ok" if passed else "wrong_value")


QUESTIONS = {f"q{i}": question(i) for i in range(3)}


def test_first_passing_sample_is_kept_without_its_hint():
    rows = [
        judged(0, 2, True, "third"),
        judged(0, 1, True, "second"),
        judged(0, 0, False, "first"),
        judged(1, 0, False),
    ]
    kept = dataset.select(rows, QUESTIONS, MatchConfig())
    assert [(e.question_id, e.answer, e.source, e.question) for e in kept] == [
        ("q0", "second", "direct", "Which action?")
    ]


def test_keep_all_drops_copies_and_shares_the_weight():
    rows = [judged(0, 0, True, "a"), judged(0, 1, True, "b"), judged(0, 2, True, "a")]
    kept = dataset.select(rows, QUESTIONS, MatchConfig(keep="all"))
    assert [(e.answer, e.weight) for e in kept] == [("a", 0.5), ("b", 0.5)]


def test_best_keeps_the_likeliest_answer_of_those_that_passed():
    rows = [judged(0, 0, True, "unlikely"), judged(0, 1, True, "likely"), judged(0, 2, False, "wrong")]
    rows = [(dataclasses.replace(c, logprob=p), v) for (c, v), p in zip(rows, (-9.0, -2.0, -0.1), strict=True)]
    (kept,) = dataset.select(rows, QUESTIONS, MatchConfig(keep="best"))
    assert kept.answer == "likely"


def test_min_correct_drops_lucky_hits():
    lucky = [judged(0, n, n == 0) for n in range(4)]
    sure = [judged(1, n, n != 0) for n in range(4)]
    kept = dataset.select(lucky + sure, QUESTIONS, MatchConfig(min_correct=0.5))
    assert [e.question_id for e in kept] == ["q1"]


def test_cap_is_a_multiple_of_direct_and_seeded():
    rows = [Example(f"v{i}", f"q{i}", "", "", "rationalized") for i in range(10)]
    half = RationalizeConfig(max_share=0.5)
    first = dataset.cap(rows, 8, half, seed=1)
    assert (
        len(first) == 4 and first == dataset.cap(rows, 8, half, seed=1) and first != dataset.cap(rows, 8, half, seed=2)
    )
    assert dataset.cap(rows, 0, half, seed=1) == rows
    assert dataset.cap(rows, 1, RationalizeConfig(max_share=math.inf), seed=1) == rows


def test_instruction_data_is_read_and_bad_rows_are_named(tmp_path):
    path = tmp_path / "i.json"
    good = {
        "video": "a.mp4",
        "conversations": [{"from": "human", "value": "<video>\nWhy?"}, {"from": "gpt", "value": "So."}],
    }
    path.write_text(json.dumps([good]))
    (example,) = dataset.instructions(str(path), 1, seed=0)
    assert (example.question, example.answer, example.video_id) == ("Why?", "So.", str(tmp_path / "a.mp4"))
    with pytest.raises(DataError, match="has 1 examples but"):
        dataset.instructions(str(path), 2, seed=0)
    path.write_text(json.dumps([good, {"video": "b.mp4"}]))
    with pytest.raises(DataError, match="row 1: needs"):
        dataset.instructions(str(path), 1, seed=0)
