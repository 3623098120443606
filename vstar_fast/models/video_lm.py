"""One interface over every Hugging Face video-LMM: frames and text in, model inputs out.

The processor of the model does all preprocessing, for sampling, training and evaluation alike. It runs
once a video on the placeholder alone; what it returns (expanded placeholder ids and pixel inputs) is
spliced into any number of prompts later, so that a video is preprocessed once and not once an answer.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vstar_fast.config_ranges import DEVICE
from vstar_fast.errors import DataError, ModelError
from vstar_fast.records import FrameBatch

if TYPE_CHECKING:
    from vstar_fast.kernels.constrain import TokenVocab
    from vstar_fast.kernels.label_match import TokenBytes

IGNORE = -100


@dataclass(slots=True)
class Features:
    """The video part of a row.

    `ids` int64 `[n]`: the expanded placeholder. `kwargs`: model inputs of this video, first dimension =
    1 video (or its patches); `token_kwargs`: inputs with one value a token of `ids` (e.g. token types).
    """

    ids: torch.Tensor
    kwargs: dict[str, torch.Tensor]
    token_kwargs: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(t.nbytes for t in (self.ids, *self.kwargs.values(), *self.token_kwargs.values()))


class VideoLM:
    """A model with its processor. Families override `encode_pixels` (and no more, as a rule)."""

    small_features = False
    """Features are small enough (and past the tower) to be kept for the whole run, on disk too."""

    def __init__(self, path: str, model: Any, processor: Any, device: torch.device) -> None:
        self.path = path
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.device = device
        self.placeholder = _placeholder(processor)
        marks = (self.placeholder, processor.video_token, getattr(processor, "image_token", None))
        self._picture_marks = [mark for mark in dict.fromkeys(marks) if isinstance(mark, str) and mark]
        self.eos_ids = _eos_ids(model, self.tokenizer)
        self.pad_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.eos_ids[0]

    @cached_property
    def vocab(self) -> TokenVocab:
        """The bytes of each token, for constrained decoding."""
        from vstar_fast.kernels.constrain import TokenVocab

        columns = self.model.get_output_embeddings().weight.shape[0]
        return TokenVocab.from_hf(self.tokenizer, logits_size=columns, eos_ids=self.eos_ids)

    @cached_property
    def token_bytes(self) -> TokenBytes | None:
        """The bytes of each token, for matching by ids; None for a kind of tokenizer that has no such table."""
        from vstar_fast.kernels.label_match import TokenBytes

        try:
            return TokenBytes.from_hf(self.tokenizer, size=self.model.get_output_embeddings().weight.shape[0])
        except DataError as error:
            logging.getLogger(__name__).warning("answers are decoded and matched as text: %s", error)
            return None

    # -- video -----------------------------------------------------------------------------------

    def encode(self, batch: FrameBatch) -> list[Features]:
        """Frames -> what the model needs of each video, before any trained projector where the family allows."""
        pairs = zip(batch.data, batch.times_s, strict=True)
        return self.encode_pixels([self._preprocess(data, times) for data, times in pairs])

    def encode_pixels(self, features: list[Features]) -> list[Features]:
        """Hook of a family: run the frozen tower. Default: leave the pixels to the model's own forward."""
        return features

    def _preprocess(self, data: torch.Tensor, times_s: tuple[float, ...]) -> Features:
        """Frames uint8 `[F, H, W, 3]` -> the processor's output for the placeholder alone."""
        from transformers.video_utils import VideoMetadata

        span_s = times_s[-1] - times_s[0]
        fps = (len(times_s) - 1) / span_s if span_s > 0 else 1.0
        meta = VideoMetadata(
            total_num_frames=len(times_s),
            fps=fps,
            duration=len(times_s) / fps,
            frames_indices=list(range(len(times_s))),
        )
        video = data.permute(0, 3, 1, 2)
        out = self.processor(
            text=[self.placeholder],
            videos=[video],
            return_tensors="pt",
            video_metadata=[meta],
            do_sample_frames=False,
        )
        return self._split(dict(out))

    def _split(self, out: dict[str, Any]) -> Features:
        ids = out.pop("input_ids")[0]
        out.pop("attention_mask", None)
        start = 1 if self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id else 0
        tensors = {k: v for k, v in out.items() if isinstance(v, torch.Tensor)}
        per_token = {k for k, v in tensors.items() if v.shape == (1, len(ids))}
        token_kwargs = {k: tensors[k][0, start:] for k in per_token}
        return Features(ids[start:], {k: v for k, v in tensors.items() if k not in per_token}, token_kwargs)

    # -- text ------------------------------------------------------------------------------------

    def prompt(self, text: str) -> str:
        """The chat prompt for one video and one question, with the video's placeholder in it.

        The model's own video and image tokens in `text` are taken out: they would stand for pictures that are
        not there. A question asked with them is answered and trained on without them.
        """
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": self._words_only(text)}]}]
        rendered = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if rendered.count(self.placeholder) != 1:
            found = rendered.count(self.placeholder)
            raise ModelError(f"chat template of {self.path} gave {found} video placeholders; expected one")
        return str(rendered)

    def _words_only(self, text: str) -> str:
        """`text` without the tokens that stand for pictures."""
        if not any(mark in text for mark in self._picture_marks):
            return text
        marks = "|".join(re.escape(mark) for mark in self._picture_marks)
        return re.sub(rf"[ \t]*(?:{marks})[ \t]*", " ", text).strip()

    def _ids(self, text: str, *, special: bool) -> torch.Tensor:
        ids = self.tokenizer(text, add_special_tokens=special, return_attention_mask=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    def _row(self, prompt: str, features: Features) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        before, after = prompt.split(self.placeholder)
        bos = self.tokenizer.bos_token
        head = self._ids(before, special=not (bos and before.startswith(bos)))
        if len(head) and head[-1].item() in self.eos_ids and not before.endswith(self.tokenizer.eos_token or "\0"):
            head = head[:-1]
        tail = self._ids(after, special=False)
        ids = torch.cat([head, features.ids, tail])
        zeros = (torch.zeros(len(head), dtype=torch.long), torch.zeros(len(tail), dtype=torch.long))
        extra = {k: torch.cat([zeros[0].to(v), v, zeros[1].to(v)]) for k, v in features.token_kwargs.items()}
        return ids, extra

    def answer_ids(self, text: str) -> torch.Tensor:
        """An answer as it is trained on: its words' tokens and the end-of-turn token, int64 `[n]`."""
        return torch.cat([self._ids(self._words_only(text), special=False), torch.tensor(self.eos_ids[:1])])

    def inputs(self, texts: list[str], features: list[Features], answers: list[str] | None = None) -> dict[str, Any]:
        """Model inputs for rows of (question text, video).

        Without `answers`: left-padded prompts, for generation. With `answers`: prompt + answer, right-
        padded, plus `labels` `[B, T]` that are IGNORE except on the answer.
        """
        rows = [self._row(self.prompt(t), f) for t, f in zip(texts, features, strict=True)]
        tails = (
            [self.answer_ids(a) for a in answers]
            if answers is not None
            else [torch.empty(0, dtype=torch.long)] * len(rows)
        )
        left = answers is None
        ids = [torch.cat([r[0], t]) for r, t in zip(rows, tails, strict=True)]
        batch = {"input_ids": _pad(ids, self.pad_id, left)}
        batch["attention_mask"] = _pad([torch.ones_like(x) for x in ids], 0, left)
        for name in rows[0][1]:
            extra = [
                torch.cat([r[1][name], torch.zeros_like(t).to(r[1][name])]) for r, t in zip(rows, tails, strict=True)
            ]
            batch[name] = _pad(extra, 0, left)
        for name in features[0].kwargs:
            batch[name] = torch.cat([f.kwargs[name] for f in features])
        if answers is not None:
            masked = [torch.cat([torch.full_like(r[0], IGNORE), t]) for r, t in zip(rows, tails, strict=True)]
            batch["labels"] = _pad(masked, IGNORE, False)
        return {k: self._to_device(v) for k, v in batch.items()}

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self.model.dtype if tensor.is_floating_point() else None
        return tensor.to(self.device, dtype=dtype, non_blocking=True)

    # -- parts of the model ------------------------------------------------------------------------

    def language_linears(self) -> str:
        """Regular expression over module names: every linear layer of the text stack (LoRA targets)."""
        stack = _text_stack(self.model)
        inner = dict(self.model.named_modules())[stack]
        leaves = sorted({n.rsplit(".", 1)[-1] for n, m in inner.named_modules() if isinstance(m, torch.nn.Linear)})
        if not leaves:
            raise ModelError(f"text stack {stack!r} of {self.path} has no linear layers; set finetune.target_modules")
        return rf".*\b{stack.replace('.', chr(92) + '.')}\..*\.({'|'.join(leaves)})"

    def projector_names(self) -> list[str]:
        """Names of the modules between tower and language model that may be trained."""
        known = ("multi_modal_projector", "connector", "merger", "aligner")
        names = [n for n, _ in self.model.named_modules() if n.rsplit(".", 1)[-1] in known]
        return [n.rsplit(".", 1)[-1] for n in names[:1]]


def _placeholder(processor: Any) -> str:
    token = getattr(processor, "video_token", None)
    if not isinstance(token, str):
        raise ModelError(f"{type(processor).__name__} has no video_token; this model does not take videos")
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}]
    rendered = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # Families such as Qwen wrap the token in start/end markers that the processor may rewrite with it.
    for wrapped in (f"<|vision_start|>{token}<|vision_end|>", token):
        if wrapped in rendered:
            return wrapped
    raise ModelError(f"the chat template does not print {token!r} for a video; give the model folder a chat template")


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    eos = getattr(model.generation_config, "eos_token_id", None)
    listed = eos if isinstance(eos, list) else [eos]
    ids = [tokenizer.eos_token_id, *listed]
    unique = list(dict.fromkeys(int(i) for i in ids if i is not None))
    if not unique:
        raise ModelError("neither tokenizer nor generation config names an end-of-sequence token")
    return unique


def _text_stack(model: Any) -> str:
    names = {n for n, _ in model.named_modules()}
    for name in ("model.language_model", "language_model", "model.text_model", "text_model"):
        if name in names:
            return name
    raise ModelError(f"{type(model).__name__} has no language_model/text_model; set finetune.target_modules")


def _pad(rows: list[torch.Tensor], value: int, left: bool) -> torch.Tensor:
    width = max(len(r) for r in rows)
    out = torch.full((len(rows), width), value, dtype=rows[0].dtype)
    for i, row in enumerate(rows):
        if left:
            out[i, width - len(row) :] = row
        else:
            out[i, : len(row)] = row
    return out


def pick_device(device: str) -> torch.device:
    """`auto` -> the first CUDA device if there is one, else the CPU. Raises ModelError for one that is not there."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if there else "cpu")
    if not DEVICE.fullmatch(device):
        raise ModelError(f"model.device = {device!r} is no device; use auto, cpu, cuda or cuda:N")
    number = int(device.partition(":")[2] or 0)
    if device != "cpu" and number >= there:
        found = f"torch sees {there} CUDA device{'' if there == 1 else 's'}"
        remedy = f"or cuda:0 to cuda:{there - 1}" if there else "or install a CUDA build of torch"
        raise ModelError(f"model.device = {device!r}, but {found}; use auto, cpu, {remedy}")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` -> bf16 on a GPU; fp32 on the CPU, where bf16 is slower."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype)


def load(path: str, *, dtype: str, device: str, cls: type[VideoLM] = VideoLM) -> VideoLM:
    """Load any model folder of `AutoModelForImageTextToText` that has a processor with a video token."""
    from vstar_fast import torchvision_compat

    torchvision_compat.ensure()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    target = pick_device(device)
    try:
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"no usable processor in {path}: {error}; copy the processor files beside the weights"
        ) from None
    if not hasattr(processor, "tokenizer"):
        raise ModelError(f"{path} has a {type(processor).__name__} but no video processor; is it a video-LMM folder?")
    try:
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=pick_dtype(dtype, target))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the model in {path}: {error}") from None
    model = model.to(target).eval()
    return cls(str(Path(path)) if Path(path).exists() else path, model, processor, target)
