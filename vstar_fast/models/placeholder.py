"""Where a video stands in a chat prompt, and where the prompt's token ids may be cut around it.

A prompt's ids are spliced from a head, the video's ids and a tail, so that a video is preprocessed once and not once
a prompt. A cut beside an added token changes no id. Some processors print words around a video (SmolVLM: how many
frames, how long), which merge with their neighbours: those before it then belong to the video's ids as far back as
the last added token, and those behind it are tokenised with what follows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vstar_fast.errors import ModelError
from vstar_fast.models.text_inputs import call_of

NAMED = re.compile(r"(image|video|audio)_token_(id|index)")
"""What configs call the ids of placeholders."""


@dataclass(frozen=True)
class Placeholder:
    """What stands for a video in a prompt.

    `text`: the placeholder; `before`: the prompt up to it; `head`: ids of all or the first part of `before`;
    `closing`: ids of words that the processor prints behind the video's last token, `mark`; `closing_text`: the words.
    """

    text: str
    before: str
    whole: bool
    head: tuple[int, ...]
    mark: int
    mark_text: str
    closing: tuple[int, ...]
    closing_text: str

    def cut(self, ids: torch.Tensor) -> slice:
        """Which of the ids of `before` and a video belong to the video. Raises ModelError where the cuts do not fit."""
        end = len(ids) - len(self.closing)
        if tuple(ids[: len(self.head)].tolist()) != self.head or tuple(ids[end:].tolist()) != self.closing:
            raise ModelError(
                "the processor prints other words around this video than around others; it needs an adapter"
            )
        return slice(len(self.head), end)


def text_of(processor: Any) -> str:
    """What a chat template prints for a video, with the start and end markers that belong to it."""
    token = getattr(processor, "video_token", None)
    if not isinstance(token, str):
        raise ModelError(f"{type(processor).__name__} has no video_token; this model does not take videos")
    before, found, behind = rendering(processor, "?").partition(token)
    if not found:
        raise ModelError(
            f"the chat template does not print {token!r} for a video; give the model folder a chat template"
        )
    tokenizer = processor.tokenizer
    marks = {t for t in tokenizer.get_added_vocab() if t not in (tokenizer.bos_token, tokenizer.eos_token)}
    start = max((mark for mark in marks if before.endswith(mark)), key=len, default="")
    end = max((mark for mark in marks if behind.startswith(mark)), key=len, default="")
    return f"{start}{token}{end}" if start and end else token


def rendering(processor: Any, text: str, before: Sequence[tuple[str, str]] = (), *, video: bool = True) -> str:
    """The chat prompt of a question, with or without a video, behind what was asked and answered `before`.

    Raises ModelError without a usable chat template.
    """
    from jinja2 import TemplateError

    said = [(role, words) for pair in before for role, words in zip(("user", "assistant"), pair, strict=True)]
    messages = [{"role": role, "content": [{"type": "text", "text": words}]} for role, words in [*said, ("user", text)]]
    messages[0]["content"] = [{"type": "video"}] * video + list(messages[0]["content"])
    try:
        return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (ValueError, TypeError, ImportError, TemplateError) as error:
        raise ModelError(
            f"{type(processor).__name__} has no usable chat template: {error}; put chat_template.jinja into the folder"
        ) from None


def find(text: str, before: str, head: torch.Tensor, ids: torch.Tensor, tokenizer: Any) -> Placeholder:
    """The cuts, from the ids of `before` (`head`) and the ids of `before` with a video behind it (`ids`)."""
    added = set(tokenizer.get_added_vocab().values())
    known = int((head[: len(ids)] == ids[: len(head)]).long().cumprod(0).sum())
    whole = known == len(head)
    while not whole and known and int(ids[known - 1]) not in added:
        known -= 1
    marks = [i for i in range(known, len(ids)) if int(ids[i]) in added]
    if not marks:
        raise ModelError("the processor prints no token of its own for a video; its tokenizer lacks the added tokens")
    closing = ids[marks[-1] + 1 :].tolist()
    mark = int(ids[marks[-1]])
    words = tokenizer.decode(closing, skip_special_tokens=False, clean_up_tokenization_spaces=False) if closing else ""
    mark_text = tokenizer.convert_ids_to_tokens(mark)
    return Placeholder(text, before, whole, tuple(ids[:known].tolist()), mark, mark_text, tuple(closing), words)


def said(lm: Any) -> torch.Tensor:
    """Ids of the placeholders that a model's config names and its vocabulary holds, int64 [n]."""
    named = {value for name, value in vars(lm.model.config).items() if NAMED.fullmatch(name)}
    size = len(lm.model.get_input_embeddings().weight)
    return torch.tensor(sorted(i for i in named if isinstance(i, int) and i < size), dtype=torch.long)


@torch.no_grad()
def read_as(lm: Any) -> dict[int, int]:
    """Placeholders that a body reads as padding or as token 0 where no picture stands for them (Kimi, Gemma)."""
    ids, table = said(lm), lm.model.get_input_embeddings()
    called = call_of(lm.text_model, lm.body, lm.words(ids))["inputs_embeds"][0]
    pads = (0, getattr(lm.text_model.config, "pad_token_id", None))
    others = {i: table(torch.tensor(i, device=lm.device)) for i in pads if i is not None}
    own = table(ids.to(lm.device))
    changed = [(int(ids[n]), row) for n, row in enumerate(called) if not torch.equal(row, own[n])]
    return {i: other for i, row in changed for other, embedded in others.items() if torch.equal(row, embedded)}
