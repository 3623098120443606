"""DPO and KTO of TRL on a tiny text model: `python tests/trl_numbers.py` writes `trl_numbers.json` beside it.

It needs trl and datasets. Weights are written by a formula, so that no random generator stands between two machines.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import torch

from vstar_fast import torchvision_compat

torchvision_compat.ensure()

import tiny  # noqa: E402
from vstar_fast import models  # noqa: E402
from vstar_fast.models import placeholder  # noqa: E402

NUMBERS = Path(__file__).with_suffix(".json")
PAIRS = [  # question, kept answer, failed answer
    ("which colour", "I see red .", "Answer: blue"),
    ("a colour", "Answer: green", "see see a"),
    ("see a red", "I see a colour . Answer: green", "green"),
    ("I see", "red", "blue . blue"),
]
SINGLE = [  # question, answer, wanted
    ("which colour", "I see red .", True),
    ("a colour", "see see a", False),
    ("see a red", "I see a colour . Answer: green", True),
    ("I see", "blue . blue", False),
    ("red", "Answer: red", True),
]
BETA = 0.7


def load(folder):
    """The tiny model, its text stack and head with weights by formula."""
    lm = models.load(str(tiny.write_model(folder)), device="cpu")
    for n, p in enumerate([*lm.text_model.parameters(), *lm.model.get_output_embeddings().parameters()]):
        fill(p, n)
    return lm


def fill(p, n):
    """Matrices of either sign, vectors (norms) around 1; no two alike."""
    waves = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (0.7 + 0.1 * n) + n)
    with torch.no_grad():
        p.copy_((0.4 * waves if p.ndim > 1 else 1 + 0.1 * waves).view_as(p))


def set_adapter(peft):
    """LoRA weights by formula, the same for the text stack alone and inside the video model."""
    named = sorted((n.split("layers.")[-1], p) for n, p in peft.named_parameters() if "lora_" in n)
    for n, (_, p) in enumerate(named):
        fill(p, n)


def grad_norm(peft):
    """Norm over the LoRA weights."""
    return math.sqrt(sum(float(p.grad.double().square().sum()) for n, p in peft.named_parameters() if "lora_" in n))


def _hash_without_pickling():
    """datasets names its cached files by a pickle of the table, which pyarrow's newest types refuse."""
    import uuid

    from datasets.fingerprint import Hasher

    Hasher.hash = classmethod(lambda cls, value: uuid.uuid4().hex)
    Hasher.update = lambda self, value: self.m.update(uuid.uuid4().bytes)


def of_trl(kind, lm, folder):
    """(loss, gradient norm) of one batch with TRL's trainer."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import LlamaForCausalLM

    _hash_without_pickling()
    torch.manual_seed(0)
    model = LlamaForCausalLM(lm.model.config.text_config)
    model.model.load_state_dict(lm.text_model.state_dict())
    model.lm_head.load_state_dict(lm.model.get_output_embeddings().state_dict())
    prompts = [placeholder.rendering(lm.processor, row[0], video=False) for row in (PAIRS if kind == "dpo" else SINGLE)]
    if kind == "dpo":
        rows = [
            {"prompt": p, "chosen": f" {a}", "rejected": f" {b}"} for p, (_, a, b) in zip(prompts, PAIRS, strict=True)
        ]
        made, settings = trl.DPOTrainer, trl.DPOConfig
    else:
        rows = [{"prompt": p, "completion": f" {a}", "label": x} for p, (_, a, x) in zip(prompts, SINGLE, strict=True)]
        made, settings = trl.KTOTrainer, trl.KTOConfig
    arguments = settings(
        output_dir=str(folder),
        beta=BETA,
        per_device_train_batch_size=len(rows),
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
    )
    adapter = LoraConfig(r=2, lora_alpha=4, target_modules=r".*layers\..*(_proj)")
    trainer = made(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=lm.tokenizer,
        peft_config=adapter,
    )
    set_adapter(trainer.model)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    return {"loss": loss.item(), "grad_norm": grad_norm(trainer.model)}


def all_of_trl():
    """What TRL gives for both objectives."""
    with tempfile.TemporaryDirectory() as folder:
        lm = load(Path(folder) / "model")
        return {kind: of_trl(kind, lm, folder) for kind in ("dpo", "kto")}


if __name__ == "__main__":
    import trl

    found = {"trl": trl.__version__, **all_of_trl()}
    NUMBERS.write_text(json.dumps(found, indent=1) + "\n")
    json.dump(found, sys.stdout)
