"""Trains tiny adapters, each in a child process that is left alone and in one that is killed again and again.

`killed_fit.py MODEL OUT KILLS SEED CHANGES`

CHANGES is JSON, {name: settings}; the adapters are OUT/NAME/calm and OUT/NAME/killed. The first kill comes behind a
checkpoint, whatever SEED is, and no three kills reach the last step. The parent imports everything once, so that a
child costs a fork.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from vstar_fast import torchvision_compat

torchvision_compat.ensure()
torch.set_num_threads(1)

from vstar_fast import models  # noqa: E402
from vstar_fast.config import FinetuneConfig  # noqa: E402
from vstar_fast.finetune import finetune, lora_settings  # noqa: E402
from vstar_fast.models.video_lm import Features  # noqa: E402
from vstar_fast.records import Example  # noqa: E402


def examples(lm):
    mark, width = lm.tokenizer.convert_tokens_to_ids("<video>"), lm.model.config.vision_config.hidden_size
    made = [torch.Generator().manual_seed(i) for i in range(3)]
    clips = [Features(torch.full((4,), mark), {"video_features": torch.randn(1, 4, width, generator=g)}) for g in made]
    answers = ["I see red .", "Answer: blue", "I see a colour . Answer: green", "red", "blue ."]
    found = [Example(f"v{i % 3}", f"q{i}", "which colour", a, "direct", 1.0 + i) for i, a in enumerate(answers)]
    return found, lambda part: (["which colour"] * len(part), [clips[int(e.video_id[1:])] for e in part])


def train(model, out, changes, told, note):
    from peft import get_peft_model

    lm = models.load(model, device="cpu")
    given = {"lr": 1e-2, "projector_lr": 1e-2, "lora_r": 2, "lora_dropout": 0.2, "track": "none", **changes}
    config = FinetuneConfig(batch_size=4, micro_batch_size=1, steps=12, **{"checkpoint_steps": 2, **given})
    torch.manual_seed(0)
    peft = get_peft_model(lm.model, lora_settings(lm, config))
    rows, features = examples(lm)
    finetune(lm, peft, rows, features, config, Path(out), seed=0, on_step=told, note=note)


def child(model, out, changes, note):
    """A process that trains; (its id, a pipe with a byte for each step it took)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    os.close(reading)
    code = 1
    try:
        train(model, out, changes, lambda *_: os.write(writing, b"."), note)
        code = 0
    finally:
        os._exit(code)


def run(model, out, changes, kills, draw, note):
    """Train to the end, with as many kills on the way as there is time for; their number."""
    killed = 0
    while True:
        pid, pipe = child(model, out, changes, note)
        steps, limit = 0, (draw.randint(1, 3) if killed else 3) if killed < kills else None
        while os.read(pipe, 1):
            steps += 1
            if steps == limit:
                time.sleep(draw.random() * 0.02)  # somewhere in the step behind, or while a checkpoint is written
                os.kill(pid, signal.SIGKILL)
                break
        os.close(pipe)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        elif os.WEXITSTATUS(status):
            raise RuntimeError(f"{out} ended with {os.WEXITSTATUS(status)}")
        else:
            return killed


def main(model, out, kills, seed, named):
    import peft  # noqa: F401 - as the next line, so that no child does it again

    models.load(model, device="cpu")
    draw = random.Random(seed)
    for name, changes in named.items():
        (out / name).mkdir()

        def note(text, name=name):
            print(f"{name}: {text}", flush=True)

        run(model, out / name / "calm", changes, 0, draw, note)
        note(f"killed {run(model, out / name / 'killed', changes, kills, draw, note)} times")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))
