"""Numbers, intervals and sequences of generated answers, against Python's `re` and against the plain reference.

From text, the rival is a filter of `re` as people write it; from ids it decodes the rows first. Answers are written so
that such a filter reads them rightly: digits, seconds, and names as they stand in the list.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from vstar_fast.bench import token_rows
from vstar_fast.bench.label_match import FILLER, make_labels

from vstar_fast import backends
from vstar_fast.ops import LabelSet, match_interval, match_number, match_sequence

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

COLUMNS = 128
NAMES = make_labels(60)
ANSWER = re.compile(r"answer:", re.IGNORECASE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
NAME = re.compile(r"\b(?:" + "|".join(map(re.escape, NAMES)) + r")\b", re.IGNORECASE)


class Kind(NamedTuple):
    """One op: an answer with its own value, the op over rows, and the verdict of a filter on the slot's text."""

    answer: Callable[[random.Random], tuple[str, Any]]
    match: Callable[..., Any]
    judge: Callable[[str, Any], bool]


def a_number(rng: random.Random) -> tuple[str, float]:
    """A count, right in two of three answers."""
    gold = rng.randint(0, 60)
    return f"{gold if rng.random() < 0.66 else gold + 7} times", float(gold)


def judge_number(slot: str, gold: float) -> bool:
    """The first number, exactly."""
    found = NUMBER.search(slot)
    return found is not None and abs(float(found[0]) - gold) <= 1e-9 * max(1.0, abs(gold))


def an_interval(rng: random.Random) -> tuple[str, tuple[float, float]]:
    """Seconds with one decimal."""
    begin = rng.randint(0, 300) / 10
    end = begin + rng.randint(5, 100) / 10
    shift = rng.choice((0.0, 0.4, 20.0))
    return f"from {begin + shift:.1f} to {end + shift:.1f} seconds", (begin, end)


def judge_interval(slot: str, gold: tuple[float, float]) -> bool:
    """The first two numbers, with an IoU of at least one half."""
    found = NUMBER.findall(slot)
    if len(found) < 2 or not float(found[0]) < float(found[1]):
        return False
    begin, end = float(found[0]), float(found[1])
    inside = min(end, gold[1]) - max(begin, gold[0])
    return max(0.0, inside) / (max(end, gold[1]) - min(begin, gold[0])) >= 0.5 - 1e-9


def a_sequence(rng: random.Random) -> tuple[str, list[int]]:
    """Two to five names, in two of three answers in their order."""
    gold = rng.choices(range(len(NAMES)), k=rng.randint(2, 5))
    said = gold if rng.random() < 0.66 else rng.sample(gold, len(gold))
    return ", then ".join(NAMES[i] for i in said), gold


def judge_sequence(slot: str, gold: list[int]) -> bool:
    """The names in their order."""
    return [name.lower() for name in NAME.findall(slot)] == [NAMES[i] for i in gold]


@functools.cache
def _names() -> LabelSet:
    return LabelSet(NAMES)


def _match_sequence(rows: Any, gold: Any, **options: Any) -> Any:
    return match_sequence(rows, _names(), gold, **options)


def _match_number(rows: Any, gold: Any, **options: Any) -> Any:
    return match_number(rows, gold, unit="times", **options)


KINDS = {
    "number": Kind(a_number, _match_number, judge_number),
    "interval": Kind(an_interval, match_interval, judge_interval),
    "sequence": Kind(a_sequence, _match_sequence, judge_sequence),
}


def make_rows(kind: Kind, rows: int) -> tuple[list[str], list[Any]]:
    """Answers of about 60 words, and their own values."""
    rng = random.Random(0)
    texts, golds = [], []
    for _ in range(rows):
        words = " ".join(rng.choices(FILLER.split(), k=rng.randint(40, 80)))
        answer, gold = kind.answer(rng)
        texts.append(f"{words}. Answer: {answer}.")
        golds.append(gold)
    return texts, golds


def filtered(kind: Kind, texts: list[str], golds: list[Any]) -> list[bool]:
    """The verdicts of the filter of `re`."""
    out = []
    for text, gold in zip(texts, golds, strict=True):
        marks = list(ANSWER.finditer(text))
        out.append(bool(marks) and kind.judge(text[marks[-1].end() :], gold))
    return out


def same(match: Any, verdicts: list[bool]) -> bool:
    """Equal verdicts, and some of either kind."""
    return match.matched.tolist() == verdicts and 0 < sum(verdicts) < len(verdicts)


def same_table(match: Any, reference: Any) -> bool:
    """Equal in all that is told."""
    return torch.equal(match.table.cpu(), reference.table.cpu()) and torch.equal(match.score, reference.score)


def compare(bench: Bench, name: str, rows: int) -> None:
    """One op: from text, from ids, and against the reference on some rows."""
    kind, (_, tokens) = KINDS[name], token_rows.vocabulary()
    texts, golds = make_rows(kind, rows)
    ids = token_rows.id_rows(texts, COLUMNS)
    there, few = ids.to(bench.device), max(20, rows // 50)
    backend = backends.choose(f"match_{name}", bench.device).name
    bench.compare(
        f"{name} from text",
        lambda: kind.match(texts, golds, threads=1), lambda: filtered(kind, texts, golds), equal=same,
        names=("vstar-fast", "re"), work=(rows, "row"), backend="cpp", threads=1,
    )  # fmt: skip
    bench.compare(
        f"{name} from ids, {COLUMNS} a row",
        lambda: kind.match(there, golds, tokens=tokens, threads=1),
        lambda: filtered(kind, token_rows.decoded(there), golds), equal=same,
        names=("vstar-fast", "batch_decode and re"), work=(rows, "row"), backend=backend, threads=1,
    )  # fmt: skip
    bench.compare(
        f"{name} from ids, {few} rows",
        lambda: kind.match(ids[:few], golds[:few], tokens=tokens, threads=1),
        lambda: kind.match(ids[:few], golds[:few], tokens=tokens, backend="reference"), equal=same_table,
        names=("vstar-fast", "plain reference"), work=(few, "row"), backend="cpp", threads=1,
    )  # fmt: skip


def run(bench: Bench, quick: bool) -> None:
    """Numbers, intervals and sequences."""
    for name in KINDS:
        compare(bench, name, 500 if quick else 5000)
