"""Early stop: a template of the answers that the judge accepts, for every kind of label, never missing one of them."""

import itertools
import random

import pytest
import torch

from test_answer_slots import BYTES, SETS, action, asked, slots, takes
from vstar_fast import backends, match, ops, questions
from vstar_fast.config import MatchConfig
from vstar_fast.labels.slots import Slots
from vstar_fast.labels.wanted import Wanted, _holding, judge
from vstar_fast.match.text import Names, fold
from vstar_fast.records import Candidate, Label

COUNT = Label("number", "repetitions", 3.0, unit="times", event="jump")
ROUTINE = Label("sequence", "routine", ("walk", "spin kick"), set="actions")
JUMP = Label("interval", "when", (1.0, 2.0), event="jump")
SPEED = Label("number", "speed", 2.5)


def wanted(*pairs, config=None):
    config = config or MatchConfig()
    asked_of = [q for q, _ in pairs]
    return Wanted(slots(*pairs), judge(config, SETS, asked_of), config), judge(config, SETS, asked_of)


def moments():
    tenths = [f"{n / 10:.1f}" for n in range(0, 51, 2)]
    return [f"{a} s to {b} s" for a, b in itertools.product(tenths, tenths)]


CASES = {
    "class": ((action("spin kick"),), ["spin kick", "back flip", "walk", "walk.", "spin kick."]),
    "aliases": ((action("walk", aliases=("stroll",)),), ["stroll", "walk", "spin kick"]),
    "count": ((COUNT,), [f"{n}{unit}" for n in range(12) for unit in ("", " time", " times", " times.")]),
    "tolerance": (
        (Label("number", "weight", 40.0, unit="kg", rel_tolerance=0.1),),
        [f"{n}{unit}" for n in range(30, 50) for unit in ("", " kg")],
    ),
    "fraction": ((SPEED,), [f"{n / 100:.{d}f}" for n in range(200, 300, 3) for d in (1, 2, 3)]),
    "negative": ((Label("number", "balance", -2.0, abs_tolerance=1.0),), [str(n) for n in range(-6, 7)]),
    "interval": ((JUMP,), moments()),
    "sequence": (
        (ROUTINE,),
        ["walk, spin kick", "spin kick, walk", "walk", "walk, spin kick, walk", "walk, back flip", "walk, spin kick."],
    ),
    "several": (
        (action("walk"), COUNT, JUMP),
        [
            f"{a}; {n} times; {t}"
            for a in ("walk", "spin kick")
            for n in (2, 3)
            for t in ("1.0 s to 2.0 s", "1.2 s to 2.4 s", "3.0 s to 4.0 s")
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_accepted_answer_is_wanted_and_most_others_are_not(case):
    labels, texts = CASES[case]
    question, video = asked(*labels, length_s=5.0)
    made, judged = wanted((question, video))
    allowed = slots((question, video)).template(question, reason=True)
    template = made.template(question, reason=True)
    texts = [text for text in texts if takes(allowed, f"Hm. Answer: {text}")]
    passed = judged(question, texts)
    taken = [takes(template, f"Hm. Answer: {text}") for text in texts]
    assert any(passed) and not all(taken)
    assert all(took for took, ok in zip(taken, passed, strict=True) if ok)
    if case != "interval":  # there each end has bounds of its own
        assert taken == passed


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("interval", "several")])
def test_the_gold_answer_is_wanted(case):
    question, video = asked(*CASES[case][0], length_s=5.0)
    made, _ = wanted((question, video))
    assert takes(made.template(question, reason=False), questions.answer_text(question))
    assert made.template(question, reason=False) is made.template(question, reason=False)


def test_an_alias_that_another_question_gives_is_wanted_too():
    first, second = asked(action("walk", aliases=("stroll",))), asked(action("walk"))
    made, judged = wanted(first, second)
    assert judged(second[0], ["stroll"]) == [True]
    assert takes(made.template(second[0], reason=True), "Hm. Answer: stroll")


def test_where_it_cannot_be_said_every_answer_is_drawn_whole():
    free = asked(Label("answer", "place", "a park"), action("walk"))
    made, _ = wanted(free)
    assert made.template(free[0], reason=True) is None
    odd = Label("class", "action", "stop; go", set="odd")
    pair = asked(odd, action("walk"))
    assert wanted(pair)[0].template(pair[0], reason=True) is None


def test_a_wrong_number_is_lost_at_its_first_wrong_digit():
    question, video = asked(COUNT)
    made, _ = wanted((question, video))
    state = ops.DecodeState(ops.compile(made.template(question, reason=False), BYTES), batch=2)
    for a, b in zip(b"Answer: 3", b"Answer: 7", strict=True):
        state.advance_(torch.tensor([a, b]), strict=False)
    assert state.lost.tolist() == [False, True]


@pytest.mark.parametrize("case", ["count", "interval", "sequence", "several"])
def test_no_answer_that_is_stopped_would_have_been_accepted(case):
    """A model of random weights draws within the template; with early stop the accepted answers are the same ones."""
    import families
    from test_engine import text_model
    from vstar_fast.engine import Request, Scheduler, Settings, TextLM

    question, video = asked(*CASES[case][0], length_s=5.0)
    made, judged = wanted((question, video))
    tokenizer = families.byte_bpe()
    lm = TextLM(text_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id), tokenizer)
    template = slots((question, video)).template(question, reason=False)
    grammar, gold = (ops.compile(x, lm.vocab) for x in (template, made.template(question, reason=False)))
    ids, seeds, settings = lm.text_ids("Which action?"), range(400), Settings(1.0, max_new_tokens=60)

    def drawn(gold):
        scheduler = Scheduler(lm, max_rows=400)
        ((_, answers),) = scheduler.run([Request(ids[:0], ids, None, seeds, settings, grammar, gold)])
        return answers, scheduler.counts

    (whole, _), (cut, counts) = drawn(None), drawn(gold)
    texts = [tokenizer.decode(a.words).partition("Answer:")[2] for a in whole]
    passed = judged(question, texts)
    stopped = [a.finish == "stopped_early" for a in cut]
    assert counts.stopped_early == sum(stopped) > 100
    assert counts.tokens_saved > 0 or case == "count"  # a number may end at any digit
    assert not any(ok and gone for ok, gone in zip(passed, stopped, strict=True))
    assert all(a.token_ids == b.token_ids for a, b, gone in zip(whole, cut, stopped, strict=True) if not gone)


NESTED = {"moves": ("kick", "spin kick", "walk", "moon_walk", "not a walk")}
NAMED = pytest.mark.parametrize(("value", "aliases"), [("kick", ()), ("spin kick", ("whirl",)), ("walk", ("stroll",))])


@pytest.fixture(scope="module")
def speaker():
    """A model of random weights over a vocabulary of pieces of words."""
    import families
    from test_engine import text_model
    from vstar_fast.engine import TextLM

    tokenizer = families.byte_bpe()
    return TextLM(text_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id), tokenizer)


def nested(value, aliases, reason, vocab):
    """(question, grammar of the answers allowed, of those wanted)"""
    question, video = asked(Label("class", "action", value, set="moves", aliases=aliases))
    allowed = Slots([question], {video.id: video}, Names([question], NESTED).closed)
    made = Wanted(allowed, judge(MatchConfig(), NESTED, [question]), MatchConfig())
    nodes = (allowed.template(question, reason=reason), made.template(question, reason=reason))
    return question, *(ops.compile(node, vocab) for node in nodes)


def matched(question, vocab, answers):
    """Whether `strict` passes answers, lists of token ids, by `label_match` on the ids."""
    made = [
        Candidate(question.id, question.video_id, n, "direct", "", tuple(ids), 0.0, "stop", 0, "t", {}, "t")
        for n, ids in enumerate(answers)
    ]
    backends.reset_report()
    tokens = ops.TokenBytes(vocab.tokens)
    found = match.verify(made, [question], MatchConfig(), label_sets=NESTED, tokens=tokens)
    assert "cpp on token ids" in backends.report()["match"]
    return [verdict.passed for verdict in found]


@NAMED
def test_answers_stopped_early_are_those_that_label_match_refuses(value, aliases, speaker):
    """Names within names, aliases: the grammar's verdict while drawing is the matcher's on the whole."""
    from vstar_fast.engine import Request, Scheduler, Settings

    question, grammar, gold = nested(value, aliases, False, speaker.vocab)
    ids, settings = speaker.text_ids("Which action?"), Settings(1.0, max_new_tokens=60)

    def drawn(gold):
        asked = Request(ids[:0], ids, None, range(400), settings, grammar, gold)
        ((_, answers),) = Scheduler(speaker, max_rows=400).run([asked])
        return answers

    whole = drawn(None)
    assert {answer.finish for answer in whole} == {"stop"}
    passed = matched(question, speaker.vocab, [answer.words for answer in whole])
    assert passed == [answer.finish == "stop" for answer in drawn(gold)]
    assert 0 < sum(passed) < 400


@NAMED
def test_reasoning_changes_neither_verdict(value, aliases, speaker):
    """It may name any label, deny one, or say `Answer` without its colon."""
    question, grammar, gold = nested(value, aliases, True, speaker.vocab)
    words, made = ["not", "Answer", "or", ".", *NESTED["moves"]], random.Random(0)
    texts = [
        f"{' '.join(made.choices(words, k=made.randrange(6)))} Answer: {name.replace('_', ' ')}{made.choice(['', '.'])}"
        for name in made.choices([*NESTED["moves"], *aliases], k=300)
    ]
    answers = [speaker.tokenizer.encode(text, add_special_tokens=False) for text in texts]

    def taken(grammar, ids):
        state = ops.DecodeState(grammar, batch=1)
        for token in [*ids, *speaker.eos_ids[:1]]:
            state.advance_(torch.tensor([token]), strict=False)
        return not state.lost.item()

    assert all(taken(grammar, ids) for ids in answers)
    passed = matched(question, speaker.vocab, answers)
    assert passed == [taken(gold, ids) for ids in answers]
    assert 0 < sum(passed) < 300


def test_only_names_that_can_be_read_as_the_label_are_judged_and_none_is_missed():
    """Of 1,000 names all were judged for each: minutes before the first answer was drawn."""
    words = [
        "spin",
        "kick",
        "Stra\u00dfe",
        "STRASSE",
        "\u0130z",
        "caf\u00e9",
        "cafe\u0301",
        "a",
        "7",
        "up-down",
        "(left)",
        "d\u2019or",
    ]
    drawn = random.Random(0)
    names = list(dict.fromkeys(" ".join(drawn.choices(words, k=drawn.randint(1, 3))) for _ in range(60)))
    names = list({fold(name): name for name in names}.values())
    labels = [
        Label("class", "action", name, set="odd", aliases=("go " + name,) * (i % 2)) for i, name in enumerate(names)
    ]
    questions = [asked(label)[0] for label in labels]
    full = judge(MatchConfig(), {"odd": names}, questions)
    surfaces = {name: [name, *label.aliases] for name, label in zip(names, labels, strict=True)}
    listed = [s for x in surfaces.values() for s in x]
    for question, label in zip(questions, labels, strict=True):
        passed = {s for s, ok in zip(listed, full(question, listed), strict=True) if ok}
        near = _holding(surfaces, fold(label.value))
        assert passed <= set(near) and label.value in near
    many = {f"class number {i}": [f"class number {i}"] for i in range(1000)}
    assert _holding(many, "class number 7") == ["class number 7"]
