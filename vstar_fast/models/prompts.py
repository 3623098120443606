"""Chat prompts with a video in them, as text and as token ids: the processor's own, spliced from three parts."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, NamedTuple

import torch

from vstar_fast.errors import ModelError, out_of_memory
from vstar_fast.models import placeholder as placeholders
from vstar_fast.models.features import Features
from vstar_fast.models.preprocessing import How, joined_along, preprocess, probe_clip


class Talk(NamedTuple):
    """A question in a conversation: (question, answer) of the exchanges `before` it, and its text."""

    before: tuple[tuple[str, str], ...]
    text: str


class Prompts:
    """A processor, its chat template, and where a video stands in its prompts."""

    def __init__(self, path: str, processor: Any, eos_ids: list[int]) -> None:
        self.path = path
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.eos_ids = eos_ids
        self.placeholder = placeholders.text_of(processor)
        marks = (self.placeholder, processor.video_token, getattr(processor, "image_token", None))
        self._picture_marks = [mark for mark in dict.fromkeys(marks) if isinstance(mark, str) and mark]
        self._opening, self._whole = "", False
        self._opening = self._put_first()
        self._whole = self._cuts_numbers()
        self._find_cuts()

    def _put_first(self) -> str:
        """The token that a processor itself puts before a prompt (Molmo2); empty where it puts none."""
        before, _ = self.prompt("a b").split(self.placeholder)
        head = self._head_ids(before)
        ids = self.processed(before + self.placeholder, *probe_clip())["input_ids"][0]
        more = len(head) and int(ids[0]) != int(head[0]) and int(ids[1]) == int(head[0])
        return str(self.tokenizer.convert_ids_to_tokens(int(ids[0]))) if more else ""

    def _cuts_numbers(self) -> bool:
        """Whether a processor prints other times for fractional numbers of frames than for the same as whole ones."""
        before, _ = self.prompt("a b").split(self.placeholder)
        said = []
        for self._whole in (False, True):
            said.append(self.processed(before + self.placeholder, *probe_clip())["input_ids"][0].tolist())
        return said[0] != said[1]

    def _find_cuts(self) -> None:
        """Read the cuts around a video off a random clip, and see that spliced rows are the processor's own."""
        text = self.prompt("a b")
        before, _ = text.split(self.placeholder)
        ids = self.processed(before + self.placeholder, *probe_clip())["input_ids"][0]
        self._place = placeholders.find(self.placeholder, before, self._head_ids(before), ids, self.tokenizer)
        theirs = self.processed(text, *probe_clip())
        ours, by_token = self.row(text, self.preprocess(*probe_clip()))
        name = type(self.processor).__name__
        if ours.tolist() != theirs["input_ids"][0].tolist():
            raise ModelError(
                f"the token ids of a prompt of {self.path} cannot be spliced from its text and its video: {len(ours)} "
                f"ids where {name} gives {theirs['input_ids'].shape[1]}; it needs an adapter"
            )
        odd = [k for k, v in by_token.items() if v.tolist() != theirs[k][0].tolist()]
        if odd:
            raise ModelError(f"{name} of {self.path} gives {odd[0]} of a prompt's words as well; it needs an adapter")

    def processed(self, text: str, data: torch.Tensor, times_s: tuple[float, ...]) -> dict[str, Any]:
        """The processor's output for a prompt and frames uint8 `[F, H, W, 3]`, without an end token behind it."""
        special = self._special(text)
        try:
            out = preprocess(self.processor, text, data, times_s, How(special, self._whole))
        except Exception as error:  # whatever a processor's code stumbles over
            if out_of_memory(error):
                raise
            size = " x ".join(str(n) for n in data.shape[:3])
            name, kind = type(self.processor).__name__, type(error).__name__
            what = str(error) if isinstance(error, ValueError) else f"{kind}: {error}"
            raise ModelError(f"{name} of {self.path} cannot take a clip of {size} pixels: {what}") from error
        return self._without_end(out) if special else out

    @cached_property
    def joined_along(self) -> dict[str, int]:
        """The dimension along which each input of several videos is joined. Raises ModelError where they cannot be."""
        text = self._place.before + self.placeholder
        try:
            return joined_along(self.processor, text, How(self._special(text), self._whole))
        except Exception as error:  # whatever a processor's code stumbles over
            if out_of_memory(error):
                raise
            name = type(self.processor).__name__
            raise ModelError(f"{name} of {self.path} does not join videos: {error}; call with one row each") from error

    def _without_end(self, out: dict[str, Any]) -> dict[str, Any]:
        """Some tokenizers end every text with their end token."""
        n = out["input_ids"].shape[1]
        if int(out["input_ids"][0, -1]) not in self.eos_ids or len(self._ids("", special=True)) == 0:
            return out
        return {k: v[:, :-1] if isinstance(v, torch.Tensor) and v.shape == (1, n) else v for k, v in out.items()}

    def preprocess(self, data: torch.Tensor, times_s: tuple[float, ...]) -> Features:
        """Frames uint8 `[F, H, W, 3]` -> the processor's output for the video alone."""
        out = self.processed(self._place.before + self.placeholder, data, times_s)
        ids = out.pop("input_ids")[0]
        out.pop("attention_mask", None)
        own = self._place.cut(ids)
        tensors = {k: v for k, v in out.items() if isinstance(v, torch.Tensor)}
        per_token = {k for k, v in tensors.items() if v.shape == (1, len(ids))}
        token_kwargs = {k: tensors[k][0, own] for k in per_token}
        return Features(ids[own], {k: v for k, v in tensors.items() if k not in per_token}, token_kwargs)

    def prompt(self, text: str | Talk) -> str:
        """The chat prompt for one video and one question, with the video's placeholder in it; of a Talk, all of it.

        The model's own video and image tokens in `text` are taken out: they would stand for pictures that are
        not there. A question asked with them is answered and trained on without them.
        """
        rendered = self._rendered(text, video=True)
        if rendered.count(self.placeholder) != 1:
            found = rendered.count(self.placeholder)
            raise ModelError(f"chat template of {self.path} gave {found} video placeholders; expected one")
        return rendered

    def _rendered(self, text: str | Talk, *, video: bool) -> str:
        talk = text if isinstance(text, Talk) else Talk((), text)
        before = [(self._words_only(asked), self._words_only(said)) for asked, said in talk.before]
        rendered = placeholders.rendering(self.processor, self._words_only(talk.text), before, video=video)
        return self._opening + rendered

    def _words_only(self, text: str) -> str:
        """`text` without the tokens that stand for pictures."""
        if not any(mark in text for mark in self._picture_marks):
            return text
        marks = "|".join(re.escape(mark) for mark in self._picture_marks)
        return re.sub(rf"[ \t]*(?:{marks})[ \t]*", " ", text).strip()

    def _special(self, text: str) -> bool:
        """Whether the tokenizer is to add its own first token: not where the template has printed it."""
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))

    def _ids(self, text: str, *, special: bool) -> torch.Tensor:
        ids = self.tokenizer(text, add_special_tokens=special, return_attention_mask=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    def _head_ids(self, before: str) -> torch.Tensor:
        head = self._ids(before, special=self._special(before))
        ended = len(head) and head[-1].item() in self.eos_ids
        return head[:-1] if ended and not before.endswith(self.tokenizer.eos_token or "\0") else head

    def split(self, text: str | Talk) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the chat prompt of `text` before its video, the same for all videos, and behind it: int64, int64.

        `head + features.ids + tail` are the ids of `inputs`, and those the processor gives for prompt and video.
        """
        return self._split(self.prompt(text))

    def _split(self, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        before, after = prompt.split(self.placeholder)
        place = self._place
        if before != place.before and not place.whole:
            raise ModelError(
                f"the chat template of {self.path} prints the question before the video, and its processor prints "
                "words around the video; it needs an adapter"
            )
        head = torch.tensor(place.head, dtype=torch.long) if before == place.before else self._head_ids(before)
        tail = self._ids(place.mark_text + place.closing_text + after, special=False)
        return head, tail[tail.tolist().index(place.mark) + 1 :]

    def text_ids(self, text: str | Talk) -> torch.Tensor:
        """Ids int64 `[T]` of the chat prompt of a question without a video."""
        return self._head_ids(self._rendered(text, video=False))

    def row(self, prompt: str, features: Features) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Ids int64 `[T]` of a prompt with its video, and the inputs that have one value an id."""
        head, tail = self._split(prompt)
        ids = torch.cat([head, features.ids, tail])
        return ids, {k: between(v, len(head), len(tail)) for k, v in features.token_kwargs.items()}

    def answer_ids(self, text: str) -> torch.Tensor:
        """An answer as it is trained on: its words' tokens and the end-of-turn token, int64 `[n]`."""
        return torch.cat([self._ids(self._words_only(text), special=False), torch.tensor(self.eos_ids[:1])])


def between(values: torch.Tensor, before: int, behind: int) -> torch.Tensor:
    """`values` `[n]` with zeros around them: `[before + n + behind]`."""
    return torch.nn.functional.pad(values, (before, behind))
