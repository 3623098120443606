"""Families whose video tokens see others behind them: packed answers, label scores and training, as plain rows are."""

import pytest
import torch

import families
from test_engine_families import asked, theirs
from test_families import batch_of
from test_packed import examples, reader
from test_packed_layers import results
from vstar_fast import backends, models
from vstar_fast.engine import Scheduler, Scorer, ways
from vstar_fast.errors import NotPacked
from vstar_fast.finetune.loss import packed_nll, packed_rows, row_nll
from vstar_fast.models import bidirectional

NAMES = sorted({"gemma4_large", "gemma4_unified", "molmo2"} & set(families.MORE))
TEXTS = ["which colour", "is it red?", "see a ball"]


@pytest.fixture(scope="module", params=NAMES)
def lm(request, tmp_path_factory):
    return models.load(str(families.write(request.param, tmp_path_factory.mktemp(request.param) / "model")))


@torch.no_grad()
def logprob(lm, r, answer):
    """Of the model's own forward over the whole row."""
    ids = torch.cat([r.head, r.features.ids, r.tail, torch.tensor(answer)])
    hidden = lm.hidden(lm.row_inputs(ids, r.features))
    lm.forget_positions()
    found = lm.logits(hidden)[0, -len(answer) - 1 : -1].float().log_softmax(-1)
    return found.gather(1, torch.tensor(answer)[:, None]).sum().item()


@pytest.mark.parametrize("block", [256, 5])
def test_answers_and_scores_are_the_models_own(lm, block, monkeypatch):
    """A video with two questions, and one with one, which goes in together with its video."""
    monkeypatch.setattr("vstar_fast.engine.bidirectional.BLOCK", block)
    assert ways.choose(lm).name == "packed" and lm.sees_ahead
    first, second = lm.encode(batch_of((56, 84), (70, 56)))
    features = [first, second, first]
    requests = asked(lm, features, TEXTS, 12)
    found = {id(r): answers for r, answers in Scheduler(lm, max_rows=5, plain_below=0).run(requests)}
    for r, text, feature in zip(requests, TEXTS, features, strict=True):
        answers = found[id(r)]
        assert [a.token_ids for a in answers] == [theirs(lm, text, feature, 12)] * 2
        assert answers[0].logprob == pytest.approx(logprob(lm, r, answers[0].token_ids), abs=1e-3)
    labels = [[[7, 8, 9]], [[7, 8]], [[30]]]
    scores = Scorer(lm).score(requests, labels)
    for r, row in zip(requests, scores.tolist(), strict=True):
        assert row == pytest.approx([logprob(lm, r, surface) for (surface,) in labels], abs=1e-3)


def test_packed_training_is_row_by_row(lm):
    items = reader(lm, lm.encode(batch_of((56, 84), (84, 56), (56, 56))))(examples())
    losses, wanted = results(lm.model, row_nll(lm, items))
    backends.reset_report()
    with packed_rows(lm):
        found, ours = results(lm.model, packed_nll(lm, items))
    assert set(backends.report()["tree_attention"]) == {"sdpa"}
    torch.testing.assert_close(found, losses, atol=1e-4, rtol=1e-5)
    for name, grad in wanted.items():
        if grad is not None:
            most = 2e-5 * max(1.0, grad.abs().max().item())
            torch.testing.assert_close(ours[name], grad, atol=most, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_words_that_are_masked_in_a_way_of_their_own_are_refused(lm, monkeypatch):
    (features,) = lm.encode(batch_of((56, 84)))
    head, tail = lm.split("a")
    ids = torch.cat([head, features.ids, tail])
    given, seen = bidirectional.embedded(lm, ids, features)
    assert seen[None].shape == (len(ids), len(ids)) and any(bool(each.triu(1).any()) for each in seen.values())
    last = {"full_attention": seen[None].clone()[None, None]}
    last["full_attention"][..., -1, 0] = False
    given.mask = last
    monkeypatch.setattr(lm, "embed", lambda *_args, **_kwargs: given)
    with pytest.raises(NotPacked, match="masks words around a video in a way of its own"):
        bidirectional.embedded(lm, ids, features)
