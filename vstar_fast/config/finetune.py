"""Settings of fine-tuning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vstar_fast.config.file import need, one_of
from vstar_fast.config.ranges import in_range

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Name of a tracker -> package that it needs."""
CHANGE_NO_WEIGHT = ("checkpoint_steps", "checkpoints_kept", "track", "split")
"""Settings that leave the trained weights as they are, to the last bit."""


def weighty(config: FinetuneConfig) -> dict[str, Any]:
    """The settings that trained weights depend on. `pack = "auto"` counts as true, which it is where both can be."""
    values = {name: value for name, value in asdict(config).items() if name not in CHANGE_NO_WEIGHT}
    if not config.half:
        del values["half"]  # adapters from before there was the setting are none of others
    return values | {"pack": config.pack is not False}


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning on what was kept; the paper: 1 epoch, batch 128, AdamW, cosine, 2e-5, warm-up 0.03, maybe in full."""

    objective: str = "sft"
    """`sft`: kept answers; `dpo`: kept answers against answers to the same question that did not pass; `kto`: kept
    answers, and answers to any question that did not pass, each alone."""
    dpo_beta: float = 0.1
    """How closely DPO holds the model to where it started: larger, closer."""
    kto_beta: float = 0.1
    """The same for KTO."""
    tune: str = "lora"
    """`lora`, or `full`: every layer of the language model (saved as an adapter that holds them whole).
    Token embeddings that are tied to the head stay as they are."""
    lora: str = "lora"
    """`lora`, `dora` or `rslora`."""
    lora_r: int = 16
    """Rank of the adapter's matrices."""
    lora_alpha: int = 32
    """Their product counts lora_alpha / lora_r times (`rslora`: lora_alpha / sqrt(lora_r))."""
    lora_dropout: float = 0.0
    """Share of a layer's inputs that its adapter does not see in a training step."""
    target_modules: str = "auto"
    """Comma-separated module names, or `auto` (all linear layers of the language model)."""
    projector: bool = True
    """Train the multimodal projector too (saved with the adapter)."""
    modules_to_save: str = ""
    """Comma-separated names of further modules to train and save whole, such as lm_head."""
    lr: float = 2e-4
    """Learning rate at its peak."""
    projector_lr: float = 2e-5
    """The same for the projector."""
    epochs: float = 2.0
    """Times that each example is seen."""
    steps: int = 0
    """Optimizer steps; 0: from `epochs`."""
    batch_size: int = 16
    """Examples an optimizer step."""
    micro_batch_size: int = 16
    """Examples at most in one forward and backward; changes no result."""
    micro_batch_tokens: int = 8192
    """Packed tokens at most in one forward and backward. An example that is longer alone is left out and counted."""
    cut_long: bool = False
    """Cut the answer of an example that is too long instead of leaving it out."""
    pack: bool | str = "auto"
    """true: what the examples of a video share is read once; false: row by row, slower, for models that cannot be
    packed; `auto`: packed where that gives the loss of rows, which is tried before the first step."""
    loss_per: str = "token"
    """`token`: mean over all answer tokens of a batch; `example`: mean over examples, however long their answers."""
    gradient_checkpointing: bool = False
    """Run each layer a second time in backward instead of keeping its activations: less memory, more time."""
    half: bool = False
    """Multiply in bf16 while training, too, where `model.dtype` comes to mixed: a third less time on such CPUs; the
    demo ended 5 points of accuracy lower with it, see docs/training.md."""
    split: bool = False
    """Under `torchrun`: split the frozen weights of the layers over the processes (FSDP2), where the base model
    leaves no room for training beside it. Slower. Changes no result."""
    weight_decay: float = 0.0
    """Of AdamW, decoupled."""
    warmup_ratio: float = 0.03
    """Share of the steps in which the learning rate rises to its peak."""
    schedule: str = "cosine"
    """How it falls behind that: `cosine` or `linear` to 0, or `constant`."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm where theirs is larger."""
    mix_ratio: float = 0.0
    """Original instruction examples per kept example (a conversation is one, with all its answers)."""
    balance: bool = False
    """Weight the kept examples so that every class of a label set counts the same, however often it was kept."""

    checkpoint_steps: int = 100
    """Steps between two checkpoints, from which a training that was stopped goes on; 0: none."""
    checkpoints_kept: int = 2
    """Checkpoints on disk at most; the oldest goes first."""
    track: str = "auto"
    """`auto` (TensorBoard where it is installed), `none`, or of tensorboard, wandb, mlflow and trackio some, with
    commas between."""

    def __post_init__(self) -> None:
        one_of("finetune.objective", self.objective, ("sft", "dpo", "kto"))
        one_of("finetune.tune", self.tune, ("lora", "full"))
        one_of("finetune.lora", self.lora, ("lora", "dora", "rslora"))
        one_of("finetune.loss_per", self.loss_per, ("token", "example"))
        one_of("finetune.schedule", self.schedule, ("cosine", "linear", "constant"))
        in_range("finetune", self)
        sizes = (self.batch_size, self.micro_batch_size)
        need(sizes[0] >= sizes[1], f"finetune needs batch_size >= micro_batch_size >= 1, got {sizes}")
        named = all(x.strip() for x in self.target_modules.split(","))
        need(named, f"finetune.target_modules = {self.target_modules!r} has an empty name; use auto or module names")
        alone = self.objective != "dpo" or self.mix_ratio == 0
        need(
            alone, f"finetune.objective = 'dpo' cannot mix instruction data in; set mix_ratio = 0, got {self.mix_ratio}"
        )
        several = self.objective != "kto" or self.batch_size > 1
        need(several, "finetune.objective = 'kto' compares the answers of a batch; set batch_size above 1")
        trackers = [x.strip() for x in self.track.split(",")]
        for name in [] if self.track in ("auto", "none") else trackers:
            one_of("finetune.track", name, ("auto", "none", *TRACKERS))
        need(self.pack in (True, False, "auto"), f"finetune.pack = {self.pack!r} is not one of auto, true, false")
