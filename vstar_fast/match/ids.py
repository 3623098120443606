"""Class names in generated token ids: most answers are judged where they lie, and never become text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vstar_fast import backends
from vstar_fast.errors import DataError
from vstar_fast.match.classes import alone, compiled, set_bits
from vstar_fast.match.text import ANSWER, ClosedSet, Names
from vstar_fast.records import Candidate, Question, Span, Verdict

if TYPE_CHECKING:
    import torch

    from vstar_fast.kernels.label_match import LabelMatch, TokenBytes

KINDS = ("class", "choice")
_STRAY = re.compile("[\udc80-\udcff]")
"""A byte that is not valid UTF-8, one character each, as the op counts them."""


def with_text(candidate: Candidate, tokens: TokenBytes | None) -> Candidate:
    """The candidate with its text, spelt from its ids where it has none; DataError when nothing can spell them."""
    if candidate.text or not candidate.token_ids:
        return candidate
    if tokens is None:
        raise DataError(f"candidate {candidate.key} has token ids and no text; pass the bytes of its tokens")
    text = tokens.spell(candidate.token_ids).decode("utf-8", "surrogateescape")
    return dataclasses.replace(candidate, text=_STRAY.sub("\ufffd", text))


class _Row(NamedTuple):
    """What the op says of one answer: labels that occur after `Answer:`, none inside another, and where."""

    answered: bool
    labels: list[int]
    negated: bool = False
    span: Span | None = None
    at_end: bool = False


def verdicts(
    candidates: Sequence[Candidate], questions: Sequence[Question], names: Names, tokens: TokenBytes, *, guard: bool
) -> dict[int, Verdict]:
    """Verdicts by position, of `strict` answers that name one label of a set, none, or do not answer.

    Left to be read as text: other label kinds, several labels in one answer, denied ones, rationalizations that
    passed where the leak guard (`guard`) must read them, and candidates that came as text.
    """
    groups: dict[int, tuple[ClosedSet, list[int]]] = {}
    for i, (candidate, question) in enumerate(zip(candidates, questions, strict=True)):
        if candidate.text or len(question.labels) != 1 or question.labels[0].kind not in KINDS:
            continue
        closed = names.closed(question.labels[0]) or alone(question.labels[0])
        groups.setdefault(id(closed), (closed, []))[1].append(i)
    out: dict[int, Verdict] = {}
    for closed, rows in groups.values():
        own = [closed.id(questions[i].labels[0].value) for i in rows]
        for i, row, mine in zip(rows, _read([candidates[i] for i in rows], closed, tokens), own, strict=True):
            found = _verdict(candidates[i], questions[i], row, mine, closed, guard)
            if found is not None:
                out[i] = found
    return out


class _Ids(NamedTuple):
    """Token ids of answers, one behind the other: int64 [total], offsets [answers + 1]."""

    flat: torch.Tensor
    offsets: torch.Tensor

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> _Ids:
        import torch

        sizes = [len(c.token_ids) for c in candidates]
        every = chain.from_iterable(c.token_ids for c in candidates)
        flat = np.fromiter(every, np.int64, sum(sizes))
        return cls(torch.from_numpy(flat), torch.tensor([0, *accumulate(sizes)]))

    def pick(self, places: torch.Tensor) -> _Ids:
        """The answers at `places` [n], which may repeat."""
        import torch

        if torch.equal(places, torch.arange(len(self.offsets) - 1)):
            return self
        sizes = self.offsets.diff()[places]
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        moved = (self.offsets[places] - offsets[:-1]).repeat_interleave(sizes)
        return _Ids(self.flat[moved + torch.arange(len(moved))], offsets)


def _read(candidates: Sequence[Candidate], closed: ClosedSet, tokens: TokenBytes) -> list[_Row]:
    """One call tells which labels occur, a second one where: a row of it for each label of each answer."""
    ids = _Ids.of(candidates)
    found = _call(ids, closed, [-1] * len(candidates), tokens)
    assert found.which_bits is not None
    rows = [_Row(at >= 0, []) for at in found.searched_from.tolist()]
    places, labels = set_bits(found.which_bits)
    if not len(places):
        return rows
    again = _call(ids.pick(places), closed, labels, tokens)
    columns = (again.first_chars, again.first, again.first_tokens)
    spans = zip(*(map(tuple, column.tolist()) for column in columns), strict=True)
    stands = (again.matched & ~again.inside_longer).tolist()
    ends = (again.first[:, 1] == again.length).tolist()
    each = zip(places.tolist(), labels.tolist(), stands, again.negated.tolist(), spans, ends, strict=True)
    for place, label, stands_alone, negated, three, at_end in each:
        if stands_alone:
            rows[place] = _Row(True, [*rows[place].labels, label], negated, Span(*three), at_end)
    return rows


def _call(ids: _Ids, closed: ClosedSet, own: Sequence[int] | torch.Tensor, tokens: TokenBytes) -> LabelMatch:
    from vstar_fast.kernels.label_match import label_match

    found = label_match(tuple(ids), compiled(closed), own, tokens=tokens, after=ANSWER, which=True, negation=True)
    backends.ran("match", f"{found.backend} on token ids")
    return found


def _verdict(
    candidate: Candidate, question: Question, row: _Row, own: int, closed: ClosedSet, guard: bool
) -> Verdict | None:
    key = (candidate.question_id, candidate.mode, candidate.sample)
    cut = candidate.finish == "length"
    if candidate.finish == "stopped_early":
        return Verdict(*key, False, "stopped_early")
    if not row.answered:
        return Verdict(*key, False, "truncated" if cut else "no_answer")
    if not row.labels:
        return Verdict(*key, False, "truncated" if cut else "no_value", (None,), (None,), (0.0,))
    right = row.labels == [own]
    if len(row.labels) > 1 or (right and row.negated):
        return None
    if right and guard and candidate.mode == "rationalized":
        return None
    value = question.labels[0].value if right else closed.names[row.labels[0]]
    reason = "wrong_value" if not right else "truncated" if cut and row.at_end else "ok"
    return Verdict(*key, reason == "ok", reason, (value,), (row.span,), (float(right),))
