"""`label_match` on ids [B, T] as the operator `vstar_fast::label_match`: torch.compile keeps it in its graphs."""

from __future__ import annotations

import torch

from .handles import held
from .labels import LabelSet
from .result import ROW_INTS, LabelMatch
from .token_bytes import TokenBytes


@torch.library.custom_op("vstar_fast::label_match", mutates_args=())
def label_match(
    ids: torch.Tensor, lengths: torch.Tensor | None, own: torch.Tensor, labels: int, tokens: int, after: str,
    which: bool, negation: bool, backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(table [B, ROW_INTS], bits [B, ceil(N / 32)] or [B, 0]) of int32; `labels` and `tokens` are handles."""
    from . import find

    known, table = held(labels, LabelSet), held(tokens, TokenBytes)
    match = find(ids, known, own, table, lengths, after or None, which, negation, None, backend, None)
    none = match.table.new_empty((match.table.shape[0], 0))
    return match.table, none if match.which_bits is None else match.which_bits


@label_match.register_fake
def _(ids, lengths, own, labels, tokens, after, which, negation, backend):  # type: ignore[no-untyped-def]  # noqa: ARG001
    words = (len(held(labels, LabelSet)) + 31) // 32 if which else 0
    return tuple(ids.new_empty((ids.shape[0], columns), dtype=torch.int32) for columns in (ROW_INTS, words))


def in_graph(
    ids: torch.Tensor, labels: LabelSet, own: torch.Tensor, tokens: TokenBytes, lengths: torch.Tensor | None,
    after: str | None, which: bool, negation: bool, backend: str,
) -> LabelMatch:  # fmt: skip
    """The call as torch.compile traces it."""
    options = (after or "", which, negation, backend)
    table, bits = label_match(ids, lengths, own, labels.handle, tokens.handle, *options)
    return LabelMatch(table, bits if which else None, labels, backend)
