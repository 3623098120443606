"""A causal language model without video, with the surface that the engine needs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class TextInputs(NamedTuple):
    """What the text stack is called with for one row (see `VideoLM.embed`)."""

    inputs_embeds: torch.Tensor
    position_ids: torch.Tensor
    extras: dict[str, Any]
    next_position: int


class TextLM:
    """Any Hugging Face causal language model of text; prompts are token ids, or text if there is a tokenizer."""

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = model.device
        self.text_model = model.get_decoder()
        eos = getattr(model.generation_config, "eos_token_id", None)
        listed = eos if isinstance(eos, list) else [eos]
        self.eos_ids = [int(i) for i in listed if i is not None]
        pad = getattr(model.generation_config, "pad_token_id", None)
        self.pad_id = int(pad) if pad is not None else (self.eos_ids or [0])[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., H] -> logits [..., V]."""
        out: torch.Tensor = self.model.get_output_embeddings()(hidden)
        return out

    def split(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(no tokens, the tokens of `text`)."""
        ids = self.tokenizer(text, return_attention_mask=False)["input_ids"]
        return torch.empty(0, dtype=torch.long), torch.tensor(ids, dtype=torch.long)

    def embed(self, ids: torch.Tensor, _features: None = None) -> TextInputs:
        """Inputs of the text stack for one row of ids [T]."""
        positions = torch.arange(len(ids), device=self.device)[None]
        return TextInputs(self.embed_tokens(ids)[None], positions, {}, len(ids))

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [..., H] of token ids [...]."""
        out: torch.Tensor = self.model.get_input_embeddings()(ids.to(self.device))
        return out
