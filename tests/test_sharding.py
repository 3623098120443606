"""Work over processes: generation dealt out by content key, training under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from vstar_fast.sharding import mine

TRAIN = """
import sys
import torch
from vstar_fast import torchvision_compat
torchvision_compat.ensure()
from pathlib import Path
from peft import get_peft_model
from vstar_fast import models
from vstar_fast.config import FinetuneConfig
from vstar_fast.finetune import finetune, lora_settings
from vstar_fast.models.video_lm import Features
from vstar_fast.records import Example

lm = models.load(sys.argv[1], device="cpu")
rates = {"lr": 1e-3, "projector_lr": 1e-3, "warmup_ratio": 0.0}
config = FinetuneConfig(batch_size=4, micro_batch_size=1, steps=3, lora_r=2, **rates)
mark, width = lm.tokenizer.convert_tokens_to_ids("<video>"), lm.model.config.vision_config.hidden_size
seeds = [torch.Generator().manual_seed(i) for i in range(3)]
clips = [Features(torch.full((4,), mark), {"video_features": torch.randn(1, 4, width, generator=s)}) for s in seeds]
answers = ["I see red .", "Answer: blue", "I see a colour . Answer: green", "red", "blue ."]
examples = [Example(f"v{i % 3}", f"q{i}", "which colour", a, "direct", 1.0 + i) for i, a in enumerate(answers)]
rows = lambda part: (["which colour"] * len(part), [clips[int(e.video_id[1:])] for e in part])
torch.manual_seed(0)
finetune(lm, get_peft_model(lm.model, lora_settings(lm, config)), examples, rows, config, Path(sys.argv[2]), seed=0)
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


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    model = tiny.write_model(tmp_path / "model")
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for start, out in (([sys.executable], "one"), (torchrun, "two")):
        command = [*start, str(script), str(model), str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_file(Path(tmp_path / out / "adapter_model.safetensors")) for out in ("one", "two"))
    assert one.keys() == two.keys() and any("lora_B" in n and t.abs().max() > 0 for n, t in one.items())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
