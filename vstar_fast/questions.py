"""Questions from labels: text of the question, of the prompt around it, of the hint and of the gold answer.

A template may use `{name}`, `{names}` (plural), `{event}`, `{unit}` and `{options}` of its label, never the
label's value. Which template a label gets is a hash of (seed, video id, label): stable over runs and orders.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vstar_fast.config import CycleConfig
from vstar_fast.errors import ConfigError
from vstar_fast.labels.texts import label_text, words
from vstar_fast.records import Label, LabeledVideo, Question

# Open table: question form -> templates. The form is the label kind, but for counts and closed choices.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "class": (
        "Which {name} does the video show?",
        "What {name} is performed in this video?",
        "Name the {name} in the video.",
    ),
    "choice": (
        "Which {name} does the video show?",
        "Which {name} fits the video?",
        "Pick the {name} of the video.",
    ),
    "options": (
        "Which {name} does the video show: {options}?",
        "Which of these fits the video: {options}?",
        "Pick the {name} of the video from: {options}.",
    ),
    "answer": (
        "What {name} does the video show?",
        "What is the {name} in the video?",
        "Describe the {name} in the video.",
    ),
    "number": (
        "What is the {name} in the video?",
        "Which {name} does the video show?",
        "Give the {name} of the video.",
    ),
    "count": (
        "How many times does the video show {event}?",
        "How often does {event} happen in the video?",
        "Count {event} in the video. How many times does it happen?",
    ),
    "interval": (
        "When does {event} happen in the video?",
        "At what time does {event} start and end in the video?",
        "From when to when does the video show {event}?",
    ),
    "sequence": (
        "Which {names} does the video show, in order?",
        "List the {names} in the video in order.",
        "What {names} happen in the video, one after the other?",
    ),
}

# Label kind -> what the answer after "Answer:" is.
ANSWER_FORMS: dict[str, Callable[[Label], str]] = {
    "class": lambda label: f"the {words(label.name)}",
    "choice": lambda label: "the right option" if label.question else f"the {words(label.name)}",
    "answer": lambda _: "a short answer",
    "number": lambda label: _number_form(label.unit),
    "interval": lambda _: "the start and end in seconds",
    "sequence": lambda label: f"the {_names(label)} in order",
}

COUNT_UNITS = ("times", "time", "repetitions", "reps")
OPTIONS = 8
"""Most options a question lists; a larger label set is cut to the label and others drawn by hash."""


def ask(
    videos: Iterable[LabeledVideo],
    config: CycleConfig,
    *,
    label_sets: Mapping[str, Sequence[str]] | None = None,
) -> list[Question]:
    """One question a label, or `data.questions_per_video` of them a video, drawn by seed.

    `label_sets` lets `choice` questions list their options. Raises ConfigError for an own template that
    names an unknown kind or placeholder.
    """
    own = _own_templates(config.data.questions)
    per_video, sets = config.data.questions_per_video, label_sets or {}
    questions = []
    for video in videos:
        chosen = list(enumerate(video.labels))
        if 0 < per_video < len(chosen):
            chosen = sorted(sorted(chosen, key=lambda x: _hash(config.seed, video.id, x[0], "draw"))[:per_video])
        questions += [_question(video.id, n, label, config.seed, own, sets) for n, label in chosen]
    return questions


def prompt_text(question: Question, *, reason: bool = True) -> str:
    """What the model is asked: the question, the hint if it has one, and the form of the answer."""
    form = " and ".join(ANSWER_FORMS[label.kind](label) for label in question.labels)
    hint = f' The right answer is "{question.hint}". Explain how the video shows it.' if question.hint else ""
    if reason:
        return f'{question.text}{hint} First say what you see, step by step. Then end with "Answer:" and {form}.'
    return f'{question.text}{hint} Reply with "Answer:" and {form}.'


def with_hint(question: Question) -> Question:
    """The question with its labels in words as the hint: the second try (rationalization)."""
    return dataclasses.replace(question, hint=_gold(question))


def answer_text(question: Question) -> str:
    """The gold answer alone, as labels-only fine-tuning sees it: `Answer: run, jump, backflip`."""
    return f"Answer: {_gold(question)}"


def shuffle_labels(questions: Sequence[Question], seed: int = 0) -> list[Question]:
    """The same questions with label values permuted among questions of one form: the shuffled control.

    Within a form (kind, name, label set and unit of every label) no question keeps its value, as far as
    the values allow. A form with a single value borrows from others of the same kind.
    """
    shuffled = list(questions)
    groups = _grouped(questions, lambda q: tuple((x.kind, x.name, x.set, x.unit) for x in q.labels))
    lonely: list[int] = []
    for rows in groups.values():
        if len({_values(questions[i]) for i in rows}) < 2:
            lonely += rows
        else:
            _derange(shuffled, questions, rows, seed)
    for rows in _grouped(questions, lambda q: tuple(x.kind for x in q.labels), lonely).values():
        _derange(shuffled, questions, rows, seed)
    return shuffled


def _question(
    video_id: str,
    n: int,
    label: Label,
    seed: int,
    own: Mapping[str, tuple[str, ...]],
    sets: Mapping[str, Sequence[str]],
) -> Question:
    key = f"{video_id}/{n}-{label.kind}"
    if label.question:
        return Question(key, video_id, label.question, (label,), "data")
    pick = _hash(seed, video_id, n, label.kind, label.name, label.value)
    options = _options(label, sets, pick)
    form = _form(label, options)
    templates = own.get(label.kind) or TEMPLATES[form]
    index = pick % len(templates)
    name = words(label.name)
    text = templates[index].format(
        name=name,
        names=_names(label),
        event=_event(label),
        unit=label.unit or "",
        options=", ".join(options),
    )
    return Question(key, video_id, text, (label,), f"{'own-' if label.kind in own else ''}{form}/{index}")


def _form(label: Label, options: Sequence[str]) -> str:
    if label.kind == "number" and label.event and label.unit in COUNT_UNITS:
        return "count"
    if label.kind == "choice" and options:
        return "options"
    return label.kind


def _options(label: Label, sets: Mapping[str, Sequence[str]], pick: int) -> list[str]:
    if label.kind != "choice" or label.set is None or label.set not in sets:
        return []
    draw = random.Random(pick)
    others = [x for x in sets[label.set] if words(x).casefold() != words(label.value).casefold()]
    draw.shuffle(others)
    options = [label.value, *others[: OPTIONS - 1]]
    draw.shuffle(options)
    return [words(x) for x in options]


def _own_templates(own: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    allowed = ("name", "names", "event", "unit", "options")
    for kind, templates in own.items():
        if kind not in ANSWER_FORMS:
            raise ConfigError(f"data.questions has unknown label kind {kind!r}; known: {', '.join(ANSWER_FORMS)}")
        if not templates:
            raise ConfigError(f"data.questions.{kind} is empty; give at least one template or leave it out")
        for text in templates:
            try:
                fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
            except ValueError as error:
                raise ConfigError(f"data.questions.{kind}: {text!r} is not a template: {error}") from None
            unknown = [field for field in fields if field not in allowed]
            if unknown:
                known = ", ".join(f"{{{x}}}" for x in allowed)
                raise ConfigError(f"data.questions.{kind}: {text!r} has {{{unknown[0]}}}; a template may use {known}")
    return dict(own)


def _plural(word: str) -> str:
    if word.endswith("s"):
        return word
    return word[:-1] + "ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else word + "s"


def _names(label: Label) -> str:
    """Plural of what the label names; the items of a sequence go by a label set such as `actions`."""
    if label.kind == "sequence" and label.set and label.set.isalpha() and label.set.endswith("s"):
        return label.set
    return _plural(words(label.name))


def _event(label: Label) -> str:
    event = words(label.event or label.name)
    if len(event.split()) > 3:
        return f'"{event}"'
    return event if event.split()[0].lower() in ("the", "a", "an") else f"the {event}"


def _number_form(unit: str | None) -> str:
    if not unit:
        return "the number"
    return f"the number of {_plural(unit)}" if unit in COUNT_UNITS else f"the number in {unit}"


def _gold(question: Question) -> str:
    return "; ".join(label_text(label) for label in question.labels)


def _hash(*parts: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def _values(question: Question) -> tuple[Any, ...]:
    return tuple(label.value for label in question.labels)


def _grouped(
    questions: Sequence[Question], key: Callable[[Question], Any], rows: Iterable[int] | None = None
) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = {}
    for i in range(len(questions)) if rows is None else rows:
        groups.setdefault(key(questions[i]), []).append(i)
    return groups


def _derange(into: list[Question], questions: Sequence[Question], rows: list[int], seed: int) -> None:
    """Permute values over `rows` at random, then swap away what stayed; a swap exists whenever one helps."""
    values = [_values(questions[i]) for i in rows]
    rng = random.Random(_hash(seed, len(rows), questions[rows[0]].id))
    order = rng.sample(range(len(rows)), len(rows))
    stuck = set()
    for i, value in enumerate(values):
        if values[order[i]] != value or value in stuck:
            continue
        first = rng.randrange(len(rows))
        for j in (*range(first, len(rows)), *range(first)):
            if values[j] != value and values[order[j]] != value:
                order[i], order[j] = order[j], order[i]
                break
        else:
            stuck.add(value)
    for i, row in enumerate(rows):
        into[row] = _with_values(questions[row], questions[rows[order[i]]])


def _with_values(question: Question, other: Question) -> Question:
    """`question` asking for the values of `other`; everything its text was made of stays."""
    labels = tuple(
        dataclasses.replace(
            own,
            value=new.value,
            aliases=new.aliases,
            abs_tolerance=new.abs_tolerance,
            rel_tolerance=new.rel_tolerance,
        )
        for own, new in zip(question.labels, other.labels, strict=True)
    )
    return dataclasses.replace(question, labels=labels)
