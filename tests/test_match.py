"""Verdicts: every kind and reason in the strict profile, the paper's two profiles, and Video-STaR's defects."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vstar_fast import backends
from vstar_fast.config import CycleConfig, MatchConfig, RationalizeConfig
from vstar_fast.errors import ConfigError, DataError
from vstar_fast.match import PROFILES, REASONS, chance_acceptance, select_by_fraction, verify
from vstar_fast.match.numbers import read_numbers
from vstar_fast.questions import answer_text, ask, with_hint
from vstar_fast.records import LABEL_KINDS, Candidate, Label, LabeledVideo, Question, Verdict

ACTIONS = ("kick", "spin kick", "spin", "backflip", "run", "jump", "get up")
SETS = {"actions": ACTIONS}


def action(value="backflip", *aliases: str) -> Label:
    return Label("class", "action", value, set="actions", aliases=aliases)


def number(value, unit=None, **more) -> Label:
    return Label("number", "score", value, unit=unit, **more)


def span(start=1.8, end=3.6) -> Label:
    return Label("interval", "when", (start, end), event="jump")


def steps(*items: str, set="actions") -> Label:
    return Label("sequence", "routine", items, set=set)


def free(value, *aliases: str) -> Label:
    return Label("answer", "answer", value, aliases=aliases, question="What?")


def judge(label, text, *, profile="strict", mode="direct", finish="stop", more=(), **config) -> Verdict:
    """The verdict on one answer; `text` without `Answer:` gets it in front."""
    labels = label if isinstance(label, tuple) else (label,)
    question = Question("q", "v", "?", labels, "t")
    text = text if "nswer:" in text or text.startswith("!") else f"Answer: {text}"
    candidate = Candidate("q", "v", 0, mode, text.removeprefix("!"), (), 0.0, finish, 0, "t", {}, "t")
    rules = MatchConfig(profile=profile, **config)
    return verify([candidate], [question, *more], rules, label_sets=SETS, rationalize=RationalizeConfig())[0]


def reason(label, text, **more) -> str:
    verdict = judge(label, text, **more)
    assert verdict.passed == (verdict.reason == "ok") and verdict.reason in REASONS
    return verdict.reason


HEDGED = (
    """
    between 3 and 5 times|3, 4 or 5|less than 3|3/4|3 minus 1|at least 3|about 3 or 4|3 / 4|3 + 1|3 plus 1
    more than 3 times|fewer than about 3|up to 3|over 3|> 3|>=3|≤ 3|3+|3 times or more|3 or fewer|3 jumps at least
    a minimum of 3|half of 3|3 x 4|3 times 4|3*2|3 ± 1|3 and 4|3 or maybe 4|3, maybe 4|3 jumps or 4 jumps|3 (or 4)|3, 4
    3 times, or 4|3 (three) or 4|3 to four times|3 times (maybe 4)|3...5|three, perhaps four|as many as 3|**3** or 4
""".strip()
    .replace("\n    ", "|")
    .split("|")
)
PLAIN = (
    """
    3 times|3.|about 3|3 jumps and then a rest|3, because the person jumps 3 times|three (3) times|3 (three)
    3 times.|**3**|3 jumps, then 4 seconds of rest|It happens 3 times|<b>3</b>|-> 3|3 out of 4|3 times in 10 seconds
    3 times, 4 seconds each|3. He starts at 2 s.|nearly 3|3 times or so|3, or three times|x = 3
""".strip()
    .replace("\n    ", "|")
    .split("|")
)


@pytest.mark.parametrize(
    ("label", "text", "want"),
    [
        (action(), "First he runs. Answer: backflip", "ok"),
        (action(), "It is a backflip.", "ok"),
        (action(), "**BackFlip**", "ok"),
        (action(), "run. No. Answer: backflip", "ok"),
        (action("spin kick"), "spin_kick", "ok"),
        (action("spin kick"), "a Spin-Kick!", "ok"),
        (action("spin kick", "spinning kick"), "spinning  kick", "ok"),
        (action("kick"), "kick", "ok"),
        (action("get up"), "get\nup", "ok"),
        (action(), "!he does a backflip", "no_answer"),
        (action(), "backflip. Answer: ", "no_value"),
        (action(), "Answer: backflip. Answer: run", "wrong_value"),
        (action(), "swimming", "no_value"),
        (action(), "backflips", "no_value"),
        (action(), "back flip", "no_value"),
        (action("kick"), "spin kick", "wrong_value"),
        (action("kick"), "sidekick", "no_value"),
        (action("spin"), "spin kick", "wrong_value"),
        (action("kick"), "spin kick or kick", "ambiguous"),
        (action(), "backflip or run", "ambiguous"),
        (action(), "run, jump, backflip, kick, spin", "ambiguous"),
        (action(), "not a backflip", "negated"),
        (action(), "neither a backflip", "negated"),
        (action(), "This isn't really a backflip", "negated"),
        (action(), "this is not a run but a backflip", "ambiguous"),
        (action(), "I am not sure, backflip", "ok"),
        (action(), "not only a backflip", "ok"),
        (action(), "no doubt a backflip", "ok"),
        (action("spin kick"), "not a spin kick", "negated"),
        (action("run"), "jump and spin", "wrong_value"),
        (Label("class", "sport", "Tai chi"), "tai-chi and run", "ok"),
        (Label("class", "sport", "no smoking"), "no smoking", "ok"),
        (Label("class", "sport", "été"), "ÉTÉ", "ok"),
        (Label("choice", "place", "kitchen", set="places"), "the kitchen", "ok"),
        # -- number: the first one after `Answer:`
        (number(45.9, "points"), "45.9 points", "ok"),
        (number(45.9, "points"), "about 45.9", "ok"),
        (number(45.9, "points"), "47", "ok"),
        (number(45.9, "points"), "48.3", "off_tolerance"),
        (number(45.9, "points", rel_tolerance=0.1), "48.3", "ok"),
        (number(45.9, "points", abs_tolerance=0.0), "45.8", "off_tolerance"),
        (number(10, abs_tolerance=1, rel_tolerance=0.1), "12", "ok"),
        (number(7), "7 out of 10", "ok"),
        (number(7), "7/10", "ambiguous"),
        (number(10), "7 out of 10", "off_tolerance"),
        (number(3, "times"), "3", "ok"),
        (number(3, "times"), "three times", "ok"),
        (number(2, "times"), "twice", "ok"),
        (number(3, "times"), "3x", "ok"),
        (number(40, "times"), "41 times", "off_tolerance"),
        (number(40, "times", abs_tolerance=1), "41 times", "ok"),
        (number(3, "times"), "3 seconds", "wrong_unit"),
        (number(3, "times"), "0:03", "wrong_unit"),
        (number(1234567.5), "1,234,567.5", "ok"),
        (number(-5), "-5", "ok"),
        (number(-5), "\u22125", "ok"),
        (number(5), "-5", "off_tolerance"),
        (number(3), "- 3", "ok"),
        (number(0.5), ".5", "ok"),
        (number(1500), "1.5e3", "ok"),
        (number(12.5, "%"), "12.5 %", "ok"),
        (number(12.5, "%"), "12.5 percent", "ok"),
        (number(0.125), "12.5%", "ok"),
        (number(90, "s"), "1:30", "ok"),
        (number(90, "s"), "1.5 min", "ok"),
        (number(90, "s"), "1.5m", "ok"),
        (number(1.5, "min"), "90 seconds", "ok"),
        (number(3690, "s"), "1:01:30", "ok"),
        (number(0.25, "s"), "250 ms", "ok"),
        (number(1.8, "m"), "180 cm", "ok"),
        (number(1.8, "m"), "1.8 s", "wrong_unit"),
        (number(3), "3 or 4", "ambiguous"),
        (number(3), "3-4", "ambiguous"),
        (number(3), "three to four", "ambiguous"),
        (number(3), "not 3", "negated"),
        *((number(3, "times"), text, "ambiguous") for text in HEDGED),
        *((number(3, "times"), text, "ok") for text in PLAIN),
        (number(3), "3/4", "ambiguous"),
        (number(4), "at least 3", "ambiguous"),
        (number(3), "3, 4 seconds each", "ambiguous"),
        (number(90, "s"), "1.5 min (90 s)", "ok"),
        (number(90, "s"), "1.5 min or 100 s", "ambiguous"),
        (number(95, "points"), "95 points out of 100", "ok"),
        (number(3), "many", "no_value"),
        (number(3), "the 3rd, in 3D, v3, 1.2.3", "no_value"),
        (number(1.5), "1,5", "no_value"),
        (number(3), "I count 3. Answer: 4", "off_tolerance"),
        (number(0), "zero", "ok"),
        # -- interval
        (span(), "1.8 s to 3.6 s", "ok"),
        (span(), "from 1.8 to 3.6", "ok"),
        (span(), "between 1.8 and 3.6 seconds", "ok"),
        (span(), "[1.8, 3.6]", "ok"),
        (span(1, 3), "[1,3]", "ok"),
        (span(), "1.8-3.6s", "ok"),
        (span(), "1.8\u20133.6", "ok"),
        (span(1, 3), "0:01-0:03", "ok"),
        (span(1, 3), "00:00:01 --> 00:00:03", "ok"),
        (span(60, 120), "1 to 2 minutes", "ok"),
        (span(1, 3), "one to three seconds", "ok"),
        (span(1, 3), "one person, from 1 to 3", "ok"),
        (span(), "starts at 1.8 s and ends at 3.6 s (1.8 s long)", "ok"),
        (span(0, 4), "0 to 2", "ok"),
        (span(0, 4), "0 to 1.9", "low_iou"),
        (span(), "10 to 12", "low_iou"),
        (span(), "3.6 to 1.8", "wrong_order"),
        (span(), "1.8", "no_value"),
        (span(), "1 to 2 or 3 to 4", "ambiguous"),
        (span(), "10 % to 20 %", "wrong_unit"),
        (span(1, 3), "frame 1 to 3", "ok"),
        (span(1, 3), "1 to 3 frames", "wrong_unit"),
        (span(), "not from 1.8 to 3.6", "negated"),
        # -- sequence
        (steps("run", "jump", "backflip"), "run, jump, backflip", "ok"),
        (steps("run", "jump", "backflip"), "First run, then Jump and a backflip.", "ok"),
        (steps("run", "jump", "run"), "run -> jump -> run", "ok"),
        (steps("run", "spin kick"), "run, spin_kick", "ok"),
        (steps("run", "jump", "backflip"), "backflip, jump, run", "wrong_order"),
        (steps("run", "jump"), "run, jump, kick", "wrong_length"),
        (steps("run", "jump"), "run", "wrong_length"),
        (steps("run", "jump"), "run, kick", "wrong_value"),
        (steps("run", "kick"), "run, spin kick", "wrong_value"),
        (steps("run", "jump"), "walking around", "no_value"),
        (steps("run", "jump"), "run, not jump", "negated"),
        (steps("entry", "pike", set=None), "1. entry\n2. pike", "ok"),
        (steps("entry", "pike", set=None), "entry, twist, pike", "wrong_length"),
        (steps("entry", "pike", set=None), "entry, and then a Pike.", "ok"),
        (steps("entry", "pike", set=None), "pike; entry", "wrong_order"),
        # -- answer
        (free("a red cup"), "The red cup.", "ok"),
        (free("a red cup"), "he takes the red cup", "ok"),
        (free("a red cup"), "a cup", "wrong_value"),
        (free("cup", "mug"), "his mug", "ok"),
        (free("cup"), "cupboard", "wrong_value"),
        (free("cup"), "not a cup", "negated"),
        *((free("red"), text, "ambiguous") for text in ("red or blue", "red, green, blue or yellow", "blue or red")),
        *(
            (free("red"), text, "ambiguous")
            for text in ("It is either red, or blue.", "red/blue", "a red or a blue one")
        ),
        *((free("red"), text, "ok") for text in ("red", "a red one", "red and shiny", "The colour is red.")),
        (free("red"), "red, because he runs or jumps", "ok"),
        (free("red"), "red, he runs or jumps. Red or not", "ambiguous"),
        (free("red", "crimson"), "red or crimson", "ok"),
        (free("a man"), "a man or a woman", "ambiguous"),
        (free("red or blue"), "red or blue", "ok"),
        (free("now or never"), "it is now or never", "ok"),
        (free("1/2"), "1/2 cup", "ok"),
        (free("two"), "2", "ok"),
        (free("cup"), " ... ", "no_value"),
        (free("yes"), "Yes, she does.", "ok"),
        (free("yes"), "No", "wrong_value"),
        (free("no"), "There is no doubt that he does", "wrong_value"),
        (free("no"), "No, there is not.", "ok"),
        (free("no"), "The answer is no", "ok"),
        (free("yes"), "yes or no", "ambiguous"),
        (free("yes"), "not yes", "negated"),
        (free("yes"), "perhaps", "wrong_value"),
        # -- several labels: all must pass
        ((steps("run", "jump"), number(45.9, "points")), "run, jump; 45.9 points", "ok"),
        ((steps("run", "jump"), number(45.9, "points")), "run, jump; 99 points", "off_tolerance"),
        ((steps("run", "jump"), number(45.9, "points")), "run; 45.9 points", "wrong_length"),
        ((number(1), number(2)), "1; 2", "ok"),
        ((number(1), number(2)), "1", "off_tolerance"),
    ],
)
def test_strict(label, text, want):
    assert reason(label, text) == want


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("twenty-one and Thirty five, forty", [21, 35, 40]),
        ("two hundred, three dozen, 2 thousand, 1.5 million", [200, 36, 2000, 1.5e6]),
        ("two and a half", [2.5]),
        ("once, twice, thrice, Zero, twelve, nineteen", [1, 2, 3, 0, 12, 19]),
        ("1,234,567.25; 12,34; 1,234", [1234567.25, 1234]),
        ("-1 +2 3-4 (5) -.5 \u22126 x-7", [-1, 2, 3, 4, 5, -0.5, -6, 7]),
        ("1:05, 01:02:03.5, 3:1, 1:234", [65, 3723.5]),
        ("3rd 3D v3 1.2.3 1e3 2E-2 _4 5eggs 6x", [1000, 0.02, 6]),
        ("\u017fix, s\u0130x, tw\u0131ce", [6, 6, 2]),
        ("someone alone often", []),
        ("", []),
    ],
)
def test_numbers_as_written(text, values):
    assert [x.value for x in read_numbers(text, 0, len(text))] == values


def test_extracted_values_and_scores():
    assert judge(action(), "run").extracted == ("run",)
    assert judge(action(), "backflip or run").extracted == ("backflip | run",)
    assert judge(number(90, "s"), "1.4 min").extracted == (pytest.approx(84),)
    assert judge(number(90, "s"), "many").extracted == (None,)
    far = judge(span(0, 4), "0:02 to 0:06")
    assert (far.extracted, far.scores) == (((2.0, 6.0),), (pytest.approx(1 / 3),))
    assert judge(span(0, 4), "1 to 3").scores == (0.5,)
    assert judge(steps("run", "jump", "backflip"), "run, backflip").scores == (pytest.approx(2 / 3),)
    assert judge(steps("run", "jump"), "run, kick").extracted == (("run", "kick"),)
    assert judge((action(), number(3)), "backflip; 4").scores == (1.0, 0.0)
    assert (judge(action(), "!x").extracted, judge(action(), "!x").spans) == ((), ())


@pytest.mark.parametrize(
    ("label", "text", "marked"),
    [
        (action("spin kick"), "Élan! Answer: a Spin-Kick.", "Spin-Kick"),
        (action("kick"), "Answer: über kick or run", "kick"),
        (number(3, "s"), "Schöne Antwort. Answer: \u2248 3 s lang", "3 s"),
        (number(200), "Answer: two hundred", "two hundred"),
        (span(), "ü Answer: from 1.8 s to 3.6 s", "1.8 s to 3.6 s"),
        (steps("run", "jump"), "ü Answer: run, then jump.", "run, then jump"),
        (free("red cup"), "ü Answer: the red cup", "the red cup"),
    ],
)
def test_spans_are_places_in_the_original_text(label, text, marked):
    (span,) = judge(label, text).spans
    assert text[slice(*span.char)] == marked
    assert text.encode()[slice(*span.byte)].decode() == marked


def test_other_labels_of_the_set_are_known_by_their_aliases():
    other = Question("o", "v", "?", (action("jump", "leap", "hop"),), "t")
    assert reason(action(), "backflip with a leap") == "ok"
    assert reason(action(), "backflip with a leap", more=[other]) == "ambiguous"
    assert reason(steps("run", "jump"), "run, leap", more=[other]) == "ok"
    clash = Question("c", "v", "?", (action("run", "hop", "jump"),), "t")
    assert reason(action("jump", "hop"), "hop", more=[other, clash]) == "no_value"
    assert reason(action("jump"), "jump", more=[other, clash]) == "ok"


def test_token_budget():
    assert reason(action(), "!he runs and", finish="length") == "truncated"
    assert reason(action(), "Answer:", finish="length") == "truncated"
    assert reason(number(4), "4", finish="length") == "truncated"
    assert reason(number(4), "4 ", finish="length") == "ok"
    assert reason(number(4), "5", finish="length") == "off_tolerance"
    assert reason(action(), "backflip", finish="length", profile="paper") == "ok"


GOOD = "The person is upside down in the air, moving forward."


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (f"{GOOD} Answer: backflip", "ok"),
        (f"{GOOD} So it is a backflip. Answer: backflip", "ok"),
        ("The legs swing over the hands; then to the right Answer: backflip", "ok"),
        (f"{GOOD} The hint says so. Answer: backflip", "leak_hint"),
        (f"The right answer is backflip. {GOOD} Answer: backflip", "leak_hint"),
        (f"{GOOD} As stated, Answer: backflip", "leak_hint"),
        (f"{GOOD} I was told so. Answer: backflip", "leak_hint"),
        (f"{GOOD} Answer: backflip, according to the label", "leak_hint"),
        (f"{GOOD} The answer was given. Answer: backflip", "leak_hint"),
        (f"Backflip. {GOOD} Answer: backflip", "leak_label_first"),
        (f"The video shows a back-flip, as {GOOD} Answer: backflip", "leak_label_first"),
        ("Answer: backflip", "no_reasoning"),
        ("Back flip! Answer: backflip", "no_reasoning"),
        (f"{GOOD} Answer: run", "wrong_value"),
    ],
)
def test_leak_guard(text, want):
    label = action("backflip", "back flip")
    assert reason(label, text, mode="rationalized") == want
    assert reason(label, text, mode="direct") == ("wrong_value" if want == "wrong_value" else "ok")


@pytest.mark.parametrize(
    ("label", "text", "want"),
    [
        (number(3, "times"), "3 times is what it shows. Answer: 3", "leak_label_first"),
        (number(3, "times"), "Three is what this clip shows. Answer: 3", "leak_label_first"),
        (number(3, "times"), "The video shows three times, arms up and legs apart. Answer: 3", "leak_label_first"),
        (number(3, "times", event="jump"), "3 jumps are what it shows here. Answer: 3", "leak_label_first"),
        (number(3, "times", event="jump"), "He jumps about 3 times, from the wall. Answer: 3", "leak_label_first"),
        (number(3, "times"), "3 people lift both arms, high, 3 times. Answer: 3", "ok"),
        (number(1, "times"), "One person lifts both arms, once. Answer: 1", "ok"),
        (number(3, "times"), "It takes 3 seconds: both arms go up, down, 3 times. Answer: 3", "ok"),
        (number(3, "times"), "Arms up, arms down, and again and again: 3 times. Answer: 3", "ok"),
        (number(90, "s"), "1.5 min is how long this is. Answer: 90 s", "leak_label_first"),
        (number(0.125), "12.5% is what the clip shows. Answer: 12.5%", "leak_label_first"),
        (span(), "1.8 s to 3.6 s is when it happens. Answer: 1.8 s to 3.6 s", "leak_label_first"),
        (span(), "The jump starts at 1.8 and ends at 3.6 seconds, as one sees. Answer: 1.8 to 3.6", "leak_label_first"),
        (span(), "Both feet leave the floor at 1.8 s and land at 3.6 s. Answer: 1.8 to 3.6", "ok"),
        (span(), "At 1.8 s both feet leave the floor, at 3.6 s they land. Answer: 1.8 to 3.6", "ok"),
        (span(1.234, 3.6), "1.23 s to 3.6 s is when it happens. Answer: 1.23 to 3.6", "leak_label_first"),
        (steps("run", "jump"), "Run then jump is what it does here. Answer: run, jump", "leak_label_first"),
        (
            steps("run", "jump", "run"),
            "It is run, jump, run: long strides, a leap. Answer: run, jump, run",
            "leak_label_first",
        ),
        (steps("run", "jump"), "Run with long strides, then jump over the bar. Answer: run, jump", "ok"),
        (steps("run", "jump"), "Jump, no: the legs go fast: run, and jump at last. Answer: run, jump", "ok"),
        (steps("run", "jump"), "The run is first, and so on to the end. Answer: run, jump", "ok"),
    ],
)
def test_leak_guard_of_numbers_intervals_and_sequences(label, text, want):
    assert reason(label, text, mode="rationalized") == want
    assert reason(label, text, mode="direct") == "ok"


def test_leak_guard_of_other_kinds_and_off():
    text = "The run, the jump: Answer: run, jump"
    assert reason(steps("run", "jump"), text, mode="rationalized") == "no_reasoning"
    assert reason(number(3), "He lifts both arms 3 times. Answer: 3", mode="rationalized") == "ok"
    question = Question("q", "v", "?", (action(),), "t")
    candidate = Candidate("q", "v", 0, "rationalized", "Answer: backflip", (), 0.0, "stop", 0, "t", {}, "t")
    for guard in (None, RationalizeConfig(leak_guard=False)):
        assert verify([candidate], [question], MatchConfig(), label_sets=SETS, rationalize=guard)[0].passed


@pytest.mark.parametrize(
    ("label", "text", "paper", "code"),
    [
        (action("backflip"), "!He does a backflip", "ok", "ok"),
        (action("backflip"), "!He does a bckflip", "ok", "ok"),
        (action("backflip"), "!He does a bakflap", "ok", "no_value"),
        (action("spin kick"), "!kick with a spin", "ok", "ok"),
        (action("spin kick"), "!a kick", "no_value", "no_value"),
        (action("backflip", "somersault"), "!a somersault", "ok", "ok"),
        (number(100), "!it is 104", "ok", "ok"),
        (number(100), "!it is 108", "off_tolerance", "ok"),
        (number(100), "!it is 112", "off_tolerance", "off_tolerance"),
        (number(100), "104. I had said 100", "ok", "ok"),
        (number(40, "times"), "41 times", "ok", "ok"),
        (span(0, 4), "!it lasts from 0 to 2", "ok", "low_iou"),
        (span(0, 4), "!it lasts from 0 to 2.1", "ok", "ok"),
        (steps("run", "jump"), "!He runns, well, run, then a jump", "ok", "ok"),
        (steps("run", "jump"), "!jump and then run", "wrong_order", "wrong_order"),
        (steps("run", "jump"), "!run only", "wrong_length", "wrong_length"),
        (steps("run", "jump"), "!nothing", "no_value", "no_value"),
    ],
)
def test_paper_profiles(label, text, paper, code):
    assert reason(label, text, profile="paper") == paper
    assert reason(label, text, profile="paper-code") == code


def test_hedges_are_the_strict_profiles_own():
    """The paper's profiles stay as they are described: one stated number, names anywhere."""
    for profile in ("paper", "paper-code"):
        assert reason(number(3), "at least 3", profile=profile) == "ok"
        assert reason(number(3), "3/4", profile=profile) == "ok"
        assert reason(number(3), "3 or 4", profile=profile) == "ambiguous"
        assert reason(free("red"), "red or blue", profile=profile) == "ok"


def test_paper_code_uses_its_own_iou_and_strict_the_setting():
    assert reason(span(0, 4), "0 to 3", iou=0.8) == "low_iou"
    assert reason(span(0, 4), "0 to 3", iou=0.8, profile="paper") == "low_iou"
    assert reason(span(0, 4), "0 to 3", iou=0.8, profile="paper-code") == "ok"
    assert reason(number(100), "109", rel_tolerance=0.1) == "ok"


# -- defects of the released verifier: each is shown not to be here, in every profile ---------------

ALL = tuple(PROFILES)


@pytest.mark.parametrize("profile", ALL)
def test_defect_any_number_anywhere(profile):
    """There, an answer with "out of 100" passes every gold score from 91 to 111."""
    assert reason(number(95, "points"), "Answer: 60 points out of 100", profile=profile) == "off_tolerance"
    text = "I saw 95 people. Of 95, Answer: 60"
    assert reason(number(95), text, profile=profile) == "off_tolerance"


@pytest.mark.parametrize("profile", ["paper", "paper-code"])
def test_defect_any_number_anywhere_without_an_answer_slot(profile):
    assert reason(number(95), "!95 people, 12 dogs", profile=profile) == "off_tolerance"
    assert reason(number(12), "!95 people, 12 dogs", profile=profile) == "ok"


@pytest.mark.parametrize("profile", ALL)
def test_defect_no_number_raises(profile):
    """There, no number is an exception, and the sample is neither rejected nor rationalized."""
    assert reason(number(95), "Answer: a lot", profile=profile) == "no_value"
    assert reason(span(), "Answer: at the start", profile=profile) == "no_value"


@pytest.mark.parametrize("profile", ALL)
@pytest.mark.parametrize("gold", [(0.0, 0.4), (0.6, 1.0), (0.0, 1.0)])
def test_defect_interval_at_the_edge(profile, gold):
    """There, 0 < start and end < 1 must hold, so a segment at an edge of the clip can never be answered."""
    verdict = judge(span(*gold), f"Answer: {gold[0]} to {gold[1]}", profile=profile)
    assert verdict.passed and verdict.scores == (1.0,)


@pytest.mark.parametrize("profile", ALL)
def test_defect_order_of_sub_actions(profile):
    """There, sub-actions come sorted by id (np.unique), not by time, and lose their repetitions."""
    gold = steps("spin", "run", "jump", "run")
    assert reason(gold, "Answer: spin, run, jump, run", profile=profile) == "ok"
    assert reason(gold, "Answer: jump, run, spin", profile=profile) != "ok"
    assert reason(steps("spin", "run"), "Answer: run, spin", profile=profile) == "wrong_order"


@pytest.mark.parametrize("profile", ALL)
def test_defect_names_of_short_words_pass_everything(profile):
    """There, a label without a word of more than two letters has no keyword to miss."""
    label = Label("class", "direction", "up")
    assert reason(label, "Answer: down", profile=profile) == "no_value"
    assert reason(label, "Answer: up", profile=profile) == "ok"


def test_defect_unknown_verifier_opens_a_debugger(monkeypatch):
    with pytest.raises(ConfigError, match="match.profile = 'llm' is not one of strict, paper, paper-code"):
        MatchConfig(profile="llm")
    config = MatchConfig()
    object.__setattr__(config, "profile", "llm")
    with pytest.raises(ConfigError, match="unknown match.profile 'llm'; known: strict, paper, paper-code"):
        verify([], [], config)
    monkeypatch.setitem(LABEL_KINDS, "box", lambda label: None)
    with pytest.raises(DataError, match="'strict' has no matcher for label kind 'box'; it has: class, choice, answer"):
        judge(Label("box", "place", (0, 0, 1, 1)), "[0, 0, 1, 1]")


@pytest.mark.parametrize("profile", ALL)
def test_defect_rationalization_verifies_itself(profile):
    """There, repeating the hint is enough (96 % of STAR against 6.5 % direct)."""
    text = "The right answer is backflip. Answer: backflip"
    assert reason(action(), text, profile=profile, mode="rationalized") == "leak_hint"
    assert reason(action(), "Answer: backflip", profile=profile, mode="rationalized") == "no_reasoning"


def test_defect_pairing_by_position():
    """There, answers are paired with questions by place, so one missing row shifts all others."""
    questions = [Question(f"q{i}", "v", "?", (action(ACTIONS[i]),), "t") for i in range(7)]
    texts = {q.id: f"Answer: {q.labels[0].value}" for q in questions}
    order = ["q5", "q2", "q5", "q6"]
    rows = [Candidate(q, "v", i, "direct", texts[q], (), 0.0, "stop", 0, "t", {}, "t") for i, q in enumerate(order)]
    for asked in (questions, {q.id: q for q in questions}):
        verdicts = verify(rows, asked, MatchConfig(), label_sets=SETS)
        assert [(v.question_id, v.sample, v.passed) for v in verdicts] == [(q, i, True) for i, q in enumerate(order)]
    with pytest.raises(DataError, match="no question 'q6' for candidate"):
        verify(rows, questions[:6], MatchConfig())


def test_defect_values_are_printed(capsys):
    judge(span(), "1 to 2")
    assert capsys.readouterr() == ("", "")


def test_backend_that_ran_is_noted():
    backends.reset_report()
    judge((action(), number(3)), "backflip; 3")
    assert backends.report()["match"] == {backends.choose("label_match").name: 1, "python": 1}


def test_tables_are_complete():
    assert all(set(profile.matchers) == set(LABEL_KINDS) for profile in PROFILES.values())


# -- properties -------------------------------------------------------------------------------------

NAMES = st.text("abcdeéß_- 12", min_size=1, max_size=10).filter(lambda x: any(c.isalnum() for c in x))
FLOATS = st.floats(-1e7, 1e7, allow_nan=False).map(lambda x: round(x, 4))
LABELS = st.one_of(
    st.sampled_from(ACTIONS).map(action),
    FLOATS.map(number),
    st.tuples(FLOATS, st.sampled_from(["s", "points", "%", "m", "laps"])).map(lambda x: number(*x)),
    st.integers(0, 10**6).map(lambda x: number(x, "times")),
    st.tuples(st.floats(0, 1e3), st.floats(0.05, 1e3)).map(lambda x: span(x[0], x[0] + x[1])),
    st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=5).map(lambda x: steps(*x)),
    NAMES.map(free),
    NAMES.map(lambda x: Label("class", "thing", x)),
    st.sampled_from(["yes", "no", "true", "False"]).map(free),
)


@settings(max_examples=250, deadline=None)
@given(label=LABELS)
def test_gold_answer_of_any_label_passes(label):
    question = ask([LabeledVideo("v", "v.mp4", (label,))], CycleConfig())[0]
    text = f"{GOOD} {answer_text(question)}"
    assert reason(label, text) == "ok"
    assert reason(label, text, mode="rationalized") == "ok"
    assert with_hint(question).hint in text


@settings(max_examples=250, deadline=None)
@given(label=LABELS, text=st.text(max_size=60), slot=st.booleans(), profile=st.sampled_from(ALL))
def test_any_text_gets_a_verdict(label, text, slot, profile):
    text = ("Answer: " if slot else "!") + text
    verdict = judge(label, text, profile=profile, mode="rationalized")
    assert verdict.passed == (verdict.reason == "ok") and verdict.reason in REASONS
    assert all(0 <= score <= 1 for score in verdict.scores)
    text = text.removeprefix("!")
    for place in (x for x in verdict.spans if x):
        assert text.encode(errors="surrogatepass")[slice(*place.byte)] == text[slice(*place.char)].encode(
            errors="surrogatepass"
        )


@settings(max_examples=200, deadline=None)
@given(value=st.floats(-1e9, 1e9, allow_nan=False), digits=st.integers(0, 6), style=st.sampled_from(["{}", "{:,}"]))
def test_written_numbers_are_read_back(value, digits, style):
    text = style.format(round(value, digits))
    found = [x.value for x in read_numbers(f"it is {text}.", 0, len(text) + 7)]
    assert found == [round(value, digits)]


@settings(max_examples=150, deadline=None)
@given(a=st.tuples(st.integers(0, 50), st.integers(1, 50)), b=st.tuples(st.integers(0, 50), st.integers(1, 50)))
def test_iou_is_that_of_the_sets_of_moments(a, b):
    first, second = ({*range(x[0], x[0] + x[1])} for x in (a, b))
    verdict = judge(span(a[0], a[0] + a[1]), f"{b[0]} to {b[0] + b[1]}")
    assert verdict.scores == (pytest.approx(len(first & second) / len(first | second)),)
    assert verdict.passed == (verdict.scores[0] >= 0.5)


@settings(max_examples=150, deadline=None)
@given(
    picked=st.lists(st.sampled_from([*ACTIONS, "a", "not", "the", "swim"]), max_size=5), own=st.sampled_from(ACTIONS)
)
def test_class_names_against_regular_expressions(picked, own):
    """The longest label at a place wins; exactly one label may be left, and it must be the own one."""
    text = ", ".join(picked)
    longest = "|".join(sorted(ACTIONS, key=len, reverse=True))
    seen = set(re.findall(rf"\b(?:{longest})\b", text))
    passed = judge(action(own), f"Answer: {text}").passed
    assert passed == (seen == {own})


# -- helpers ----------------------------------------------------------------------------------------


def test_chance_acceptance_against_simulation_and_formula():
    closed = Question("q", "v", "?", (action(),), "t")
    both = Question("b", "v", "?", (action(), action("run")), "t")
    open_ended = Question("o", "v", "?", (number(3),), "t")
    assert chance_acceptance([closed], SETS, 1) == pytest.approx(1 / 7)
    assert chance_acceptance([closed, open_ended], SETS, 4) == pytest.approx(1 - (6 / 7) ** 4)
    assert chance_acceptance([closed, both], SETS, 1) == pytest.approx((1 / 7 + 1 / 49) / 2)
    assert chance_acceptance([open_ended], SETS, 4) == 0.0 == chance_acceptance([closed], {}, 4)


def test_select_by_fraction_counts_each_question_and_mode():
    rows = [("a", "direct", True), ("a", "direct", False), ("a", "rationalized", True), ("b", "direct", False)]
    rows += [("c", "direct", i == 0) for i in range(4)]
    verdicts = [Verdict(q, mode, i, passed, "") for i, (q, mode, passed) in enumerate(rows)]
    assert [v.sample for v in select_by_fraction(verdicts, 0.5)] == [0, 2]
    assert [v.sample for v in select_by_fraction(verdicts, 0.0)] == [0, 2, 4]
    assert [v.sample for v in select_by_fraction(verdicts, 0.6)] == [2]


def test_verify_is_pure_and_row_by_row_equals_batch():
    texts = ["backflip", "run or jump", "not a spin", "kick", "spin kick", "", "get up"]
    questions = [Question(f"q{i}", "v", "?", (action(ACTIONS[i % 7]),), "t") for i in range(14)]
    rows = [
        Candidate(q.id, "v", n, "direct", f"Answer: {text}", (), 0.0, "stop", 0, "t", {}, "t")
        for q in questions
        for n, text in enumerate(texts)
    ]
    whole = verify(rows, questions, MatchConfig(), label_sets=SETS)
    assert whole == [verify([row], questions, MatchConfig(), label_sets=SETS)[0] for row in rows]
    assert sum(v.passed for v in whole) == 8
