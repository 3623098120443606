"""`Engine`: many questions about many videos, several answers each, over one Hugging Face video-LMM.

engine = Engine(model, processor)
answers = engine.generate(videos, questions, n=8, settings=Settings(temperature=0.8))
engine.text(answers[0][0])
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

from vstar_fast.engine import clips
from vstar_fast.engine.crew import Crew
from vstar_fast.engine.request import Answer, Counts, Request, Settings
from vstar_fast.engine.scheduler import Scheduler
from vstar_fast.errors import ConfigError, ModelError
from vstar_fast.models.model_lock import alone, on_host
from vstar_fast.models.prompts import Talk

if TYPE_CHECKING:
    from vstar_fast.kernels.constrain import Grammar


CACHE_BYTES = 1 << 30


class Engine:
    """The importable face: a Hugging Face video-LMM with its processor, as they come from `from_pretrained`."""

    @on_host()
    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_rows: int | None = None,
        memory_bytes: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        engine: str = "auto",
    ) -> None:
        """`max_rows`, `memory_bytes`, `engine`: see `Crew`. `cache_bytes`: features to keep, of a tower that stays."""
        self.lm = as_lm(model, processor)
        self._kept = clips.Kept(cache_bytes)
        self.crew = Crew(self.lm, max_rows=max_rows, memory_bytes=memory_bytes, engine=engine)

    @property
    def scheduler(self) -> Scheduler:
        """The crew's first scheduler, which works in the caller's thread when it is used alone."""
        return self.crew.first

    @property
    def counts(self) -> Counts:
        """What was done so far: answers, tokens, steps, CPU seconds by kind, batches halved."""
        return self.crew.counts

    @on_host()
    def generate(
        self,
        videos: Iterable[Any],
        questions: Sequence[str],
        *,
        n: int = 1,
        settings: Settings | Sequence[Settings | Sequence[Settings]] | None = None,
        template: Any = None,
        seed: int = 0,
    ) -> list[list[Answer]]:
        """`n` answers to each question about the video at its place.

        Args:
            videos: per question, what `FrameSource.read` gave for its video, uint8 [F, H, W, 3] (a tensor or array,
                frames a second apart), what `encode` gave, or None without a video. Equal frames are encoded once.
            questions: the user's text; the chat template is put around it (not with a tokenizer in place of a
                processor: there it is the whole prompt).
            n: answers a question. settings: how they are drawn; default greedy. template: what an answer may be
                (`vstar_fast.ops.template`, or a Grammar; None: any). Each for all questions, or a list of one a
                question, in which a list of `n` says it for each answer.
            seed: of all random streams; an answer depends on it and on its own question, video and number only.

        Raises ConfigError for lists of unequal length, DataError for what is no video.
        """
        if isinstance(questions, str):
            raise ConfigError(f"questions are one text, {questions!r:.80}; give a list of texts")
        if not isinstance(n, Integral) or n < 1:
            raise ConfigError(f"n is {n}; give a whole number, a question gets at least 1 answer")
        odd = [q for q in questions if not isinstance(q, (str, Talk))]
        if odd:
            raise ConfigError(f"a question is {odd[0]!r:.80}; give its text, or a Talk with what was said before")
        features = self.encode(videos)
        listed = settings or Settings()
        given = [listed] * len(questions) if isinstance(listed, Settings) else listed
        grammars = self._grammars(template, len(questions))
        counts = {"videos": features, "questions": questions, "settings": given, "templates": grammars}
        if len({len(x) for x in counts.values()}) > 1:
            said = ", ".join(f"{len(x)} {name}" for name, x in counts.items())
            raise ConfigError(f"there are {said}; give one of each a question")
        requests = [
            self.request(text, f, _seeds(seed, text, f, n), s, g)
            for text, f, s, g in zip(questions, features, given, grammars, strict=True)
        ]
        found = {id(r): answers for r, answers in self.crew.run(requests)}
        return [found[id(r)] for r in requests]

    @on_host()
    def request(
        self,
        text: str,
        features: Any,
        seeds: Sequence[int],
        settings: Settings | Sequence[Settings],
        grammar: Grammar | Sequence[Grammar | None] | None = None,
    ) -> Request:
        """A request for `crew.run`."""
        if features is None:  # some families print words around a video
            tail = self.lm.text_ids(text)
            return Request(tail[:0], tail, None, seeds, settings, grammar)
        head, tail = self.lm.split(text)
        return Request(head, tail, features, seeds, settings, grammar)

    def encode(self, videos: Iterable[Any]) -> list[Any]:
        """The model's features of each video; equal frames are encoded once, also those of calls before."""
        with alone(self.lm.text_model):
            return [self._kept.features(self.lm, video) for video in videos]

    def text(self, answer: Answer) -> str:
        """The words of an answer."""
        return str(self.lm.tokenizer.decode(answer.words, skip_special_tokens=True))

    def _grammars(self, template: Any, count: int) -> list[Any]:
        listed = list(template) if isinstance(template, (list, tuple)) else [template] * count
        made: dict[int, Grammar | None] = {}
        return [self._grammar(node, made) for node in listed]

    def _grammar(self, node: Any, made: dict[int, Grammar | None]) -> Any:
        """A template's grammar, compiled once; of a list, those of its templates."""
        from vstar_fast import ops

        if isinstance(node, (list, tuple)):
            return [self._grammar(each, made) for each in node]
        if id(node) not in made:
            plain = node is None or isinstance(node, ops.Grammar)
            made[id(node)] = node if plain else ops.compile(node, self.lm.vocab)
        return made[id(node)]


def as_lm(model: Any, processor: Any) -> Any:
    """The adapter of a model: `VideoLM` where the processor takes videos, else `TextLM` over a tokenizer."""
    from vstar_fast.engine.text_lm import TextLM

    model = _without_wrapper(model)
    model = getattr(model, "thinker", model)  # the part of a model that also speaks which answers in words
    if not hasattr(processor, "tokenizer"):
        return TextLM(model, processor)
    from vstar_fast.models import FAMILIES, GENERIC

    module, _, name = FAMILIES.get(model.config.model_type, GENERIC).partition(":")
    family = getattr(importlib.import_module(module), name)
    return family(model.config.name_or_path, model, processor, model.device)


def _without_wrapper(model: Any) -> Any:
    """The model that PEFT has put its layers into."""
    if not hasattr(model, "get_base_model"):
        return model
    kinds = {name: config.peft_type for name, config in model.peft_config.items() if config.is_prompt_learning}
    if kinds:
        name, kind = next(iter(kinds.items()))
        raise ModelError(f"adapter {name!r} is {kind}, which adds to prompts; the engine takes LoRA and its kin")
    return model.get_base_model()


def _seeds(seed: int, text: str, features: Any, n: int) -> list[int]:
    """Streams of a question's answers, by what is asked and shown and not by its place in the list."""
    asked = hashlib.blake2b(f"{seed}\x1f{text}\x1f".encode())
    for name, value in [] if features is None else [("ids", features.ids), *features.kwargs.items()]:
        asked.update(name.encode())
        asked.update(value.contiguous().flatten().view(torch.uint8).cpu().numpy())
    return [int.from_bytes(_branch(asked, i), "big") >> 1 for i in range(n)]


def _branch(asked: Any, number: int) -> bytes:
    own = asked.copy()
    own.update(str(number).encode())
    return bytes(own.digest()[:8])
