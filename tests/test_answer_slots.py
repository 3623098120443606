"""Templates of the answer slot: gold answers fit, wrong forms do not, and the asked value decides nothing."""

import pytest
import torch

from vstar_fast import ops, questions
from vstar_fast.errors import ConstrainError
from vstar_fast.labels.slots import Slots
from vstar_fast.match.text import Names
from vstar_fast.records import Label, LabeledVideo, Question

BYTES = ops.TokenVocab([bytes([i]) for i in range(256)] + [None], eos_ids=256)
SETS = {"actions": ("back_flip", "spin kick", "walk")}


def asked(*labels, length_s=4.2, start_s=None):
    """A question with these labels about a clip of its own, and the clip."""
    video = LabeledVideo(
        f"v{asked.count}", "v.mp4", labels, start_s=start_s, duration_s=None if length_s is None else length_s
    )
    asked.count += 1
    return Question(video.id, video.id, "Which action?", labels, "t"), video


asked.count = 0


def slots(*pairs):
    every = [q for q, _ in pairs]
    return Slots(every, {v.id: v for _, v in pairs}, Names(every, SETS).closed)


def takes(template, text):
    """Whether the compiled template takes the bytes of a text and then the end of the turn."""
    state = ops.DecodeState(ops.compile(template, BYTES), batch=1)
    try:
        for token in [*text.encode(), 256]:
            state.advance_(torch.tensor([token]))
    except ConstrainError:
        return False
    return True


def action(value, **more):
    return Label("class", "action", value, set="actions", **more)


CASES = {
    "class": (action("spin kick"), ["spin kick", "back flip", "walk."], ["Spin", "run", "spin", "walk, back flip"]),
    "aliases": (action("walk", aliases=("stroll",)), ["stroll", "walk"], ["strolling"]),
    "sequence": (
        Label("sequence", "routine", ("walk", "spin kick"), set="actions"),
        ["walk, spin kick", "walk", "back flip, back flip."],
        ["walk, spin kick, walk", "walk spin kick", "walk,"],
    ),
    "count": (
        Label("number", "repetitions", 3.0, unit="times", event="jump"),
        ["3", "3 times", "1 time", "250 times."],
        ["3.5 times", "-3", "three", "03"],
    ),
    "fraction": (Label("number", "speed", -1.5), ["-1.5", "0", "12.25."], ["1.2345", "fast"]),
    "interval": (
        Label("interval", "when", (1.0, 2.0), event="jump"),
        ["1.0 s to 2.0 s", "0.0 s to 5.0 s."],
        ["2.0 s to 1.0 s", "1.0 s to 9.0 s", "1 s to 2 s", "1.0 s"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_slot_takes_what_the_label_kind_allows_and_nothing_else(case):
    label, good, bad = CASES[case]
    question, video = asked(label)
    template = slots((question, video)).template(question, reason=True)
    for value in good:
        assert takes(template, f"A person moves. Answer: {value}"), value
    for value in bad:
        assert not takes(template, f"A person moves. Answer: {value}"), value
    assert not takes(template, "A person moves.") and not takes(template, "Answer:")


@pytest.mark.parametrize("case", [c for c in CASES if c != "interval"])
def test_the_gold_answer_fits(case):
    question, video = asked(CASES[case][0])
    template = slots((question, video)).template(question, reason=False)
    assert takes(template, questions.answer_text(question))


def test_without_reasons_the_answer_comes_first():
    question, video = asked(action("walk"))
    template = slots((question, video)).template(question, reason=False)
    assert takes(template, "Answer: walk") and not takes(template, "I see. Answer: walk")


def test_the_asked_value_decides_nothing():
    pairs = [asked(action(name)) for name in SETS["actions"]]
    pairs += [asked(Label("interval", "when", (a, a + 1.0), event="jump"), length_s=3.9 + a / 10) for a in (0.0, 0.5)]
    made = slots(*pairs)
    found = [made.template(q, reason=True) for q, _ in pairs]
    assert found[0] is found[1] is found[2] and found[3] is found[4]


def test_several_labels_have_a_part_each():
    question, video = asked(action("walk"), Label("number", "repetitions", 2.0, unit="times"))
    template = slots((question, video)).template(question, reason=True)
    assert takes(template, f"Hm. {questions.answer_text(question)}")
    assert not takes(template, "Hm. Answer: walk") and not takes(template, "Hm. Answer: 2 times; walk")


def test_a_free_label_beside_a_closed_one_stays_free():
    question, video = asked(Label("answer", "place", "a park"), action("walk"))
    template = slots((question, video)).template(question, reason=True)
    assert takes(template, "Hm. Answer: by the sea; walk") and not takes(template, "Hm. Answer: by the sea; swim")


@pytest.mark.parametrize("label", [Label("answer", "place", "a park"), Label("class", "action", "walk")])
def test_labels_without_a_closed_set_are_free(label):
    question, video = asked(label)
    assert slots((question, video)).template(question, reason=True) is None


@pytest.mark.parametrize(("length_s", "start_s"), [(None, None), (7200.0, None)])
def test_times_of_long_or_unmeasured_clips_are_plain_numbers(length_s, start_s):
    question, video = asked(Label("interval", "when", (60.0, 90.0), event="jump"), length_s=length_s, start_s=start_s)
    template = slots((question, video)).template(question, reason=True)
    assert takes(template, "Hm. Answer: 61 s to 89.5 s") and not takes(template, "Hm. Answer: soon")


def test_times_end_with_the_window():
    question, video = asked(Label("interval", "when", (0.0, 1.0), event="jump"), length_s=10.0, start_s=7.5)
    template = slots((question, video)).template(question, reason=True)
    assert takes(template, "Hm. Answer: 0.5 s to 3.0 s") and not takes(template, "Hm. Answer: 0.5 s to 3.1 s")
