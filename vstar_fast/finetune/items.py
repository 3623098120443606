"""Examples as token ids: what stands before a video, behind it, and the answer that is trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from vstar_fast.models.prompts import Talk
from vstar_fast.models.video_lm import Features, VideoLM
from vstar_fast.records import FAILED, Example

Rows = Callable[[Sequence[Example]], tuple[Sequence[str], Sequence[Features | None]]]
"""(question texts, features; None for an example without a video) of examples."""


@dataclass(frozen=True)
class Item:
    """One example as the model takes it: ids int64 `head [h]`, video, `tail [t]`, `answer [n]`, `rejected [m]`.

    Without a video the whole prompt is `head`. `text` is the question, with what was said before it if anything.
    """

    example: Example
    text: str | Talk
    features: Features | None
    head: torch.Tensor
    tail: torch.Tensor
    answer: torch.Tensor
    rejected: torch.Tensor | None = None
    said: str = ""
    """The words of `answer`."""
    clip: int = 0
    """Number of the video among those of the items, by content; 0: none. Items of the same video share its tokens."""
    wanted: bool = True
    """False: an answer that the model is to find less likely (`objective = "kto"`)."""
    cuts: tuple[int, ...] = ()
    """Where earlier questions of the conversation end in the text behind the video (without one: in `head`)."""

    @property
    def prompt(self) -> list[torch.Tensor]:
        """Ids of the text before the video, in pieces; then of that behind it, in pieces, if there is a video."""
        text = self.head if self.features is None else self.tail
        ends = [*self.cuts, len(text)]
        pieces = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        return pieces if self.features is None else [self.head, *pieces]

    @cached_property
    def path(self) -> tuple[object, ...]:
        """Keys of the branches from the root to this item's answer: items share those that are equal."""
        keys: list[object] = [ids.numpy().tobytes() for ids in (*self.prompt, self.answer)]
        if self.features is not None:
            keys.insert(1, self.clip)
        return tuple(itertools.accumulate(keys, lambda before, key: (before, key)))

    @cached_property
    def parts(self) -> dict[object, int]:
        """Tokens that each branch of the path adds to a pack; nothing is predicted from an answer's last token."""
        counts = [*map(len, self.prompt), len(self.answer) - 1]
        if self.features is not None:
            counts.insert(1, len(self.features.ids))
        own = dict(zip(self.path, counts, strict=True))
        return own if self.rejected is None else own | self.against.parts

    @property
    def tokens(self) -> int:
        """Tokens of the example as a row of its own, of the longer one where there are two."""
        video = len(self.features.ids) if self.features is not None else 0
        longest = max(len(self.answer), 0 if self.rejected is None else len(self.rejected))
        return len(self.head) + video + len(self.tail) + longest

    @cached_property
    def against(self) -> Item:
        """The rejected answer as an item of its own."""
        assert self.rejected is not None
        return replace(self, answer=self.rejected, rejected=None, said=self.example.rejected, wanted=False)

    @property
    def alone(self) -> Item:
        """The kept answer without the rejected one."""
        return replace(self, rejected=None)

    def saying(self, other: Item) -> Item:
        """This item's question with another's answer."""
        return replace(self, answer=other.answer, rejected=None, said=other.said)


class Reader:
    """Examples -> items; the prompt around a question is rendered once."""

    def __init__(self, lm: VideoLM, rows: Rows) -> None:
        self._lm = lm
        self._rows = rows
        self._prompts: dict[tuple[str | Talk, bool], tuple[torch.Tensor, torch.Tensor]] = {}
        self._clips = Clips()

    def __call__(self, examples: Sequence[Example]) -> list[Item]:
        """One item for each example, in order."""
        texts, features = self._rows(examples)
        return [self._item(e, text, f) for e, text, f in zip(examples, texts, features, strict=True)]

    def _item(self, example: Example, text: str, features: Features | None) -> Item:
        before = tuple((asked, said) for asked, said in example.history)
        asked = Talk(before, text) if before else text
        head, tail = self._prompt(asked, features is not None)
        return Item(
            example,
            asked,
            features,
            head,
            tail,
            self._lm.answer_ids(example.answer),
            self._lm.answer_ids(example.rejected) if example.rejected else None,
            example.answer,
            self._clips.number(example.video_id, features),
            example.source != FAILED,
            self._cuts(before, tail if features is not None else head, features is not None),
        )

    def _prompt(self, text: str | Talk, video: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if (text, video) not in self._prompts:
            found = self._lm.split(text) if video else (self._lm.text_ids(text), torch.empty(0, dtype=torch.long))
            self._prompts[text, video] = found
        return self._prompts[text, video]

    def _cuts(self, before: tuple[tuple[str, str], ...], ids: torch.Tensor, video: bool) -> tuple[int, ...]:
        """Ends of the prompts of the conversation's earlier questions, those that this prompt begins with."""
        ends = []
        for n, (question, _) in enumerate(before):
            earlier = self._prompt(Talk(before[:n], question) if n else question, video)[1 if video else 0]
            if len(earlier) < len(ids) and torch.equal(earlier, ids[: len(earlier)]):
                ends.append(len(earlier))
        return tuple(ends)


class Clips:
    """Numbers videos from 1 by name and content, so that two that go by one name are not taken for the same.

    Nor are two names of one content: whether they come as one object depends on what a cache held.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, int], tuple[int, Features]] = {}
        self._named: dict[str, list[tuple[int, Features]]] = {}

    def number(self, name: str, features: Features | None) -> int:
        """The video's number; 0 for none."""
        if features is None:
            return 0
        key = name, id(features)
        if key not in self._numbers:  # held here too, or its id could be another's later
            self._numbers[key] = self._known(name, features), features
        return self._numbers[key][0]

    def _known(self, name: str, features: Features) -> int:
        """Videos are compared with those of the same name only."""
        named = self._named.setdefault(name, [])
        for number, other in named:
            if _same(features, other):
                return number
        number = len(self._numbers) + 1
        named.append((number, features))
        return number


def _same(one: Features, other: Features) -> bool:
    mine, theirs = ({"ids": f.ids, **f.kwargs, **f.token_kwargs} for f in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in mine.items())


def cut(item: Item, most: int) -> Item:
    """The item with its answers cut so that its row has at most `most` tokens; one answer token at least is left."""
    prompt = item.tokens - max(len(item.answer), 0 if item.rejected is None else len(item.rejected))
    left = max(1, most - prompt)
    return replace(item, answer=item.answer[:left], rejected=None if item.rejected is None else item.rejected[:left])
