"""Label scores: a trie in one call equals a row a label, norms, and labels that cannot be scored."""

from concurrent.futures import ThreadPoolExecutor

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


def test_each_prompt_may_have_labels_of_its_own(lm):
    asked = [request(ids) for ids in prompts(5, 300, 64, 700, 9)]
    made = torch.Generator().manual_seed(3)
    sets = [[[torch.randint(6, 97, (n,), generator=made).tolist()] for n in range(1, 2 + i)] for i in range(5)]
    sets[2] = [[[7]], [[8]]]  # no inner node
    scorer = Scorer(lm)
    found = scorer.score_each(asked, sets, norm="mean")
    for r, labels, scores in zip(asked, sets, found, strict=True):
        torch.testing.assert_close(scores, Scorer(lm).score([r], labels, norm="mean")[0], atol=1e-5, rtol=1e-5)
    assert scorer.prefilled == sum(len(r.tail) for r in asked) and scorer.stack.store.nbytes == 0
    with pytest.raises(ConfigError, match="there are 5 requests and 4 sets"):
        scorer.score_each(asked, sets[:4])


def test_a_video_is_read_once_for_all_its_questions(tmp_path):
    import families
    from test_families import batch_of
    from vstar_fast import models
    from vstar_fast.labels import scores as label_scores
    from vstar_fast.records import Label, Question

    shown = models.load(str(families.write("qwen2_5_vl", tmp_path / "model")))
    first, second = shown.encode(batch_of((56, 84), (70, 56)))
    label = Label("class", "colour", "Red", set="colours")
    asked = [Question(f"q{i}", f"v{i % 2}", "which", (label,), "t") for i in range(6)]
    videos = [first, second] * 3
    texts = ["which colour", "is it red?", "see a ball", "which", "a b", "c"]
    names = {"red": ["red", "a red ball"], "green": ["green"], "blue": ["colour"]}
    scorers = []
    together = Scorer.score_each

    def watched(scorer, *args, **kwargs):
        scorers.append(scorer)
        return together(scorer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "score_each", watched)
        found = label_scores.score(shown, asked, videos, texts, [names] * 6)
    alone = [label_scores.score(shown, [q], [v], [t], [names])[0] for q, v, t in zip(asked, videos, texts, strict=True)]
    assert [x.question_id for x in found] == [f"q{i}" for i in range(6)]
    assert {x.gold for x in found} == {"red"}  # the name of the set, however the label is written
    for one, other in zip(found, alone, strict=True):
        assert one.labels == other.labels and one.shares == pytest.approx(other.shares, abs=1e-5)
    head = len(shown.split("a")[0])
    tails = sum(len(shown.split(text)[1]) + 10 for text in texts)
    assert scorers[0].prefilled <= head + len(first.ids) + len(second.ids) + tails
    blank = label_scores.blank_video(shown, 2)
    less = label_scores.score(shown, asked, videos, texts, [names] * 6, norm="pmi", blank=blank)
    flat = label_scores.score(shown, asked, [blank] * 6, texts, [names] * 6, norm="pmi", blank=blank)
    assert all(x.shares == pytest.approx([1 / 3] * 3, abs=1e-5) for x in flat)
    assert any(x.shares != pytest.approx(y.shares, abs=1e-3) for x, y in zip(less, found, strict=True))
    with pytest.raises(ConfigError, match="need the features of a blank video"):
        label_scores.score(shown, asked, videos, texts, [names] * 6, norm="pmi")


def test_threads_take_turns_at_a_scorer(lm):
    scorer, labels = Scorer(lm), [[[7, 8]], [[9]], [[7, 10, 11]]]
    asked = [request(ids) for ids in prompts(*range(200, 240))]
    want = scorer.score(asked, labels)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: scorer.score(asked, labels), range(8)):
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
