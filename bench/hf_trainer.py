"""What our training is measured against: rows by Hugging Face Trainer, or by TRL's SFTTrainer, on the same model."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from typing import Any

Collate = Callable[[list[int]], dict[str, Any]]
"""Numbers of examples -> a batch as the model's own forward takes it."""


def train(peft: Any, collate: Collate, count: int, config: Any, *, cpu: bool, trl: bool = False) -> dict[str, Any]:
    """`config.steps` steps over examples 0 to `count` - 1 in their order; loss and gradient norm of each step.

    LoRA's rate is `config.lr`, that of all else `config.projector_lr`, as in our own training.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = _sft_trainer if trl else _trainer
        trainer = made(peft, collate, count, config, _arguments(folder, config, cpu))
        trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"loss": [e["loss"] for e in logged], "grad_norm": [e["grad_norm"] for e in logged]}


def _arguments(folder: str, config: Any, cpu: bool) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": config.batch_size,
        "max_steps": config.steps,
        "lr_scheduler_type": config.schedule,
        "warmup_steps": int(config.warmup_ratio * config.steps),
        "max_grad_norm": config.max_grad_norm,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
        "use_cpu": cpu,
        "disable_tqdm": True,
    }


def _optimizer(peft: Any, config: Any) -> Any:
    import torch

    named = [(n, p) for n, p in peft.named_parameters() if p.requires_grad]
    lora, rest = ([p for n, p in named if ("lora_" in n) is wanted] for wanted in (True, False))
    groups = [{"params": lora, "lr": config.lr}, {"params": rest, "lr": config.projector_lr}]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _trainer(peft: Any, collate: Collate, count: int, config: Any, arguments: dict[str, Any]) -> Any:
    from transformers import Trainer, TrainingArguments

    return Trainer(
        model=peft,
        args=TrainingArguments(**arguments),
        train_dataset=[{"index": i} for i in range(count)],
        data_collator=lambda rows: collate([row["index"] for row in rows]),
        optimizers=(_optimizer(peft, config), None),
    )


def _sft_trainer(peft: Any, collate: Collate, count: int, config: Any, arguments: dict[str, Any]) -> Any:
    """TRL's trainer over batches that are ready: it takes a video model's rows in no other way than one by one."""
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from trl import SFTConfig, SFTTrainer

    prepared = {"dataset_kwargs": {"skip_prepare_dataset": True}, "bf16": False, "gradient_checkpointing": False}
    return SFTTrainer(
        model=peft,
        args=SFTConfig(**arguments, **prepared),
        train_dataset=Dataset(InMemoryTable.from_pydict({"index": list(range(count))}), fingerprint="rows"),
        data_collator=lambda rows: collate([row["index"] for row in rows]),
        optimizers=(_optimizer(peft, config), None),
    )


def has_trl() -> bool:
    """Whether TRL and the `datasets` it needs are installed."""
    return all(importlib.util.find_spec(name) for name in ("trl", "datasets"))


def trl_refusals(peft: Any, processor: Any) -> dict[str, str]:
    """What TRL's SFTTrainer says to the settings that would pack rows of a video model: setting -> its words."""
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from trl import SFTConfig, SFTTrainer

    said = {}
    row = {"images": [["a.png"]], "prompt": ["a"], "completion": ["b"]}
    rows = Dataset(InMemoryTable.from_pydict(row), fingerprint="row")
    for name in ("packing", "padding_free"):
        with tempfile.TemporaryDirectory() as folder:
            try:
                settings = SFTConfig(output_dir=folder, use_cpu=True, bf16=False, report_to=[], **{name: True})
                SFTTrainer(model=peft, args=settings, train_dataset=rows, processing_class=processor)
                said[name] = "taken"
            except (ValueError, TypeError, NotImplementedError) as error:
                said[name] = str(error).splitlines()[0]
    return said
