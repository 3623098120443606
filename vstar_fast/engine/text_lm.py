"""A causal language model without video, with the surface that the engine needs."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vstar_fast.errors import ModelError
from vstar_fast.models.modules import Head

if TYPE_CHECKING:
    from vstar_fast.kernels.constrain import TokenVocab


class TextInputs(NamedTuple):
    """What the text stack is called with for one row (see `VideoLM.embed`)."""

    inputs_embeds: torch.Tensor
    position_ids: torch.Tensor
    extras: dict[str, Any]
    next_position: int


class TextLM(Head):
    """Any Hugging Face causal language model of text; prompts are token ids, or text if there is a tokenizer."""

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = model.device
        self.text_model = self.body = model.get_decoder()
        eos = getattr(model.generation_config, "eos_token_id", None)
        listed = eos if isinstance(eos, list) else [eos]
        self.eos_ids = [int(i) for i in listed if i is not None]
        pad = getattr(model.generation_config, "pad_token_id", None)
        self.pad_id = int(pad) if pad is not None else (self.eos_ids or [0])[0]

    @cached_property
    def vocab(self) -> TokenVocab:
        """The bytes of each token, for constrained decoding."""
        from vstar_fast.kernels.constrain import TokenVocab

        columns = self.model.get_output_embeddings().weight.shape[0]
        return TokenVocab.from_hf(self._spoken(), logits_size=columns, eos_ids=self.eos_ids or None)

    def _spoken(self) -> Any:
        if self.tokenizer is None:
            raise ModelError("this model was given without a tokenizer, so it takes token ids only; give its tokenizer")
        return self.tokenizer

    def text_ids(self, text: str) -> torch.Tensor:
        """The tokens of `text`, int64 [T]."""
        ids = self._spoken()(text, return_attention_mask=False)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    def split(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(no tokens, the tokens of `text`)."""
        return torch.empty(0, dtype=torch.long), self.text_ids(text)

    def row_inputs(self, ids: torch.Tensor, _features: None = None) -> dict[str, Any]:
        """What the decoder's own forward is called with for one row of ids [T]."""
        self.check_ids(ids)
        row = ids[None].to(self.device)
        return {"input_ids": row, "attention_mask": torch.ones_like(row)}

    def forget_positions(self) -> None:
        """Nothing is kept from one call to the next."""

    def embed(self, ids: torch.Tensor, _features: None = None) -> TextInputs:
        """Inputs of the text stack for one row of ids [T]."""
        self.check_ids(ids)
        positions = torch.arange(len(ids), device=self.device)[None]
        return TextInputs(self.embed_tokens(ids)[None], positions, self.text_extras(ids), len(ids))

    def expect(self, _features: None) -> None:
        """Nothing comes: there are no videos."""
