"""The parts of a Hugging Face video-LMM, by the names that families share: body, text stack, head, projector."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from vstar_fast.errors import DataError, ModelError
from vstar_fast.kernels.linear import fast_linears
from vstar_fast.models.lora_targets import targets_of
from vstar_fast.models.text_inputs import forward_of

STACKS = ("model.language_model", "language_model", "model.text_model", "text_model")


KNOWN = frozenset({"full_attention", "sliding_attention", "moe", "mlp"})
"""Layer types that attend, or look at one token at a time."""


def odd_layers(text_model: Any) -> str:
    """What the layers of a text stack do, in words, that packed tokens have no form for; empty where all is known."""
    from vstar_fast.models.mixers import mixers_of

    mixers = mixers_of(text_model)
    if mixers.odd:
        return mixers.odd
    odd = set(getattr(text_model.config, "layer_types", None) or ()) - KNOWN - mixers.types
    if odd:
        return f"layers of {', '.join(sorted(odd))}"
    if any("longrope" in kind for kind in rope_types(text_model.config)):
        return "rotary frequencies of two kinds, by the length of a row (longrope)"
    if not _by_interface(text_model):
        return "attention in code of its own, not through transformers' AttentionInterface"
    return ""


def rope_types(config: Any) -> set[str]:
    """Kinds of rotary embeddings that a text stack's config names."""
    rope = getattr(config, "rope_parameters", None) or {}
    each = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return {str(part["rope_type"]) for part in each if "rope_type" in part}


def _by_interface(text_model: Any) -> bool:
    """Whether attention functions can be exchanged; not every family that lets them be says so."""
    code = sys.modules.get(type(text_model).__module__)
    return getattr(text_model, "_supports_attention_backend", False) or hasattr(code, "ALL_ATTENTION_FUNCTIONS")


def dropping(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Modules in training mode. Those of a fresh adapter are, also in a model that is not."""
    return [module for module in model.modules() if module.training]


@contextmanager
def evaluating(model: torch.nn.Module, known: Sequence[torch.nn.Module] | None = None) -> Iterator[None]:
    """Inside, nothing is dropped out; afterwards each module is in the mode it was in.

    `known`: which are in training mode while the model is not, where looking at all of them takes too long.
    """
    training = list(known) if known is not None and not model.training else dropping(model)
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def attending_by(text_model: Any, name: str) -> Iterator[None]:
    """The text stack attends by the function registered under `name` inside, and as before afterwards."""
    config = text_model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def rounding(lm: Any) -> float:
    """Largest relative difference between two ways of one computation that counts as rounding, not as another one."""
    return 1e-3 if lm.text_model.dtype in (torch.float32, torch.float64) and not lm.mixed else 0.1


def dtype_name(lm: Any) -> str:
    """What a model is computed in, as `model.dtype` has it."""
    return "mixed" if lm.mixed else str(lm.model.dtype).removeprefix("torch.")


@contextmanager
def unmixed(lm: Any) -> Iterator[None]:
    """Inside, all products of an `lm` are of its weights' dtype: what is compared is to differ by little rounding."""
    before, lm.mixed = lm.mixed, False
    try:
        yield
    finally:
        lm.mixed = before


class Head:
    """The output head of `model`, whose hidden states are those of `body`."""

    model: Any
    body: Any
    text_model: Any
    mixed = False
    """Whether the text stack multiplies fp32 weights in bf16, see `half_linear`; tower, projector and head never do."""

    @property
    def head(self) -> Any:
        """The linear layer from hidden states to logits."""
        head = self.model.get_output_embeddings()
        if head is None:  # it is inside a language model of its own
            inner = (m for m in self.model.children() if hasattr(m, "get_output_embeddings"))
            head = next((h for m in inner if (h := m.get_output_embeddings()) is not None), None)
        return head

    @property
    def read_as(self) -> Mapping[int, int]:
        """Ids that the body reads as another where text says them, as some do with placeholders of pictures."""
        return {}

    def as_read(self, ids: torch.Tensor) -> torch.Tensor:
        """`ids` of text, on the model's device, as its body reads them."""
        ids = ids.to(self.model.device)
        for said, read in self.read_as.items():
            ids = ids.masked_fill(ids == said, read)
        return ids

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings `[..., H]` of text ids int64 `[...]`. Raises DataError for ids beyond the vocabulary on a CPU."""
        try:
            embeddings: torch.Tensor = self.model.get_input_embeddings()(self.as_read(ids))
        except IndexError:
            self.check_ids(ids)
            raise
        return embeddings

    def text_extras(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the text stack takes for text ids int64 `[T]` beside their embeddings: of Gemma 4, one a layer."""
        if not getattr(self.text_model.config, "hidden_size_per_layer_input", 0):
            return {}
        return {"per_layer_inputs": self.text_model.get_per_layer_inputs(self.as_read(ids)[None], None)}

    def check_ids(self, ids: torch.Tensor, placeholders: torch.Tensor | None = None) -> None:
        """Raise DataError for ids on the host beyond the vocabulary, but for a video's `placeholders`.

        Of ids on a GPU nothing is looked at: one would have to wait for them.
        """
        size = len(self.model.get_input_embeddings().weight)
        if ids.device.type != "cpu" or not ids.numel() or (int(ids.min()) >= 0 and int(ids.max()) < size):
            return
        known = ids.new_empty(0) if placeholders is None else placeholders.cpu()
        odd = ids[((ids < 0) | (ids >= size)) & ~torch.isin(ids, known)]
        if len(odd):
            whose = getattr(self, "path", "") or type(self.model).__name__
            raise DataError(
                f"token {int(odd[0])} is not in the vocabulary of {whose}, which has {size}; are these the ids of "
                "another model's tokenizer, or padding?"
            )

    @fast_linears()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Output head, with whatever the family does behind it: `[..., H]` -> `[..., V]`."""
        if self._plain_head:
            head = self.head
            logits: torch.Tensor = head(hidden.to(head.weight.dtype))  # HY V4 keeps its head in fp32
            return logits
        return self._own_logits(hidden)

    def _own_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Through the model's own forward, its body (its stack, without one) replaced by one that returns `hidden`."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        inner = self.text_model if self.body is self.model else self.body
        with forward_of([inner], lambda *_, **__: _BodyOutput(last_hidden_state=rows)):
            out = self.model(inputs_embeds=rows, use_cache=False, return_dict=True)
        return out.logits.reshape(*hidden.shape[:-1], -1)

    @cached_property
    def _plain_head(self) -> bool:
        """Whether the logits are the head's output and nothing else, seen on random hidden states."""
        head = self.head
        hidden = torch.randn(1, 4, head.weight.shape[1], generator=torch.Generator().manual_seed(0)).to(head.weight)
        with torch.no_grad():  # large values, so that a soft cap shows
            return torch.equal(self._own_logits(100 * hidden).float(), head(100 * hidden).float())


class Modules(Head):
    """Names and calls the parts of a model. Looked up at each use: an adapter puts modules of its own in place."""

    def __init__(self, path: str, model: Any) -> None:
        self.path = path
        self.model = model
        self.stack_name = _stack_name(model)

    @property
    def body(self) -> Any:
        """The model without its head: tower, projector, text stack; all of a model that has no such part."""
        return self.model if self.stack_name == "model" else getattr(self.model, "model", self.model)

    @property
    def text_model(self) -> Any:
        """The decoder stack, final norm included, without the head."""
        return self.model.get_submodule(self.stack_name)

    @cached_property
    def position_rows(self) -> int:
        """Rows of positions that the text stack takes: 3 for M-RoPE (time, height, width), else 1."""
        rope = getattr(self.text_model.config, "rope_parameters", None) or {}
        each = [rope, *(part for part in rope.values() if isinstance(part, dict))]
        return 3 if any("mrope_section" in part for part in each) else 1

    def hidden(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Hidden states `[B, T, H]` of the model's own forward on `inputs`."""
        if self.body is not self.model:
            states: torch.Tensor = self.body(**inputs, use_cache=False)[0]
            return states
        seen: list[Any] = []
        hook = self.text_model.register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
        try:
            self.model(**inputs, use_cache=False)
        finally:
            hook.remove()
        return seen[0]

    def forget_positions(self) -> None:
        """Qwen's bodies keep the last batch's `rope_deltas`; the next call must not find them."""
        if getattr(self.body, "rope_deltas", None) is not None:
            self.body.rope_deltas = None

    def language_linears(self, named: tuple[str, ...] = ()) -> str:
        """Regular expression over module names: linear layers of the text stack (LoRA targets), all or those named."""
        wanted = named or targets_of(self.text_model)
        if not wanted:
            raise ModelError(f"text stack {self.stack_name!r} of {self.path} has no linear layers")
        return rf".*\b{self.stack_name.replace('.', chr(92) + '.')}\..*\.({'|'.join(wanted)})"


def _stack_name(model: Any) -> str:
    """Full name of the decoder stack, without a head. Raises ModelError where there is none."""
    names = {m: n for n, m in model.named_modules()}
    found = [n for n in STACKS if n in names.values()] or [names.get(model.get_decoder(), "")]
    stack = model.get_submodule(found[0])
    if stack is not model and stack.get_output_embeddings() is not None:
        stack = stack.base_model
    if stack is model:
        raise ModelError(f"{type(model).__name__} has no text stack; looked for {', '.join(STACKS)}")
    return names[stack]


class _BodyOutput(BaseModelOutputWithPast):
    """A body's output that holds hidden states; whatever else a family's body returns is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
