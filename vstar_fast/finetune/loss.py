"""Negative log-likelihood of each example's answer, packed behind shared prefixes or row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from vstar_fast import backends
from vstar_fast.errors import NotPacked
from vstar_fast.finetune.items import Item
from vstar_fast.finetune.packed import pack
from vstar_fast.models.attention import running
from vstar_fast.models.modules import attending_by, odd_layers
from vstar_fast.models.video_lm import VideoLM

NAME = "vstar_tree"
POSITIONS = 64
"""Positions whose logits are held at once."""
REFUSED = ("softcap", "position_bias", "sinks")


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    vstar_tree: Any = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function over packed tokens: query [1, Hq, N, D], keys and values [1, Hkv, N, D or Dv].

    `s_aux`: [Hq], scores of nothing. Layers whose sliding window is shorter than a row go block by block.
    """
    from vstar_fast.kernels.tree_attention import tree_attention

    odd = [name for name in REFUSED if kwargs.get(name) is not None]
    odd += ["attention dropout"] if dropout else []
    odd += ["an attention mask"] if attention_mask is not None else []
    odd += ["layers that do not hand on their arguments"] if vstar_tree is None else []
    if odd:
        raise NotPacked(
            f"{type(module).__name__} has {', '.join(odd)}: not with packed rows; set finetune.pack = false"
        )
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    sinks = None if s_aux is None else s_aux.flatten()
    return tree_attention(q, k, v, vstar_tree, scaling, sinks=sinks, window=sliding_window)[None], None


@contextlib.contextmanager
def packed_rows(lm: VideoLM) -> Iterator[None]:
    """Inside, the text stack attends along the tree it is given, and layers with a state follow its branches.

    Backward belongs inside: it may run layers again.

    Raises NotPacked for layers that would mix the branches of a row.
    """
    from transformers import AttentionInterface

    from vstar_fast.models.branches import along_trees
    from vstar_fast.models.layers import layers_of

    odd = odd_layers(lm.text_model) or layers_of(lm.text_model).odd
    if odd:
        name = type(lm.text_model).__name__
        raise NotPacked(f"{name} has {odd}: not with packed rows; set finetune.pack = false")

    AttentionInterface.register(NAME, attention)
    with attending_by(lm.text_model, NAME), along_trees(lm.text_model):
        yield


def packed_nll(lm: VideoLM, items: Sequence[Item]) -> torch.Tensor:
    """Negative log-likelihood of each item's answer, fp32 `[len(items)]`, in one call of the text stack.

    The LM head sees the positions that predict an answer's token, and no other. Call it inside `packed_rows`.
    """
    packed = pack(lm, items)
    hidden = lm.text_model(
        inputs_embeds=packed.inputs_embeds,
        position_ids=packed.position_ids,
        attention_mask=None,
        use_cache=False,
        vstar_tree=packed.tree,
        **packed.extras,
    ).last_hidden_state[0]
    each = token_nll(lm, hidden[packed.sources], packed.targets)
    return each.new_zeros(len(items)).index_add(0, packed.owners, each)


def row_nll(lm: VideoLM, items: Sequence[Item]) -> torch.Tensor:
    """The same through the model's own forward, a row at a time: for models whose inputs cannot be packed."""
    return torch.stack([_one_row(lm, item) for item in items])


def _one_row(lm: VideoLM, item: Item) -> torch.Tensor:
    video = [] if item.features is None else [item.features.ids]
    inputs = lm.row_inputs(torch.cat([item.head, *video, item.tail, item.answer]), item.features)
    hidden = lm.hidden(inputs)[0]
    backends.ran("attention", running(lm.text_model.config))
    count = len(item.answer)
    return token_nll(lm, hidden[-count - 1 : -1], item.answer.to(lm.device)).sum()


def token_nll(lm: VideoLM, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of tokens `[S]` at hidden states `[S, H]`, fp32 `[S]`, a few logits at a time.

    A position's loss depends on its own hidden state alone, so its gradient is known, up to a factor, as soon as its
    logits are: they are dropped then, and nothing is computed twice. A head that is trained itself needs them kept.
    """
    head = lm.head
    if torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters()):
        return _nll(lm, hidden, targets)
    found: torch.Tensor = _TokenNll.apply(hidden, targets, lm)
    return found


class _TokenNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, targets: torch.Tensor, lm: VideoLM) -> torch.Tensor:
        wanted = hidden.requires_grad
        losses: list[torch.Tensor] = []
        slopes: list[torch.Tensor] = []
        for part, target in zip(hidden.split(POSITIONS), targets.split(POSITIONS), strict=True):
            leaf = part.detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                each = _nll(lm, leaf, target)
            losses.append(each.detach())
            slopes += torch.autograd.grad(each, leaf, torch.ones_like(each)) if wanted else ()
        ctx.save_for_backward(*([torch.cat(slopes)] if wanted else []))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (slope,) = ctx.saved_tensors
        return slope * grads[0][:, None].to(slope.dtype), None, None


def _nll(lm: VideoLM, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(lm.logits(hidden).float(), targets, reduction="none")
