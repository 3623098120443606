"""Rows of generated ids for the benches of matching: SmolLM2's tokenizer, its bytes, and what decoding them costs."""

from __future__ import annotations

import functools
from typing import Any

import torch

from vstar_fast.ops import TokenBytes


@functools.cache
def vocabulary() -> tuple[Any, TokenBytes]:
    """SmolLM2's tokenizer and the bytes of its ids."""
    from transformers import AutoTokenizer

    from vstar_fast.demo.model import build

    tokenizer = AutoTokenizer.from_pretrained(build())
    tokens = TokenBytes.from_hf(tokenizer)
    tokens.table()
    return tokenizer, tokens


def id_rows(texts: list[str], columns: int) -> torch.Tensor:
    """[B, columns] int64: the last `columns` ids of each text; shorter rows are padded in front, as generation does."""
    tokenizer, _ = vocabulary()
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    pad = tokenizer.eos_token_id
    return torch.tensor([[pad] * (columns - len(row)) + row[-columns:] for row in ids])


def decoded(ids: torch.Tensor) -> list[str]:
    """The texts of the rows, as `generate` loops get them."""
    tokenizer, _ = vocabulary()
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
