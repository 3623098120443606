"""The Python blocks of docs/engine.md run one after the other as they are written."""

import re
from pathlib import Path

import torch

import families
from test_engine import prompts, text_model
from vstar_fast import models

TEXT = (Path(__file__).parents[1] / "docs" / "engine.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_page_runs(tmp_path, capsys):
    lm = models.load(str(families.write("llava_onevision", tmp_path / "model")))
    names = {
        "model": lm.model,
        "processor": lm.processor,
        "videos": [torch.full((3, 28, 28, 3), 90 * i, dtype=torch.uint8) for i in range(2)],
        "questions": ["which colour", "is it red?"],
        "language_model": text_model(),
        "prompts": torch.stack(prompts(9, 9)),
    }
    for block in BLOCKS:
        exec(block, names)
    assert [len(answers) for answers in names["answers"]] == [4, 4]
    assert names["shares"].shape == (2, 2) and names["found"].shape[0] == 6
    said = capsys.readouterr().out
    assert said.count("Answer: ") == 8 and "prefilled=" in said


def test_every_file_of_the_engine_that_is_named_is_there():
    folder = Path(models.__file__).parents[1]
    named = re.findall(r"`(models/)?(\w+\.py)`", TEXT[TEXT.index("## How it works") :])
    assert len(named) >= 9 and all((folder / (place or "engine") / name).is_file() for place, name in named)
