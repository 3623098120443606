"""Label scores: a trie in one call equals a row a label, norms, and labels that cannot be scored."""

import pytest
import torch

from test_engine import prompts, request, text_model
from vstar_fast.engine import Scorer, TextLM
from vstar_fast.engine.score import tree_mask, trie
from vstar_fast.errors import ConfigError


@pytest.fixture(scope="module")
def lm():
    return TextLM(text_model())


def rows(lm, ids, surface):
    with torch.no_grad():
        logits = lm.model(torch.cat([ids, torch.tensor(surface)])[None]).logits[0, -len(surface) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(surface)[:, None]).sum().item()


@pytest.mark.parametrize("length", [1, 64, 700])
def test_fifty_labels_score_as_fifty_rows(lm, length):
    (ids,) = prompts(length)
    made = torch.Generator().manual_seed(length)
    labels = [[torch.randint(6, 9 if n % 2 else 97, (1 + n % 7,), generator=made).tolist()] for n in range(50)]
    found = Scorer(lm).score([request(ids)], labels)[0]
    for (surface,), score in zip(labels, found.tolist(), strict=True):
        assert score == pytest.approx(rows(lm, ids, surface), abs=1e-5, rel=1e-5)


def test_aliases_add_up_or_the_best_mean_counts(lm):
    (ids,) = prompts(10)
    labels = [[[7, 8, 9], [7, 10]], [[11]]]
    scorer = Scorer(lm)
    each = [[rows(lm, ids, s) for s in label] for label in labels]
    found = scorer.score([request(ids)], labels)[0]
    want = torch.tensor([torch.tensor(x).logsumexp(0) for x in each])
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
    mean = scorer.score([request(ids)], labels, norm="mean")[0]
    assert mean.tolist() == pytest.approx([max(each[0][0] / 3, each[0][1] / 2), each[1][0]], abs=1e-5)
    blank = request(prompts(4, seed=9)[0])
    difference = scorer.pmi([request(ids)], blank, labels)[0] - found + scorer.score([blank], labels)[0]
    assert difference.abs().max() < 1e-5


def test_a_trie_shares_what_begins_alike():
    made = trie([[1, 2, 3], [1, 2, 4], [1, 2], [5]])
    assert made.tokens == [1, 2] and made.parents == [0, 1] and made.depths == [0, 1]
    assert made.steps == [[(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 4)], [(0, 1), (1, 2)], [(0, 5)]]
    assert tree_mask([0, 1, 0]).tolist() == [[True, False, False], [True, True, False], [False, False, True]]


def test_what_cannot_be_scored_is_named(lm):
    with pytest.raises(ConfigError, match="a label without tokens"):
        trie([[1], []])
    with pytest.raises(ConfigError, match="norm is 'max'; use one of sum, mean"):
        Scorer(lm).score([request(prompts(3)[0])], [[[7]]], norm="max")
