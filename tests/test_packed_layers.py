"""Packed training of stacks with windows, sinks, latent attention and shared keys: loss and gradients of plain rows."""

import pytest
import torch

from test_engine import prompts, text_model
from test_engine_layers import GEMMA4, HYBRID, STACKS
from vstar_fast import backends
from vstar_fast.engine import TextLM
from vstar_fast.errors import ModelError
from vstar_fast.finetune.items import Item
from vstar_fast.finetune.loss import packed_nll, packed_rows
from vstar_fast.records import Example

SHORTER = STACKS | {"window over a page's edge": ("Exaone4", {"sliding_window": 31, "layer_types": HYBRID})}
"""Windows that begin inside the beginning, the question and the answer."""


class Rows(TextLM):
    """A model of text with the surface that packing needs."""

    position_rows = 1


def items():
    """Answers to two questions behind one beginning, and one alone; some longer than windows, some shorter."""
    shared, one, other, alone, *answers = prompts(23, 9, 4, 3, 1, 6, 30, 12, 5)
    asked = [(shared, one)] * 2 + [(shared, other)] * 2 + [(alone, alone)]
    example = Example("v", "q", "?", "!", "direct", 1.0)
    return [
        Item(example, "?", None, torch.cat(both), torch.empty(0, dtype=torch.long), answer, cuts=(len(both[0]),))
        for both, answer in zip(asked, answers, strict=True)
    ]


def row(model, item):
    ids = torch.cat([item.head, item.answer])[None]
    logits = model(input_ids=ids).logits[0, -len(item.answer) - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, item.answer, reduction="sum")


def results(model, losses):
    """Losses [items] and the gradients of a weighted sum of them."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    weights = torch.linspace(0.5, 1.5, len(losses))
    found = torch.autograd.grad((losses * weights).sum(), list(parameters.values()), allow_unused=True)
    return losses.detach(), dict(zip(parameters, found, strict=True))


@pytest.mark.parametrize("name", SHORTER)
def test_losses_and_gradients_are_those_of_plain_rows(name):
    kind, more = SHORTER[name]
    model = text_model(kind, **more)
    losses, theirs = results(model, torch.stack([row(model, item) for item in items()]))
    lm = Rows(model)
    backends.reset_report()
    with packed_rows(lm):
        found, ours = results(model, packed_nll(lm, items()))
    torch.testing.assert_close(found, losses, atol=1e-4, rtol=1e-5)
    for each, grad in theirs.items():
        assert (grad is None) == (ours[each] is None), each
        if grad is not None:
            most = 2e-5 * max(1.0, grad.abs().max().item())
            torch.testing.assert_close(ours[each], grad, atol=most, rtol=1e-4, msg=lambda m, n=each: f"{n}: {m}")
    ran = backends.report()["tree_attention"]
    assert ("sdpa" in ran) == ("sliding_window" in more) and ("flash" in ran) == (kind != "Mistral")
    if kind == "GptOss":
        assert ours["model.layers.0.self_attn.sinks"].abs().max() > 1e-4


def test_windows_that_layers_do_not_hand_on_are_refused():
    model = text_model("Exaone4", sliding_window=8, layer_types=HYBRID)
    model.get_decoder().layers[0].self_attn.sliding_window = None
    with pytest.raises(ModelError, match="sliding windows that its layers do not hand on"), packed_rows(Rows(model)):
        pass


def test_gemma4s_keys_of_other_layers_get_their_gradient():
    """Of the layers that keep keys, those that share them among others."""
    model = text_model("Gemma4", **GEMMA4)
    lm = Rows(model)
    with packed_rows(lm):
        packed_nll(lm, items()).sum().backward()
    assert all(model.get_decoder().layers[n].self_attn.k_proj.weight.grad.abs().max() > 1e-4 for n in (0, 1))
