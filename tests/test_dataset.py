"""Verdicts to examples."""

import dataclasses
import json
import math

import pytest

from vstar_fast import dataset
from vstar_fast.config import MatchConfig, RationalizeConfig
from vstar_fast.errors import DataError
from vstar_fast.readers import instructions
from vstar_fast.records import FAILED, Candidate, Example, Label, Question, Verdict


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


def write(path, rows):
    text = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text)
    return str(path)


LLAVA = {
    "video": "a.mp4",
    "conversations": [{"from": "human", "value": "<video>\nWhy?"}, {"from": "gpt", "value": "So."}],
}


def test_instruction_data_is_read_and_bad_rows_are_named(tmp_path):
    path = write(tmp_path / "i.json", [LLAVA])
    (example,), _ = instructions.read(path, 1, seed=0)
    assert (example.question, example.answer, example.video_id) == ("Why?", "So.", str(tmp_path / "a.mp4"))
    with pytest.raises(DataError, match="has 1 examples but"):
        instructions.read(path, 2, seed=0)
    write(tmp_path / "i.json", [LLAVA, {"video": "b.mp4"}])
    good, bad = instructions.read(path, 1, seed=0)
    assert [e.answer for e in good] == ["So."] and [r.id for r in bad] == [f"{path}, row 1"]
    assert (bad[0].stage, bad[0].reason) == ("instructions", "bad_instruction")
    assert "needs `conversations`" in bad[0].detail
    with pytest.raises(DataError, match=r"1 examples that can be used \(1 cannot; row 1: needs .*asks for 2; lower it"):
        instructions.read(path, 2, seed=0)


def test_a_line_that_is_no_json_is_a_row_that_cannot_be_used(tmp_path):
    (tmp_path / "i.jsonl").write_text(f"{json.dumps(LLAVA)}\n{{oops\n")
    good, bad = instructions.read(str(tmp_path / "i.jsonl"), 1, seed=0)
    assert len(good) == 1 and bad[0].id.endswith("row 1") and "it is no JSON" in bad[0].detail


TALK = [("user", "Why?"), ("assistant", "So."), ("user", "And?"), ("assistant", "Then."), ("user", "Hm?")]


def test_every_answer_of_a_conversation_is_an_example_with_what_was_said_before(tmp_path):
    row = {"messages": [{"role": r, "content": t} for r, t in [("system", "Be brief."), *TALK]], "videos": ["a.mp4"]}
    found, _ = instructions.read(write(tmp_path / "i.json", [row]), 1, seed=0)
    assert [(e.question, e.answer) for e in found] == [("Be brief.\nWhy?", "So."), ("And?", "Then.")]
    assert [e.history for e in found] == [(), (("Be brief.\nWhy?", "So."),)]
    assert [e.question_id for e in found] == ["instruction/0/0", "instruction/0/1"]
    assert {e.video_id for e in found} == {str(tmp_path / "a.mp4")}


def says(question, answer="So.", **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


PARTS = [{"type": "video", "video": "a.mp4", "video_start": 2, "video_end": 5.5}, {"type": "text", "text": "Why?"}]
FORMS = {
    "llava image": ({**LLAVA, "video": None, "image": "a.mp4"}, "{}/a.mp4"),
    "llava text": ({"conversations": LLAVA["conversations"]}, ""),
    "sharegpt": ({"conversations": LLAVA["conversations"], "videos": ["a.mp4"]}, "{}/a.mp4"),
    "sharegpt window": ({**LLAVA, "start_s": 2.0, "end_s": 5.5}, "{}/a.mp4#t=2.0,5.5"),
    "messages": (says("<video>Why?", videos=["a.mp4"]), "{}/a.mp4"),
    "messages text": (says("Why?"), ""),
    "messages parts": (says(PARTS, [{"type": "text", "text": "So."}]), "{}/a.mp4#t=2.0,5.5"),
    "image part": (says([{"type": "image", "image": "a.mp4"}, PARTS[1]]), "{}/a.mp4"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_every_form_of_instruction_data_is_read(form, suffix, tmp_path):
    row, video_id = FORMS[form]
    (example,), _ = instructions.read(write(tmp_path / f"i{suffix}", [row]), 1, seed=0)
    assert (example.question, example.answer) == ("Why?", "So.")
    assert example.video_id == video_id.format(tmp_path) and example.source == "instruction"


def test_lines_end_at_line_feeds_and_urls_stay(tmp_path):
    row = says("<video>Why?", "So.\u2028And so.", videos=["https://host/a.mp4"])
    (tmp_path / "i.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    (example,), _ = instructions.read(str(tmp_path / "i.jsonl"), 1, seed=0)
    assert (example.answer, example.video_id) == ("So.\u2028And so.", "https://host/a.mp4")


def test_a_window_of_an_instruction_is_that_of_its_video():
    video = instructions.video("/x/a.mp4#t=2.0,5.5")
    assert (video.id, video.path, video.start_s, video.end_s) == ("/x/a.mp4#t=2.0,5.5", "/x/a.mp4", 2.0, 5.5)
    assert instructions.video("/x/a.mp4#t=2.0,").end_s is None and instructions.video("/x/b.mp4").path == "/x/b.mp4"


def test_system_words_stand_before_the_question(tmp_path):
    row = says("Why?")
    row["messages"].insert(0, {"role": "system", "content": "Be brief."})
    (example,), _ = instructions.read(write(tmp_path / "i.json", [row]), 1, seed=0)
    assert example.question == "Be brief.\nWhy?"


@pytest.mark.parametrize(
    "row",
    [
        says("Why?", " "),
        says("Why?", videos=["a.mp4", "b.mp4"]),
        {"messages": []},
        {"messages": [{"role": "user", "content": "Why?"}]},
        {"messages": [{"role": "user", "content": "Why?"}] * 2},
        7,
    ],
)
def test_a_row_of_no_known_form_is_named(row, tmp_path):
    found, bad = instructions.read(write(tmp_path / "i.json", [row]), 0, seed=0)
    assert not found and [r.id[-5:] for r in bad] == ["row 0"] and "needs `conversations`" in bad[0].detail
    with pytest.raises(DataError, match="has 0 examples that can be used"):
        instructions.read(str(tmp_path / "i.json"), 1, seed=0)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (says("Why?", video=["a.jpg", "b.jpg"]), "named by its path, got ['a.jpg', 'b.jpg']"),
        (says("Why?", image={"bytes": "x"}), "named by its path, got {'bytes': 'x'}"),
        (says("Why?", video="a.mp4", start_s=-1.0), "a window starts at 0 s or later"),
        (says("Why?", video="a.mp4", start_s=5, end_s=2), "ends behind its start, got 5 to 2"),
        (says("Why?", video="a.mp4", end_s=float("nan")), "got None to nan"),
        (says("Why \ud800?"), "surrogates not allowed"),
    ],
)
def test_a_row_whose_video_or_text_is_none_is_named(row, why, tmp_path):
    found, bad = instructions.read(write(tmp_path / "i.json", [row]), 0, seed=0)
    assert not found and len(bad) == 1 and why in bad[0].detail
    with pytest.raises(DataError, match="has 0 examples that can be used"):
        instructions.read(str(tmp_path / "i.json"), 1, seed=0)


def test_a_tiny_start_of_a_window_is_read_back(tmp_path):
    row = says("Why?", video="a.mp4", start_s=1e-7, end_s=0.5)
    (example,), _ = instructions.read(write(tmp_path / "i.json", [row]), 1, seed=0)
    video = instructions.video(example.video_id)
    assert (video.path, video.start_s, video.end_s) == (str(tmp_path / "a.mp4"), 0.0, 0.5)


def test_copies_are_dropped_the_first_stays():
    rows = [
        Example("v", f"q{i}", q, a, "direct")
        for i, (q, a) in enumerate([("Why?", "a b"), ("Why?", "a  b "), ("Why?", "c")])
    ]
    assert [e.question_id for e in dataset.distinct(rows)] == ["q0", "q2"]


def test_balance_gives_every_class_the_same_sum_and_leaves_the_rest():
    asked = {
        f"q{i}": dataclasses.replace(question(i), labels=(Label("class", "action", v),)) for i, v in enumerate("aaab")
    }
    asked["n"] = dataclasses.replace(question(9), id="n", labels=(Label("number", "count", 3),))
    rows = [Example(f"v{i}", f"q{i}", "", "", "direct") for i in range(4)] + [Example("v", "n", "", "", "direct", 2.0)]
    found = dataset.balance(rows, asked)
    assert [e.weight for e in found] == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0, 2.0])
    assert sum(e.weight for e in found) == pytest.approx(6.0)


def test_pairs_take_failed_answers_to_the_same_question_in_turn():
    rows = [judged(0, 0, True, "a"), judged(0, 1, False, "x"), judged(0, 2, False, "y"), judged(1, 0, False, "z")]
    kept = [Example("v0", "q0", "", t, "direct") for t in "abc"] + [Example("v2", "q2", "", "a", "direct")]
    assert [e.rejected for e in dataset.paired(kept, rows)] == ["x", "y", "x", ""]
    same_words = [Example("v1", "q1", "", "z", "direct")]
    assert dataset.paired(same_words, rows)[0].rejected == ""


def test_failed_answers_are_one_a_question_and_weigh_what_the_kept_ones_do():
    rows = [judged(0, 0, True, "a"), judged(0, 1, False, "x"), judged(0, 2, False, "y"), judged(1, 0, False, "z")]
    asked = {q.id: q for q in (question(0), question(1))}
    kept = [Example("v0", "q0", "", t, "direct") for t in "abc"]
    found = dataset.failed(kept, rows, asked)
    assert [(e.question_id, e.answer, e.source, e.weight) for e in found] == [
        ("q0", "x", FAILED, 1.5),
        ("q1", "z", FAILED, 1.5),
    ]
    assert dataset.failed(kept, rows[:1], asked) == []
    assert dataset.balance(found, asked) == found
