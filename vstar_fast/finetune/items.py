"""Examples as token ids: what stands before a video, behind it, and the answer that is trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from vstar_fast.models.video_lm import Features, VideoLM
from vstar_fast.records import Example

Rows = Callable[[Sequence[Example]], tuple[Sequence[str], Sequence[Features | None]]]
"""(question texts, features; None for an example without a video) of examples."""


@dataclass(frozen=True)
class Item:
    """One example as the model takes it: ids int64 `head [h]`, video, `tail [t]`, `answer [n]`, `rejected [m]`.

    Without a video the whole prompt is `head`. `text` is the question.
    """

    example: Example
    text: str
    features: Features | None
    head: torch.Tensor
    tail: torch.Tensor
    answer: torch.Tensor
    rejected: torch.Tensor | None = None
    said: str = ""
    """The words of `answer`."""

    @property
    def video(self) -> str:
        """Items of the same video share its tokens."""
        return self.example.video_id if self.features is not None else ""

    @cached_property
    def path(self) -> tuple[object, ...]:
        """Keys of the branches from the root to this item's answer: items share those that are equal."""
        head, tail, answer = (ids.numpy().tobytes() for ids in (self.head, self.tail, self.answer))
        keys = [head] if self.features is None else [head, self.video, tail]
        return tuple(itertools.accumulate([*keys, answer], lambda before, key: (before, key)))

    @cached_property
    def parts(self) -> dict[object, int]:
        """Tokens that each branch of the path adds to a pack; nothing is predicted from an answer's last token."""
        video = [] if self.features is None else [len(self.features.ids), len(self.tail)]
        own = dict(zip(self.path, [len(self.head), *video, len(self.answer) - 1], strict=True))
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
        return replace(self, answer=self.rejected, rejected=None, said=self.example.rejected)


class Reader:
    """Examples -> items; the prompt around a question is rendered once."""

    def __init__(self, lm: VideoLM, rows: Rows) -> None:
        self._lm = lm
        self._rows = rows
        self._prompts: dict[tuple[str, bool], tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, examples: Sequence[Example]) -> list[Item]:
        """One item for each example, in order."""
        texts, features = self._rows(examples)
        return [
            Item(
                e,
                text,
                f,
                *self._prompt(text, f is not None),
                self._lm.answer_ids(e.answer),
                self._rejected(e),
                e.answer,
            )
            for e, text, f in zip(examples, texts, features, strict=True)
        ]

    def _rejected(self, example: Example) -> torch.Tensor | None:
        return self._lm.answer_ids(example.rejected) if example.rejected else None

    def _prompt(self, text: str, video: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if (text, video) not in self._prompts:
            found = self._lm.split(text) if video else (self._lm.text_ids(text), torch.empty(0, dtype=torch.long))
            self._prompts[text, video] = found
        return self._prompts[text, video]


def cut(item: Item, most: int) -> Item:
    """The item with its answers cut so that its row has at most `most` tokens; one answer token at least is left."""
    prompt = item.tokens - max(len(item.answer), 0 if item.rejected is None else len(item.rejected))
    left = max(1, most - prompt)
    return replace(item, answer=item.answer[:left], rejected=None if item.rejected is None else item.rejected[:left])
