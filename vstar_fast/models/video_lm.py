"""One interface over every Hugging Face video-LMM: frames and text in, inputs of its text stack out.

The processor of the model does all preprocessing, for sampling, training and evaluation alike. It runs once a
video; what it returns (the video's token ids and pixels) is spliced into any number of prompts later. The frozen
tower runs once a video as well (`tower.py`).
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from vstar_fast.errors import DataError, ModelError, NotPacked
from vstar_fast.kernels.linear import fast_linears
from vstar_fast.models import placeholder as placeholders
from vstar_fast.models import text_inputs
from vstar_fast.models.features import Features
from vstar_fast.models.masks import own_mask, with_masks
from vstar_fast.models.modules import Modules
from vstar_fast.models.preprocessing import probe_clip
from vstar_fast.models.prompts import Prompts, Talk, between
from vstar_fast.models.text_inputs import TextInputs
from vstar_fast.models.tower import KEPT, METHODS, SHAPE, Tower, pixels_of, tower_of
from vstar_fast.models.transfer import Uploads
from vstar_fast.records import FrameBatch

if TYPE_CHECKING:
    from vstar_fast.kernels.constrain import TokenVocab
    from vstar_fast.kernels.label_match import TokenBytes

__all__ = ["IGNORE", "Features", "TextInputs", "VideoLM"]

IGNORE = -100


class VideoLM(Prompts, Modules):
    """A model with its processor. This is the generic adapter; families override what it cannot know."""

    small_features = False
    """Features are small enough (and past the tower) to be kept for the whole run, on disk too."""

    def __init__(self, path: str, model: Any, processor: Any, device: torch.device) -> None:
        Modules.__init__(self, path, model)
        self._typed = "mm_token_type_ids" in inspect.signature(self.body.forward).parameters
        if self._typed:
            processor.return_mm_token_type_ids = True  # Cosmos 3 Edge needs them, its processor leaves them out
        Prompts.__init__(self, path, processor, _eos_ids(model, processor.tokenizer))
        self.device = device
        self._uploads = Uploads(device)
        self.tower = tower_of(self.body)
        if not self.tower.methods:
            raise ModelError(f"{type(self.body).__name__} has neither {' nor '.join(METHODS)}; it takes no videos")
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.eos_ids[0]

    @classmethod
    def register(cls) -> None:
        """Hook of a family whose classes transformers does not have."""

    def facts(self) -> dict[str, str]:
        """What `vstar-fast doctor MODEL` prints."""
        data, times_s = probe_clip()
        trained = ", ".join(self.projector_names()) or "what follows its tower"
        frames, height, width = data.shape[:3]
        tokens = len(self.preprocess(data, times_s).ids)
        return {
            "model class": type(self.model).__name__,
            "adapter": f"{type(self).__name__}" + (", generic" if type(self) is VideoLM else ""),
            "video goes in as": f"{self.pixel_input}, {tokens} tokens for {frames} frames of {width} x {height}",
            "text stack": f"{self.stack_name}, {self.position_rows} row(s) of positions",
            "may be trained": f"LoRA on the text stack; {trained}",
            "kept of a video": self.tower.keeps,
        }

    @cached_property
    def vocab(self) -> TokenVocab:
        """The bytes of each token, for constrained decoding."""
        from vstar_fast.kernels.constrain import TokenVocab

        columns = self.head.weight.shape[0]
        return TokenVocab.from_hf(self.tokenizer, logits_size=columns, eos_ids=self.eos_ids)

    @cached_property
    def token_bytes(self) -> TokenBytes | None:
        """The bytes of each token, for matching by ids; None for a kind of tokenizer that has no such table."""
        from vstar_fast.kernels.label_match import TokenBytes

        try:
            return TokenBytes.from_hf(self.tokenizer, size=self.head.weight.shape[0])
        except DataError as error:
            logging.getLogger(__name__).warning("answers are decoded and matched as text: %s", error)
            return None

    def encode(self, batch: FrameBatch) -> list[Features]:
        """Frames -> what the model needs of each video, before any trained projector where the family allows."""
        return self.encode_pixels(self.pixels(batch))

    def pixels(self, batch: FrameBatch) -> list[Features]:
        """Frames -> the processor's output for each video, as `generate` of the model takes it."""
        return [self.preprocess(data, times) for data, times in zip(batch.data, batch.times_s, strict=True)]

    @fast_linears()
    def encode_pixels(self, features: list[Features]) -> list[Features]:
        """Run the frozen tower on each video; pixels stay where its output cannot be told from its projector's."""
        encoded = [self._ready_tower.encode(self._on_device(f.kwargs)) for f in features]
        return [
            Features(f.ids, {k: v.cpu() for k, v in kept.items()}, f.token_kwargs)
            for f, kept in zip(features, encoded, strict=True)
        ]

    @cached_property
    def _ready_tower(self) -> Tower:
        probe = self.preprocess(*probe_clip())
        try:
            double = self._video_inputs([probe, probe])
        except ModelError:
            double = None
        self.tower.prepare(self._on_device(probe.kwargs), double)
        return self.tower

    @cached_property
    def pixel_input(self) -> str:
        """Name of the model's input that takes a video's pixels."""
        return pixels_of(self.preprocess(*probe_clip()).kwargs)

    def projector_names(self) -> list[str]:
        """Names of the modules between tower and text stack that may be trained, for PEFT's `modules_to_save`.

        What `encode` keeps is in front of them, so that training them changes nothing that is kept.
        """
        tower = self.tower if self.device.type == "meta" else self._ready_tower
        names = tower.projector_names
        return names if self.body is self.model else [f"model.{name}" for name in names]

    def inputs(
        self, texts: Sequence[str | Talk], features: list[Features], answers: list[str] | None = None
    ) -> dict[str, Any]:
        """Inputs of the model's own forward and `generate` for rows of (question text, video).

        Without `answers`: left-padded prompts, for generation. With `answers`: prompt + answer, right-
        padded, plus `labels` `[B, T]` that are IGNORE except on the answer.
        """
        rows = [self.row(self.prompt(t), f) for t, f in zip(texts, features, strict=True)]
        empty = torch.empty(0, dtype=torch.long)
        tails = [self.answer_ids(a) for a in answers] if answers is not None else [empty] * len(rows)
        left = answers is None
        ids = [torch.cat([r[0], t]) for r, t in zip(rows, tails, strict=True)]
        batch = {"input_ids": _pad(ids, self.pad_id, left)}
        batch["attention_mask"] = _pad([torch.ones_like(x) for x in ids], 0, left)
        for name in rows[0][1]:
            batch[name] = _pad([between(r[1][name], 0, len(t)) for r, t in zip(rows, tails, strict=True)], 0, left)
        if answers is not None:
            masked = [torch.cat([torch.full_like(r[0], IGNORE), t]) for r, t in zip(rows, tails, strict=True)]
            batch["labels"] = _pad(masked, IGNORE, False)
        return self._on_device(batch) | self._video_inputs(features)

    def _video_inputs(self, features: list[Features]) -> dict[str, torch.Tensor]:
        """The videos' inputs, joined; what is kept of a tower goes in where pixels do."""
        along = {} if len(features) == 1 else self.joined_along
        names = [k for k in features[0].kwargs if k != SHAPE]
        each = {k: [self._uploads.take(f.kwargs[k]) for f in features] for k in names}
        joined = self._on_device({k: torch.cat(parts, along.get(k, 0)) for k, parts in each.items()})
        if KEPT in joined:
            shapes = torch.cat([f.kwargs[SHAPE] for f in features])
            shape = shapes[0].tolist()
            grown = along.get(self.pixel_input, 0)
            shape[grown] = int(shapes[:, grown].sum())
            joined[self.pixel_input] = self._ready_tower.stand_in(joined.pop(KEPT), shape)
        return joined

    def _on_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """On the model's device; pixels and features in its kind of float, times as they are."""
        seen = {k for k in inputs if k.startswith("pixel_") or k.endswith("_features")}
        kinds = {k: self.model.dtype if k in seen and v.is_floating_point() else None for k, v in inputs.items()}
        there = {k: self._uploads.take(v) for k, v in inputs.items()}
        return {k: v if kinds[k] is None else v.to(kinds[k]) for k, v in there.items()}

    def words(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs of the body for ids int64 `[T]` of words alone; Qwen Omni's counts positions only beside a mask."""
        inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids[None])}
        if self._typed:
            inputs["mm_token_type_ids"] = torch.zeros_like(ids[None])
        return self._on_device(inputs)

    def expect(self, features: Features | None) -> None:
        """Begin to copy a video's inputs to the model's device: `embed` will want them soon."""
        if features is not None:
            self._uploads.ahead(features.kwargs.values())

    def row_inputs(self, ids: torch.Tensor, features: Features | None = None) -> dict[str, Any]:
        """What the body's own forward is called with for one row of ids int64 `[T]`; raises as `embed` does."""
        self.check_ids(ids, None if features is None else features.ids)
        inputs = self.words(ids)
        if features is not None:
            start = _start(ids.cpu(), features.ids)
            behind = len(ids) - start - len(features.ids)
            tokens = {k: between(v, start, behind)[None] for k, v in features.token_kwargs.items()}
            inputs |= self._on_device(tokens) | self._video_inputs([features])
        return inputs

    @fast_linears()
    def embed(self, ids: torch.Tensor, features: Features | None = None, *, masked: bool = False) -> TextInputs:
        """What the text stack is called with for one row of ids int64 `[T]` that holds the video's tokens, or none.

        Differentiable through the projector where gradients are enabled. Raises ModelError when `ids` lack the
        tokens of `features`, NotPacked where `refusal` says why unless `masked` asks for the mask as well,
        DataError for ids (on the host) that are not in the model's vocabulary.
        """
        inputs = self.row_inputs(ids, features)
        try:
            called = text_inputs.call_of(self.text_model, self.body, inputs)
        except ValueError as error:
            raise ModelError(
                f"{type(self.body).__name__} cannot take a row made by its processor: {error}; do the processor and "
                f"the weights of {self.path} belong together?"
            ) from error
        finally:
            self.forget_positions()
        made = called["inputs_embeds"].shape[1]
        if made != len(ids):
            raise ModelError(
                f"{type(self.body).__name__} makes {made} embeddings of {len(ids)} tokens: it prunes its videos, which "
                "cannot be undone here; switch that off in its config.json (video_pruning_rate: 0)"
            )
        given = text_inputs.from_call(called, self.position_rows)
        mask = called.get("attention_mask")
        given.mask = None if mask is inputs["attention_mask"] else own_mask(mask, self.text_model.config)
        if not masked and features is not None and self.refusal:
            raise NotPacked(self.refusal)
        if not masked and features is not None and self.sees_ahead:
            raise NotPacked(
                f"{type(self.body).__name__} lets tokens of a video see those behind them; ask for its mask"
            )
        return given

    @property
    def sees_ahead(self) -> bool:
        """Whether tokens of a video see those behind them; `models.sight` says what."""
        return self._looked[0]

    @property
    def refusal(self) -> str:
        """Why rows with a video cannot be packed, in words; empty where they can."""
        return self._looked[1]

    @cached_property
    def read_as(self) -> dict[int, int]:
        """See `Head.read_as`."""
        return placeholders.read_as(self)

    @cached_property
    def _looked(self) -> tuple[bool, str]:
        (features,) = self.encode_pixels([self.preprocess(*probe_clip())])
        head, tail = self.split("a b")
        front = torch.cat([head, features.ids])
        with with_masks(self.text_model), torch.no_grad():
            part, whole = (self.embed(ids, features, masked=True) for ids in (front, torch.cat([front, tail])))
        counted = part.next_position + torch.arange(len(tail), device=whole.position_ids.device)
        same = bool((whole.position_ids[:, len(front) :] == counted).all())
        why = "numbers a video's last tokens by what follows, so that questions cannot share them"
        return whole.mask is not None, "" if same else f"{type(self.body).__name__} {why}"


def _start(ids: torch.Tensor, part: torch.Tensor) -> int:
    """Where `part` stands in `ids`."""
    for start in (ids[: len(ids) - len(part) + 1] == part[0]).nonzero().flatten().tolist():
        if torch.equal(ids[start : start + len(part)], part):
            return int(start)
    raise ModelError(f"a row of {len(ids)} ids does not hold the {len(part)} ids of its video; see VideoLM.split")


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    eos = getattr(model.generation_config, "eos_token_id", None)
    listed = eos if isinstance(eos, list) else [eos]
    ids = [tokenizer.eos_token_id, *listed]
    unique = list(dict.fromkeys(int(i) for i in ids if i is not None))
    if not unique:
        raise ModelError("neither tokenizer nor generation config names an end-of-sequence token")
    return unique


def _pad(rows: list[torch.Tensor], value: int, left: bool) -> torch.Tensor:
    width = max(len(r) for r in rows)
    out = torch.full((len(rows), width), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        if left:
            out[i, width - len(row) :] = row
        else:
            out[i, : len(row)] = row
    return out
