"""Settings: one frozen dataclass a stage, composed in `CycleConfig`, read from one TOML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vstar_fast.config import file
from vstar_fast.config.file import field_docs, merge, need, one_of
from vstar_fast.config.finetune import FinetuneConfig
from vstar_fast.config.frames import CacheConfig, FramesConfig
from vstar_fast.config.ranges import DEVICE, in_range
from vstar_fast.errors import ConfigError

__all__ = [
    "PAPER",
    "PROFILERS",
    "PROFILES",
    "RECIPES",
    "CacheConfig",
    "CycleConfig",
    "DataConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "FramesConfig",
    "GenerateConfig",
    "LoopConfig",
    "MatchConfig",
    "ModelConfig",
    "RationalizeConfig",
    "field_docs",
    "from_dict",
    "load",
    "merge",
    "to_dict",
    "to_toml",
]

RECIPES = ("fast", "paper")
PROFILES = ("strict", "paper", "paper-code")
SCORE_NORMS = ("sum", "mean", "pmi")
PROFILERS = ("off", "nvtx", "torch")


@dataclass(frozen=True)
class DataConfig:
    """Where the labelled videos are."""

    path: str = ""
    """A `manifest.jsonl`, a `.jsonl`/`.json`/`.csv` file, a `.txt` list, a folder with one sub-folder per class, or one
    with `train.csv`, `val.csv`, ..."""
    reader: str = "auto"
    """`auto`, `manifest`, `folder`, `csv`, `jsonl`, `json`, `list` (a path and its class a line) or `webdataset`."""
    extra: tuple[str, ...] = ()
    """Further data paths, read the same way; their videos join those of `path`."""
    root: str = ""
    """Folder that relative video paths start from; default: the folder of `path`. Paths may not leave it."""
    dev_fraction: float = 0.15
    """Share of videos put aside for `dev` where the data has none (by hash of seed and file)."""
    test_fraction: float = 0.15
    """Share of videos put aside for `test` where the data has none."""
    max_duration_s: float = 3600.0
    """Longer files are recorded as rejected (cut a window with start_s/end_s instead)."""
    questions_per_video: int = 0
    """0: one question for every label of a video; n: n of its labels, drawn by seed."""
    instructions: str = ""
    """Optional JSON file of original instruction data (LLaVA, ShareGPT or messages) mixed into fine-tuning."""
    columns: dict[str, str] = field(default_factory=dict)
    """CSV/JSONL column names: `video`, `label`, `split`, `start`, `end`, `id`, ..., where they differ."""
    class_names: str = ""
    """File with the names of classes that the data gives by number: `1 ApplyEyeMakeup` a line, or a name a line."""
    strict: bool = False
    """Stop at the first row or file that cannot be used, instead of recording it and going on."""
    questions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Own question templates by label kind, e.g. `class = ["Which sport is this?"]`."""

    def __post_init__(self) -> None:
        one_of("data.reader", self.reader, ("auto", "manifest", "folder", "csv", "jsonl", "json", "list", "webdataset"))
        in_range("data", self)
        shares = (self.dev_fraction, self.test_fraction)
        need(sum(shares) < 1, f"data.dev_fraction and data.test_fraction must sum to less than 1, got {shares}")


@dataclass(frozen=True)
class ModelConfig:
    """Which checkpoints are used, and how they are run."""

    base: str = ""
    """Model folder or hub id that generates answers in the first cycle (the paper's M0)."""
    init: str = ""
    """Checkpoint fine-tuning starts from (the paper: before instruction tuning); default: `base`."""
    dtype: str = "auto"
    """`auto` (bf16 on a GPU; on a CPU mixed where it has bf16 instructions, else fp32), `float32`, `mixed` (on a CPU:
    fp32, but for the products of linear layers where answers are drawn), `bfloat16` or `float16`."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    quantize: str = "none"
    """`4bit`: the language model's linear layers in NF4 through bitsandbytes, for training and answers; or `none`."""
    family: str = "auto"
    """Adapter in `vstar_fast.models`; `auto` goes by the config's model_type."""

    def __post_init__(self) -> None:
        one_of("model.dtype", self.dtype, ("auto", "float32", "mixed", "bfloat16", "float16"))
        one_of("model.quantize", self.quantize, ("none", "4bit"))
        known = DEVICE.fullmatch(self.device) is not None
        need(known, f"model.device = {self.device!r} is no device; use auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class GenerateConfig:
    """Sampling of answers (direct and rationalized)."""

    samples: int = 4
    """Candidates a question."""
    temperature: float = 0.8
    """0: greedy."""
    top_p: float = 1.0
    """Nucleus sampling: draw among the likeliest tokens that come to this probability together. 1: among all."""
    top_k: int = 0
    """Draw among so many likeliest tokens only; 0: among all."""
    max_new_tokens: int = 48
    """Tokens an answer may have, its end included; with `constrain` it never ends half-way through its label."""
    batch_size: int = 0
    """Answers drawn at once (on a CPU by each of several workers), fewer where memory ends; does not change any sample.
    0: 64 on a CPU, 256 on a GPU."""
    engine: str = "auto"
    """`packed`: what answers share is read once; `plain`: by the model's own forward, slower, for layers that cannot be
    packed; `auto`: packed where the model can be. For evaluation and label scores too; changes no answer."""
    reason: bool = True
    """Ask for step-by-step reasoning before `Answer:`. False: for the answer alone; nothing is rationalized then."""
    constrain: bool = True
    """Only let a label of its kind stand behind `Answer:` (in evaluation too). The reasoning stays free."""
    keep_rejected: bool = False
    """Draw answers that can no longer hold their label to their end, too (for preference pairs)."""
    propose: int = 0
    """n: label scores name the n likeliest labels of a question's closed set, and its candidates are shared out to
    them: candidate i ends in the label of rank i mod n. 0: a candidate chooses its label itself."""

    def __post_init__(self) -> None:
        one_of("generate.engine", self.engine, ("auto", "packed", "plain"))
        in_range("generate", self)
        need(
            self.constrain or not self.propose, "generate.propose holds the slot to a label; it needs constrain = true"
        )


@dataclass(frozen=True)
class RationalizeConfig:
    """Second try of rejected questions with the label as a hint."""

    enabled: bool = True
    """False: no second try (ablation)."""
    samples: int = 1
    """Candidates a question."""
    max_share: float = 1.0
    """Cap on rationalized examples, as a multiple of the direct ones kept in the cycle (1.0: as many)."""
    leak_guard: bool = True
    """Refuse rationalizations that speak of the hint, or name the label before the reasoning has begun."""

    def __post_init__(self) -> None:
        in_range("rationalize", self)


@dataclass(frozen=True)
class MatchConfig:
    """How answers are judged."""

    profile: str = "strict"
    """`strict` (explicit extraction after `Answer:`), `paper` (5 % margin, anywhere) or `paper-code`."""
    rel_tolerance: float = 0.05
    """Numbers: relative tolerance where the label names none (the paper's margin)."""
    iou: float = 0.5
    """Intervals: least IoU that passes."""
    min_correct: float = 0.0
    """Keep a question's answers only if at least this fraction of its samples passed (guards against luck)."""
    keep: str = "first"
    """`first`: one kept answer a question; `best`: its likeliest (mean log-probability); `all`: every distinct one."""

    def __post_init__(self) -> None:
        one_of("match.profile", self.profile, PROFILES)
        one_of("match.keep", self.keep, ("first", "best", "all"))
        in_range("match", self)


@dataclass(frozen=True)
class EvaluateConfig:
    """Greedy answers on held-out videos."""

    max_new_tokens: int = 48
    """As `generate.max_new_tokens`."""
    batch_size: int = 0
    """As `generate.batch_size`."""
    bootstrap: int = 2000
    """Resamples behind every 95 % interval (clustered by clip)."""
    score_labels: bool = False
    """Also ask how likely the model holds each label of a closed set: top-1, top-5 and calibration, as `scored`."""
    score_norm: str = "sum"
    """`sum`: probability of a label's name and aliases; `mean`: of its likeliest one, a token; `pmi`: `sum` against
    that behind a blank video."""

    def __post_init__(self) -> None:
        in_range("evaluate", self)
        one_of("evaluate.score_norm", self.score_norm, SCORE_NORMS)


@dataclass(frozen=True)
class LoopConfig:
    """How cycles follow one another."""

    max_cycles: int = 3
    """Cycles at most."""
    patience: int = 1
    """Stop after this many cycles without a gain on `dev` beyond its interval."""
    restart: str = "init"
    """`init`: every cycle fine-tunes from the initial checkpoint (paper); `continue`: from the last cycle's."""
    continue_rate: float = 0.3
    """Share of the learning rates that a cycle uses which continues: at full rate it undoes the cycle before."""
    rationalize_last: bool = False
    """Use rationalizations for the final model too (the paper: direct answers only)."""
    filter: bool = True
    """False: keep every answer (ablation)."""
    direct: bool = True
    """False: rationalization only (ablation)."""

    def __post_init__(self) -> None:
        one_of("loop.restart", self.restart, ("init", "continue"))
        in_range("loop", self)


@dataclass(frozen=True)
class CycleConfig:
    """Everything a run depends on; the run folder keeps the resolved TOML."""

    recipe: str = "fast"
    """`fast`: the defaults; `paper`: those of Video-STaR, see `PAPER`."""
    seed: int = 0
    """Random seed of everything: splits, wording of questions, answers, training."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    frames: FramesConfig = field(default_factory=FramesConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    rationalize: RationalizeConfig = field(default_factory=RationalizeConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        one_of("recipe", self.recipe, RECIPES)
        in_range("", self)


# What `recipe = "paper"` sets (arXiv 2407.06189v1, 2.2, 4.1 and the released code); a TOML key still overrides it.
PAPER: dict[str, Any] = {
    "generate": {"samples": 1, "temperature": 0.2, "max_new_tokens": 1024},
    "rationalize": {"samples": 1, "max_share": float("inf")},
    "match": {"profile": "paper"},
    "finetune": {
        "lr": 2e-5,
        "projector_lr": 2e-5,
        "epochs": 1.0,
        "batch_size": 128,
        "warmup_ratio": 0.03,
        "mix_ratio": 1.0,
    },
    "evaluate": {"max_new_tokens": 1024},
    "loop": {"restart": "init", "rationalize_last": False},
}


def from_dict(values: dict[str, Any]) -> CycleConfig:
    """Settings from nested plain values; unknown keys raise ConfigError with the nearest right one."""
    merged = merge(PAPER if values.get("recipe") == "paper" else {}, values)
    return file.build(CycleConfig, merged, "")


def load(path: str | Path, overrides: dict[str, Any] | None = None) -> CycleConfig:
    """Settings from a TOML file, with `overrides` (nested like the file) on top."""
    values = merge(file.read(Path(path)), overrides or {})
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{error} (in {path}{' or the options given' if overrides else ''})") from None


def to_dict(config: CycleConfig) -> dict[str, Any]:
    """Settings as nested plain values."""
    return dataclasses.asdict(config)


def to_toml(config: CycleConfig, *, comments: bool = False) -> str:
    """The settings as TOML; with `comments`, each field's documentation above it and defaults commented out."""
    return file.write(config, comments=comments)
