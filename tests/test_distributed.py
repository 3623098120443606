"""Work over processes: generation dealt out by content key, training under torchrun."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from vstar_fast import models
from vstar_fast.config import FinetuneConfig
from vstar_fast.distributed import Ranks, mine
from vstar_fast.errors import ConfigError
from vstar_fast.finetune.fsdp import split_layers

TRAIN = """
import json
import sys
import torch
from vstar_fast import torchvision_compat
torchvision_compat.ensure()
from pathlib import Path
from peft import get_peft_model
from vstar_fast import models
from vstar_fast.models import base_model
from vstar_fast.config import FinetuneConfig
from vstar_fast.finetune import finetune, lora_settings
from vstar_fast.finetune.fsdp import split_layers
from vstar_fast.models.video_lm import Features
from vstar_fast.records import Example
from vstar_fast.distributed import Ranks


def train(folder, changes):
    lm = models.load(sys.argv[1], device="cpu")
    whole = sum(p.numel() for p in lm.text_model.layers.parameters())
    rates = {"lr": 1e-3, "projector_lr": 1e-3, "warmup_ratio": 0.0}
    sizes = {"batch_size": 4, "steps": 3, "micro_batch_size": 1}
    config = FinetuneConfig(lora_r=2, track="none", **rates, **{**sizes, **changes})
    mark, width = lm.tokenizer.convert_tokens_to_ids("<video>"), lm.model.config.vision_config.hidden_size
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    clips = [Features(torch.full((4,), mark), {"video_features": torch.randn(1, 4, width, generator=s)}) for s in seeds]
    answers = ["I see red .", "Answer: blue", "I see a colour . Answer: green", "red", "blue ."]
    examples = [Example(f"v{i % 3}", f"q{i}", "which colour", a, "direct", 1.0 + i) for i, a in enumerate(answers)]
    rows = lambda part: (["which colour"] * len(part), [clips[int(e.video_id[1:])] for e in part])
    torch.manual_seed(0)
    peft = get_peft_model(lm.model, lora_settings(lm, config))
    if config.split:
        key = base_model.key_of(lm)
        split_layers(lm, config, Ranks())
        assert base_model.key_of(lm) == key, "the key of split weights is another one"
    finetune(lm, peft, examples, rows, config, folder, seed=0)
    named = lm.text_model.layers.named_parameters()
    held = [p.to_local() if hasattr(p, "to_local") else p for n, p in named if "lora" not in n]
    return sum(p.numel() for p in held) / whole


for name, changes in json.loads(sys.argv[3]).items():
    sys.stdout.write(f"{name} holds {train(Path(sys.argv[2]) / name, changes):.3f}\\n")
"""


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_key_goes_to_one_process_and_stays_there(size):
    keys = [f"clip-{i % 400}" for i in range(500)]
    shares = [mine(keys, rank, size) for rank in range(size)]
    assert sorted(i for share in shares for i in share) == list(range(500))
    assert min(map(len, shares)) > 0.6 * 500 / size
    shuffled = keys[::-1]
    assert [{keys[i] for i in s} for s in shares] == [
        {shuffled[i] for i in mine(shuffled, r, size)} for r in range(size)
    ]
    with pytest.raises(ValueError, match="is not one of"):
        mine(keys, size, size)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")


CHANGES = {
    "plain": {},
    "dropout": {"lora_dropout": 0.3},
    "split": {"split": True},
    "checkpointed": {"split": True, "gradient_checkpointing": True, "micro_batch_size": 2},
    "kto": {"split": True, "objective": "kto"},
}


def train(model, folder, processes, changes):
    """What trainings in so many processes printed, one behind the other; their adapters go to `folder`."""
    folder.mkdir()
    script = folder / "train.py"
    script.write_text(TRAIN)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = torchrun if processes > 1 else [sys.executable]
    command = [*start, str(script), str(model), str(folder), json.dumps(changes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    """(the folder, what two processes printed): every change in one process and in two."""
    folder = tmp_path_factory.mktemp("trained")
    whole = {name: {k: v for k, v in changes.items() if k != "split"} for name, changes in CHANGES.items()}
    train(model, folder / "one", 1, whole)
    return folder, train(model, folder / "two", 2, CHANGES)


def same(one, two):
    mine, other = (load_file(Path(at) / "adapter_model.safetensors") for at in (one, two))
    assert mine.keys() == other.keys() and any("lora_B" in n and t.abs().max() > 0 for n, t in mine.items())
    for name, value in mine.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CHANGES)
def test_two_processes_end_with_the_weights_of_one(trained, name):
    folder, said = trained
    same(folder / "one" / name, folder / "two" / name)
    held = [float(share) for share in re.findall(rf"{name} holds (\d\.\d+)", said)]
    assert held == [pytest.approx(0.5 if "split" in CHANGES[name] else 1.0, abs=0.02)] * 2


def test_splitting_needs_several_processes_and_frozen_weights(model, tmp_path):
    lm = models.load(str(model), device="cpu")
    with pytest.raises(ConfigError, match="needs several processes: start it with torchrun"):
        split_layers(lm, FinetuneConfig(split=True), Ranks())
    several = Ranks()
    several.size = 2
    with pytest.raises(ConfigError, match=r"it needs finetune.tune = lora"):
        split_layers(lm, FinetuneConfig(split=True, tune="full"), several)
