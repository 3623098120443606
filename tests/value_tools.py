"""Texts with numbers, rows of ids that spell them, and results as plain lists, for the tests of value_match."""

import dataclasses

from hypothesis import strategies as st

from vstar_fast.ops import SequenceMatch, ValueMatch

WORDS = (
    "1 2 12 345 007 , . : - + \u2212 e E 1e5 e+3 % ° s ms min m km rd D x two Twenty five -five eleven zero once dozen "
    "million or to ſix \u212am é \u0301 _ ( ) ] ~ – 字 ٣ not n't Answer: answer: 1:23 :45 .5 ,678 kicks µ \x1c"
)
PIECES = st.sampled_from([*WORDS.split(" "), " ", " ", "  ", "\n", " and a half", " or ", " to ", "\u00a0"])
TEXTS = st.lists(PIECES, max_size=9).map("".join)


class Spelt:
    """Texts cut into tokens anywhere, even inside characters, with tokens that add nothing between them."""

    def __init__(self, draw, texts: list[bytes]) -> None:
        self.pieces: list[bytes | None] = [None, b""]
        self.rows: list[list[int]] = []
        for text in texts:
            row = [0]
            while text:
                size = draw(st.sampled_from([1, 2, 3, 6, 20]))
                row += [len(self.pieces), *draw(st.lists(st.sampled_from([0, 1]), max_size=1))]
                self.pieces.append(text[:size])
                text = text[size:]
            self.rows.append(row)


def figures(match: ValueMatch | SequenceMatch) -> list[object]:
    """All that a result says, NaN as text."""
    more = match.items if isinstance(match, SequenceMatch) else match.values
    return [match.table.tolist(), [[str(x) for x in row] for row in more.tolist()], match.score.tolist()]


def without_tokens(match: ValueMatch | SequenceMatch) -> list[object]:
    """As figures, for a call on text as well."""
    table = match.table.clone()
    table[:, 6:8] = -1
    if isinstance(match, SequenceMatch):
        match = dataclasses.replace(match, items=match.items.clone())
        match.item_tokens.fill_(-1)
    return [table.tolist(), *figures(match)[1:]]
