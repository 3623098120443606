"""The Python blocks of the README run as they are written."""

import re
from pathlib import Path

import pytest
import torch

import families
import tiny
from vstar_fast import models

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What the blocks take for granted."""
    lm = models.load(str(families.write("llava_onevision", tmp_path_factory.mktemp("readme") / "model")))
    return {
        "model": lm.model,
        "processor": lm.processor,
        "tokenizer": lm.tokenizer,
        "logits": torch.randn(2, lm.vocab.logits_size),
        "seeds": torch.tensor([1, 2]),
        "step": 0,
        "own": [1, 2],
        "ids": torch.randint(0, 90, (2, 6)),
        "lengths": torch.tensor([6, 3]),
        "videos": [torch.zeros(3, 28, 28, 3, dtype=torch.uint8)] * 2,
        "questions": ["a", "b"],
    }


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split()[1])
def test_a_block_runs(block, names, tmp_path, monkeypatch):
    tiny.write_clip(tmp_path / "a.mp4", (200, 30, 30), frames=40)
    monkeypatch.chdir(tmp_path)
    found = dict(names)
    exec(block, found)
    if "clips" in found:
        assert found["clips"][0].data.shape[1:] == (224, 224, 3)
    if "found" in found:
        assert found["found"].matched.tolist() == [True] and found["found"].first.tolist() == [[18, 27]]
    if "answers" in found:
        assert [len(x) for x in found["answers"]] == [8, 8]
