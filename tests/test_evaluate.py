"""Metrics, intervals and the stop rule."""

import math

import numpy as np
import pytest

from vstar_fast import evaluate
from vstar_fast.records import Candidate, Estimate, Label, Question, Verdict


def q(i, *labels):
    return Question(f"q{i}", f"v{i}", "?", labels, "t")


def v(i, passed, extracted=(), scores=()):
    return Verdict(f"q{i}", "direct", 0, passed, "ok" if passed else "x", extracted, (), scores)


def test_accuracy_interval_is_clustered_by_clip():
    few = evaluate.estimate({f"v{i}": [i % 2] * 100 for i in range(10)}, bootstrap=2000, seed=0)
    many = evaluate.estimate({f"v{i}": [i % 2] for i in range(1000)}, bootstrap=2000, seed=0)
    assert few.value == many.value == 0.5 and few.n == 10
    assert few.high - few.low > 0.5 > 0.1 > many.high - many.low


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        clips = {str(i): [float(rng.random() < 0.4)] for i in range(100)}
        e = evaluate.estimate(clips, bootstrap=400, seed=trial)
        hits += e.low <= 0.4 <= e.high
    assert 0.88 <= hits / 200 <= 0.99


def test_gain_is_paired():
    before = {"a": [0.0], "b": [1.0], "c": [0.0], "gone": [1.0]}
    after = {"a": [1.0], "b": [1.0], "c": [1.0]}
    found = evaluate.gain(before, after, bootstrap=500, seed=0)
    assert found.value == pytest.approx(2 / 3) and found.n == 3


def test_gain_is_the_difference_of_the_accuracies():
    before, after = {"a": [0.0], "b": [1.0, 1.0, 1.0]}, {"a": [1.0], "b": [1.0, 1.0, 0.0]}
    means = [evaluate.estimate(x, bootstrap=50, seed=0).value for x in (before, after)]
    assert evaluate.gain(before, after, bootstrap=50, seed=0).value == means[1] - means[0] == 0.0


def test_metrics_by_kind():
    asked = {
        "q0": q(0, Label("class", "action", "run")),
        "q1": q(1, Label("number", "count", 4.0)),
        "q2": q(2, Label("number", "count", 10.0)),
        "q3": q(3, Label("interval", "when", (1.0, 2.0))),
        "q4": q(4, Label("sequence", "order", ("a", "b"))),
    }
    verdicts = [v(0, True), v(1, False, (5.0,)), v(2, False, (None,)), v(3, False, (), (0.25,)), v(4, True, (), (1.0,))]
    found = evaluate.metrics(verdicts, asked)
    assert found["class"] == {"n": 1, "accuracy": 1.0}
    assert found["number"] == {"n": 2, "accuracy": 0.0, "answered": 0.5, "median_relative_error": 0.25}
    assert found["interval"]["mean_iou"] == 0.25 and found["sequence"]["matched_share"] == 1.0


def test_reasoned_counts_words_before_the_last_answer():
    texts = ["the body turns over. Answer: roll", "Answer: roll", "roll"]
    rows = [Candidate("q", "v", 0, "direct", t, (), 0.0, "stop", 0, "", {}, "") for t in texts]
    assert evaluate.reasoned(rows) == pytest.approx(1 / 3)
    assert math.isnan(evaluate.reasoned([]))


def est(value, low, high):
    return Estimate(value, low, high, 75)


def test_plateau_needs_patience_cycles_without_a_gain_beyond_the_interval():
    base, up, same = est(0.3, 0.2, 0.4), est(0.6, 0.5, 0.7), est(0.62, 0.5, 0.7)
    assert not evaluate.plateau([base], 1)
    assert not evaluate.plateau([base, up], 1)
    assert evaluate.plateau([base, up, same], 1)
    assert not evaluate.plateau([base, up, same], 2)
    assert evaluate.plateau([base, up, same, same], 2)


def test_label_scores_become_top_shares_and_a_calibration_error():
    from vstar_fast.labels.scores import Scored, metrics

    names = ("a", "b", "c", "d", "e", "f")
    sure = Scored("1", names, (0.95, 0.05, 0.0, 0.0, 0.0, 0.0), "a")
    wrong = Scored("2", names, (0.55, 0.45, 0.0, 0.0, 0.0, 0.0), "b")
    last = Scored("3", names, (0.5, 0.3, 0.2, 0.0, 0.0, 0.0), "f")
    found = metrics([sure, wrong, last])
    assert found["n"] == 3 and found["top1"] == 1 / 3 and found["top5"] == 2 / 3
    assert abs(found["calibration_error"] - (0.05 + 1.05) / 3) < 1e-9
    assert metrics([]) == {"n": 0.0}
