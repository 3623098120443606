"""Questions: exact texts, stable choice of template, hints, gold answers, and the shuffled control."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vstar_fast.config import CycleConfig, DataConfig
from vstar_fast.errors import ConfigError
from vstar_fast.questions import ANSWER_FORMS, TEMPLATES, answer_text, ask, prompt_text, shuffle_labels, with_hint
from vstar_fast.records import LABEL_KINDS, Label, LabeledVideo, Question

ACTION = Label("class", "action", "spin_kick", set="actions")
COUNT = Label("number", "repetitions", 3, unit="times", event="jump")
SCORE = Label("number", "score", 45.9, unit="points")
WHEN = Label("interval", "jump time", (1.8, 3.6), event="jump")
STEPS = Label("sequence", "action", ("run", "jump", "back_flip"))
QA = Label("answer", "answer", "the red cup", question="What did he pick up?")
ALL = (ACTION, COUNT, SCORE, WHEN, STEPS, QA, Label("choice", "place", "kitchen", set="places"))


def video(id: str, *labels: Label) -> LabeledVideo:
    return LabeledVideo(id, f"{id}.mp4", labels or ALL)


def settings_(**data) -> CycleConfig:
    seed = data.pop("seed", 0)
    return CycleConfig(seed=seed, data=DataConfig(**data))


def one(label: Label, hint: bool = False) -> Question:
    question = ask([video("v", label)], settings_())[0]
    return with_hint(question) if hint else question


def test_class_question_has_exactly_one_of_the_three_texts():
    texts = {q.text for q in ask([video(f"v{i}", ACTION) for i in range(60)], settings_())}
    assert texts == {
        "Which action does the video show?",
        "What action is performed in this video?",
        "Name the action in the video.",
    }


def test_class_prompt_texts_are_fixed():
    question = Question("v/0-class", "v", "Name the action in the video.", (ACTION,), "class/2")
    steps = ' First say what you see, step by step. Then end with "Answer:" and the action.'
    assert prompt_text(question) == "Name the action in the video." + steps
    assert prompt_text(question, reason=False) == 'Name the action in the video. Reply with "Answer:" and the action.'
    hint = ' The right answer is "spin kick". Explain how the video shows it.'
    assert prompt_text(with_hint(question)) == "Name the action in the video." + hint + steps


@pytest.mark.parametrize(
    ("label", "form", "answer"),
    [
        (ACTION, "the action", "spin kick"),
        (COUNT, "the number of times", "3 times"),
        (dataclasses.replace(COUNT, value=1), "the number of times", "1 time"),
        (SCORE, "the number in points", "45.9 points"),
        (Label("number", "share", 12.5, unit="%"), "the number in %", "12.5%"),
        (Label("number", "year", 12345678), "the number", "12345678"),
        (Label("number", "size", 1e-7), "the number", "0.0000001"),
        (WHEN, "the start and end in seconds", "1.8 s to 3.6 s"),
        (Label("interval", "x", (0.0, 0.0312)), "the start and end in seconds", "0 s to 0.0312 s"),
        (STEPS, "the actions in order", "run, jump, back flip"),
        (QA, "a short answer", "the red cup"),
        (Label("choice", "answer", "B", question="A or B?"), "the right option", "B"),
    ],
)
def test_answer_form_and_gold_answer(label, form, answer):
    assert prompt_text(one(label)).endswith(f'Then end with "Answer:" and {form}.')
    assert answer_text(one(label)) == f"Answer: {answer}"
    assert f'The right answer is "{answer}".' in prompt_text(one(label, hint=True))


def test_several_labels_are_all_asked_for():
    question = Question("v/0", "v", "Rate the dive.", (STEPS, SCORE), "own")
    assert prompt_text(question).endswith('"Answer:" and the actions in order and the number in points.')
    assert answer_text(question) == "Answer: run, jump, back flip; 45.9 points"


def test_ids_are_stable_readable_and_unique():
    questions = ask([video("a"), video("b/1")], settings_())
    assert [q.id for q in questions][:3] == ["a/0-class", "a/1-number", "a/2-number"]
    assert len({q.id for q in questions}) == len(questions) == 2 * len(ALL)
    assert ask([video("b/1"), video("a")], settings_())[len(ALL) :] == questions[: len(ALL)]


def test_data_question_is_used_as_it_is():
    question = one(QA)
    assert (question.text, question.template) == ("What did he pick up?", "data")


def test_every_kind_has_templates_a_form_and_no_label_in_its_text():
    assert set(ANSWER_FORMS) == set(LABEL_KINDS)
    assert all(len(templates) >= 3 for templates in TEMPLATES.values())
    for question in ask([video(f"v{i}") for i in range(30)], settings_()):
        assert answer_text(question).removeprefix("Answer: ") not in prompt_text(question)
        assert "{" not in question.text


def test_intervals_and_counts_name_their_event():
    texts = [q.text for q in ask([video(f"v{i}", WHEN, COUNT) for i in range(30)], settings_())]
    assert all("the jump" in text for text in texts)
    long = Label("interval", "moment", (1, 2), event="a person opens the door")
    assert '"a person opens the door"' in one(long).text


def test_choice_lists_its_options_when_the_set_is_known():
    places = ["kitchen", "garden", "living_room", *(f"place {i}" for i in range(20))]
    label = Label("choice", "place", "kitchen", set="places")
    questions = ask([video(f"v{i}", label) for i in range(40)], settings_(), label_sets={"places": places})
    for question in questions:
        listed = question.text.rstrip("?.").split(": ")[-1].split(", ")
        assert "kitchen" in listed and len(listed) == 8 == len(set(listed))
    assert len({q.text.index("kitchen") for q in questions}) > 4


def test_questions_per_video_are_drawn_by_seed_in_label_order():
    videos = [video(f"v{i}") for i in range(20)]
    drawn = ask(videos, settings_(questions_per_video=2))
    assert Counter(q.video_id for q in drawn) == {f"v{i}": 2 for i in range(20)}
    assert drawn == ask(videos, settings_(questions_per_video=2))
    assert [q.id for q in drawn] != [q.id for q in ask(videos, settings_(questions_per_video=2, seed=1))]
    order = [q.id for q in ask(videos, settings_())]
    assert [q.id for q in drawn] == [id for id in order if id in {q.id for q in drawn}]


def test_own_templates_replace_ours_for_their_kind():
    config = settings_(questions={"class": ("Which sport of {names} is it?",)})
    first, second = ask([video("v", ACTION, WHEN)], config)
    assert (first.text, first.template) == ("Which sport of actions is it?", "own-class/0")
    assert second.template.startswith("interval/")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"clas": ("x",)}, "data.questions has unknown label kind 'clas'; known: class, choice"),
        ({"class": ()}, "data.questions.class is empty"),
        ({"class": ("Is it {value}?",)}, "'Is it {value}?' has {value}; a template may use {name}, {names}"),
        ({"class": ("Is it {?",)}, "data.questions.class: 'Is it {?' is not a template"),
    ],
)
def test_bad_own_templates_name_the_setting(own, message):
    with pytest.raises(ConfigError) as error:
        ask([video("v")], settings_(questions=own))
    assert message in str(error.value)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.sampled_from("abcde"), min_size=1, max_size=40), seed=st.integers(0, 5))
def test_shuffle_is_a_permutation_with_as_few_kept_values_as_possible(values, seed):
    questions = ask([video(f"v{i}", Label("class", "action", x)) for i, x in enumerate(values)], settings_())
    shuffled = shuffle_labels(questions, seed)
    new = [q.labels[0].value for q in shuffled]
    assert Counter(new) == Counter(values)
    most = max(Counter(values).values())
    assert sum(a == b for a, b in zip(values, new, strict=True)) == max(0, 2 * most - len(values))
    assert [(q.id, q.text) for q in shuffled] == [(q.id, q.text) for q in questions]
    assert shuffled == shuffle_labels(questions, seed)


def test_shuffle_is_no_fixed_renaming_and_keeps_kinds_apart():
    questions = ask([video(f"v{i}", Label("class", "action", "abc"[i % 3]), WHEN) for i in range(60)], settings_())
    shuffled = shuffle_labels(questions)
    pairs = {(a.labels[0].value, b.labels[0].value) for a, b in zip(questions, shuffled, strict=True)}
    assert pairs == {*((a, b) for a in "abc" for b in "abc" if a != b), ((1.8, 3.6), (1.8, 3.6))}


def test_shuffle_moves_aliases_and_tolerance_but_not_event_or_question():
    labels = [
        Label("number", "length", 1.0, unit="m", event="fish", abs_tolerance=0.1),
        Label("number", "length", 2.0, unit="m", event="bird", question="How long is it?"),
    ]
    first, second = shuffle_labels(ask([video(f"v{i}", x) for i, x in enumerate(labels)], settings_()))
    assert first.labels[0] == Label("number", "length", 2.0, unit="m", event="fish")
    assert (second.labels[0].value, second.labels[0].abs_tolerance) == (1.0, 0.1)
    assert (second.labels[0].event, second.text) == ("bird", "How long is it?")


def test_shuffle_lets_a_form_with_one_value_borrow_from_another():
    labels = [Label("choice", "a", "x", set="s1"), Label("choice", "b", "y", set="s2")]
    questions = ask([video(f"v{i}", x) for i, x in enumerate(labels)], settings_())
    assert [q.labels[0].value for q in shuffle_labels(questions)] == ["y", "x"]
