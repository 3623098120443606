"""Does an answer that was given the label as a hint reason, or does it only repeat the hint?"""

from __future__ import annotations

import re

from vstar_fast.match.text import WORD, answer_start, own_forms
from vstar_fast.records import Label, Question

_HINT = re.compile(
    r"\bhint(?:s|ed)?\b"
    r"|\b(?:right|correct|given|provided|stated|expected|known|true|gold|supplied) (?:answer|label)\b"
    r"|\b(?:answer|label) (?:is|was|has been|that was|you) (?:already )?(?:given|provided|stated|told|supplied|gave)\b"
    r"|\bas (?:is |was )?(?:stated|given|provided|mentioned|told|indicated|you (?:said|say|told))\b"
    r"|\b(?:i|we) (?:was|were|am|are|have been) (?:told|given the (?:answer|label))\b"
    r"|\b(?:as|according to|based on|because of|from|since|given) the (?:answer|label|question|prompt)\b",
    re.IGNORECASE,
)
# Words that say nothing about what is seen.
_EMPTY = frozenset(
    """
    a an the this that these there it its is are was were be been being and or of in on at to with as so by for i we
    you he she they can see seen sees saw say says first then video videos clip clips show shows showing shown
    person man woman someone somebody people action actions activity answer label do does doing perform performs
    performing performed question step steps what which name here named called one who has have
    """.split()  # noqa: SIM905
)
LEAST_WORDS = 3
"""Fewest words of reasoning before `Answer:`, the label's own not counted."""
LEAST_SEEN = 2
"""Fewest words about what is seen before the label may be named."""
_NAMED = ("class", "choice", "answer")


def leak(text: str, question: Question) -> str | None:
    """`leak_hint`, `no_reasoning` or `leak_label_first`; None for an answer that reasons first."""
    start = answer_start(text)
    head, tail = (text, "") if start < 0 else (text[: start - len("answer:")], text[start:])
    if _HINT.search(head) or _HINT.search(tail):
        return "leak_hint"
    for label in question.labels:
        why = _label(head, label)
        if why:
            return why
    return None


def _label(head: str, label: Label) -> str | None:
    named = list(own_forms(label).scan(head)) if label.kind in (*_NAMED, "sequence") else []
    words = [w for w in WORD.finditer(head) if not any(x.start <= w.start() < x.end for x in named)]
    if len(words) < LEAST_WORDS:
        return "no_reasoning"
    if named and label.kind in _NAMED:
        seen = [w for w in words if w.end() <= named[0].start and w[0].casefold() not in _EMPTY]
        if len(seen) < LEAST_SEEN:
            return "leak_label_first"
    return None
