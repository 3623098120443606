"""Packed training through layers with a state: the loss and gradients of rows, each through the model alone."""

import dataclasses
from unittest import mock

import pytest
import torch
from vstar_fast.kernels.tree_attention.tree import Node, Tree

import families
import family_parts
import test_packed
from test_engine_recurrent import KINDS, text_model
from test_families import batch_of
from vstar_fast import models
from vstar_fast.engine import TextLM
from vstar_fast.errors import ModelError
from vstar_fast.finetune import accumulate, checkpointed
from vstar_fast.finetune.loss import packed_rows
from vstar_fast.models import branches
from vstar_fast.run.runtime import unload

SHAPES = {
    "a head, two videos, questions, answers": [(0, 9, 60, 0), (9, 30, 45, 1), (30, 31, 40, 2), (31, 36, 36, 3),
        (36, 40, 40, 3), (40, 41, 41, 2), (41, 45, 45, 2), (45, 60, 60, 1)],
    "single tokens in a row": [(0, 2, 10, 0), (2, 3, 9, 1), (3, 4, 7, 2), (4, 5, 5, 3), (5, 7, 7, 3), (7, 8, 8, 2),
        (8, 9, 9, 2), (9, 10, 10, 1)],
    "nothing shared": [(0, 70, 70, 0), (70, 78, 78, 0), (78, 79, 79, 0), (79, 145, 145, 0)],
    "a single row": [(0, 5, 5, 0)],
}  # fmt: skip


def tree_of(name):
    return Tree([Node(*each) for each in SHAPES[name]])


def rows_of(tree):
    """Places of the tokens that lead to each end, itself among them."""
    found, path = [], []
    for node in tree.nodes:
        path = [n for n in path if node.start < n.end] + [node]
        if node.stop == node.end:
            found.append([p for n in path for p in range(n.start, n.stop)])
    return found


def positions(tree):
    found = torch.zeros(tree.tokens, dtype=torch.long)
    for row in rows_of(tree):
        found[row] = torch.arange(len(row))
    return found[None]


@pytest.fixture(scope="module", params=KINDS)
def lm(request):
    return TextLM(text_model(request.param, initializer_range=0.1))


@pytest.fixture(scope="module")
def video_lm(tmp_path_factory):
    with mock.patch.dict(family_parts.TEXT, initializer_range=0.2):
        lm = models.load(str(families.write("qwen3_5", tmp_path_factory.mktemp("qwen3_5") / "model")))
    batch = batch_of((56, 84), (84, 56), (56, 56), frames_each=4)
    return lm, lm.pixels(batch), lm.encode(batch)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed(lm, tree, embeds):
    return lm.text_model(
        inputs_embeds=embeds, position_ids=positions(tree), attention_mask=None, use_cache=False, vstar_tree=tree
    ).last_hidden_state[0]


def weighed(hidden, row, number):
    """A number that every token of a row counts for, in a way of its own."""
    made = torch.Generator().manual_seed(number)
    return (hidden * torch.randn(len(row), hidden.shape[-1], generator=made)).sum()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "run again"])
@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_and_gradients_are_those_of_rows(lm, shape, checkpointing):
    tree = tree_of(shape)
    ids = torch.randint(6, 97, (1, tree.tokens), generator=torch.Generator().manual_seed(1))
    embeds = lm.embed_tokens(ids).detach()
    rows = rows_of(tree)
    alone = [lm.text_model(inputs_embeds=embeds[:, row], use_cache=False).last_hidden_state[0] for row in rows]
    theirs = gradients(lm.model, sum(weighed(h, row, n) for n, (h, row) in enumerate(zip(alone, rows, strict=True))))
    lm.model.train(checkpointing)
    if checkpointing:
        lm.text_model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with packed_rows(lm):
            hidden = packed(lm, tree, embeds)
            ours = gradients(lm.model, sum(weighed(hidden[row], row, n) for n, row in enumerate(rows)))
    finally:
        lm.text_model.gradient_checkpointing_disable()
        lm.model.eval()
    for row, found in zip(rows, alone, strict=True):
        torch.testing.assert_close(hidden[row], found, atol=5e-5, rtol=1e-4)
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        most = 2e-5 * max(1.0, grad.abs().max().item())
        torch.testing.assert_close(ours[name], grad, atol=most, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("change", [{}, {"gradient_checkpointing": True}, {"micro_batch_size": 1}, {"tune": "full"}])
def test_examples_about_videos_are_trained_as_row_by_row(video_lm, change):
    lm, pixels, features = video_lm
    config = dataclasses.replace(test_packed.CONFIG, **change)
    peft, theirs = test_packed.reference(lm, pixels, config)
    items = test_packed.reader(lm, features)(test_packed.examples())
    with checkpointed(lm, config):
        ours = test_packed.step(lm, peft, config, lambda: accumulate(lm, peft, items, config)[0])
    unload(peft)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert any("lora_A" in n and "linear_attn" in n and g.abs().max() > 1e-4 for n, g in ours[1].items()) or change
    test_packed.same(ours[1], theirs[1])


def test_layers_that_are_not_told_of_the_tree_are_refused(lm):
    tree = tree_of("a single row")
    with packed_rows(lm), pytest.raises(ModelError, match="are not handed on what the text stack is given"):
        lm.text_model(inputs_embeds=lm.embed_tokens(torch.arange(5)[None]), use_cache=False)
    assert len(branches.of_tree(tree, torch.device("cpu")).waves) == 1
