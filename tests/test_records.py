"""Records: what they refuse, in one clear message, and that what is stored is read back as it was."""

import json
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vstar_fast import records
from vstar_fast.errors import DataError, VstarError
from vstar_fast.records import Candidate, Frames, Label, LabeledVideo, Question, Span, Verdict

RUN = Label("class", "action", "run")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Label("clas", "x", "y"), "unknown label kind 'clas'; known: answer, choice, class, interval"),
        (lambda: Label("class", "--", "y"), "label name '--' has no letter or digit"),
        (lambda: Label("class", "x", "?!"), "class label '?!' has no letter or digit; give it a name"),
        (lambda: Label("class", "x", 3), "class label 3 has no letter or digit"),
        (lambda: Label("class", "x", "y", aliases="abc"), "aliases of 'y' must be a list of names, got 'abc'"),
        (lambda: Label("class", "x", "y", aliases=("z", "")), "alias of 'y' '' has no letter or digit"),
        (lambda: Label("number", "x", True), "number label must be a finite number, got True"),
        (lambda: Label("number", "x", float("inf")), "number label must be a finite number, got inf"),
        (lambda: Label("number", "x", 1, abs_tolerance=-1), "abs_tolerance of 1 must be >= 0, got -1"),
        (lambda: Label("number", "x", 1, rel_tolerance="5%"), "rel_tolerance of 1 must be a finite number, got '5%'"),
        (lambda: Label("interval", "x", (1,)), "interval label must be [start_s, end_s], got (1,)"),
        (lambda: Label("interval", "x", (2, 1)), "interval label needs 0 <= start_s < end_s, got [2, 1]"),
        (lambda: Label("interval", "x", (-1, 1)), "interval label needs 0 <= start_s < end_s, got [-1, 1]"),
        (lambda: Label("interval", "x", (0, "1")), "interval bound must be a finite number, got '1'"),
        (lambda: Label("sequence", "x", ()), "sequence label must be a non-empty list of names, got ()"),
        (lambda: Label("sequence", "x", "run"), "sequence label must be a non-empty list of names, got 'run'"),
        (lambda: Label("sequence", "x", ["a", "."]), "sequence item '.' has no letter or digit"),
        (lambda: LabeledVideo("", "a.mp4", (RUN,)), "video id must be a non-empty string, got ''"),
        (lambda: LabeledVideo("v", "a.mp4", ()), "video 'v' has no labels; a video needs at least one"),
        (lambda: LabeledVideo("v", "a.mp4", (RUN,), "val"), "split of 'v' is 'val'; use one of train, dev, test"),
        (lambda: LabeledVideo("v", "a", (RUN,), start_s=2, end_s=2), "window of 'v' needs 0 <= start_s < end_s"),
        (lambda: LabeledVideo("v", "a", (RUN,), start_s=-1), "start_s of 'v' must be >= 0, got -1"),
        (lambda: LabeledVideo("v", "a", (RUN,), end_s=0), "window of 'v' needs 0 <= start_s < end_s, got None..0"),
        (lambda: LabeledVideo("v", "a", (RUN,), duration_s=float("nan")), "duration_s of 'v' must be a finite number"),
        (lambda: Frames("v", torch.zeros(2, 4, 4, 3), (0.0,), 4, 4, 1.0, "x"), "[F, H, W, 3] with one time a frame"),
        (lambda: Frames("v", torch.zeros(1, 4, 4), (0.0,), 4, 4, 1.0, "x"), "got (1, 4, 4) and 1 times"),
    ],
)
def test_records_refuse_what_they_cannot_mean(make, message):
    with pytest.raises(DataError) as error:
        make()
    assert message in str(error.value) and isinstance(error.value, VstarError)


def test_labels_are_frozen_hashable_and_hold_tuples():
    label = Label("sequence", "x", ["run", "jump"], aliases=["a"])
    assert (label.value, label.aliases) == (("run", "jump"), ("a",))
    assert label == Label("sequence", "x", ("run", "jump"), aliases=("a",)) and len({label, label}) == 1
    with pytest.raises(FrozenInstanceError):
        label.value = ("run",)


def test_candidate_key_tells_modes_and_samples_apart():
    made = Candidate("q", "v", 3, "direct", "x", (), 0.0, "stop", 0, "t", {}, "c")
    assert made.key == ("q", "direct", 3)


WORDS = st.text(min_size=1, max_size=12).filter(lambda x: any(c.isalnum() for c in x) and x.isprintable())
TIMES = st.tuples(st.floats(0, 1e4), st.floats(0.01, 1e4)).map(lambda x: (x[0], x[0] + x[1]))
VALUES = st.one_of(
    st.tuples(st.sampled_from(["class", "choice", "answer"]), WORDS),
    st.tuples(st.just("number"), st.floats(allow_nan=False, allow_infinity=False) | st.integers()),
    st.tuples(st.just("interval"), TIMES),
    st.tuples(st.just("sequence"), st.lists(WORDS, min_size=1, max_size=4).map(tuple)),
)
LABELS = st.builds(
    lambda pair, **more: Label(pair[0], "x1", pair[1], **more),
    VALUES,
    set=st.none() | WORDS,
    aliases=st.lists(WORDS, max_size=2).map(tuple),
    abs_tolerance=st.none() | st.floats(0, 9),
)
ROWS = st.lists(LABELS, min_size=1, max_size=3).map(tuple)


def stored(record):
    return json.loads(json.dumps(records.to_dict(record)))


@settings(max_examples=100, deadline=None)
@given(labels=ROWS, id=WORDS, window=st.none() | TIMES, split=st.sampled_from(records.SPLITS))
def test_videos_and_questions_are_read_back_as_they_were(labels, id, window, split):
    start, end = window or (None, None)
    video = LabeledVideo(id, "a/b.mp4", labels, split, start, end, 3.5, {"fps": 25})
    assert records.video_from_dict(stored(video)) == video
    question = Question(id, "v", "What?", labels, "class/0", hint=id)
    assert records.question_from_dict(stored(question)) == question


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=20), ids=st.lists(st.integers(0, 50_000), max_size=5))
def test_candidates_and_verdicts_are_read_back_as_they_were(text, ids):
    made = Candidate("q", "v", 0, "direct", text, tuple(ids), -1.5, "stop", 2**63, "t", {"temperature": 0.8}, "c")
    assert records.candidate_from_dict(stored(made)) == made
    spans = (Span((1, 2), (1, 3)), None, Span((0, 1), (0, 1), (4, 5)))
    judged = Verdict("q", "direct", 0, False, "low_iou", ((0.5, 2.0), None, ("run", text), 3.5), spans, (0.2, 0.0, 1.0))
    assert records.verdict_from_dict(stored(judged)) == judged
