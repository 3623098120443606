"""Everything that flows between stages: small frozen records that check themselves.

Records are what is stored (JSON lines); the two batches at the end are what stages hand on while the
data is on the device. Units are in the field names: `_s` seconds, `_px` pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vstar_fast.errors import DataError
from vstar_fast.labels.checks import LABEL_KINDS, check_from_zero, require_word

if TYPE_CHECKING:
    import torch

SPLITS: tuple[str, ...] = ("train", "dev", "test")
MODES: tuple[str, ...] = ("direct", "rationalized")
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Label:
    """One typed label of a video.

    `value` by kind: class/choice/answer `str`; number `float` (with `unit`); interval `(start_s, end_s)`
    relative to the start of the (trimmed) clip; sequence `tuple[str, ...]` in order of time.
    Raises DataError when the value does not fit the kind.
    """

    kind: str
    name: str
    value: Any
    set: str | None = None
    """Name of the closed label set the value (or each item of a sequence) comes from."""
    aliases: tuple[str, ...] = ()
    unit: str | None = None
    event: str | None = None
    """What an interval or a count is about, e.g. `jump`."""
    question: str | None = None
    """A question that came with the data (QA sets); used as it is."""
    abs_tolerance: float | None = None
    rel_tolerance: float | None = None

    def __post_init__(self) -> None:
        check = LABEL_KINDS.get(self.kind)
        if check is None:
            raise DataError(f"unknown label kind {self.kind!r}; known: {', '.join(sorted(LABEL_KINDS))}")
        require_word("label name", self.name)
        check(self)
        if isinstance(self.value, list):
            object.__setattr__(self, "value", tuple(self.value))
        if not isinstance(self.aliases, (tuple, list)):
            raise DataError(f"aliases of {self.value!r} must be a list of names, got {self.aliases!r}")
        for alias in self.aliases:
            require_word(f"alias of {self.value!r}", alias)
        object.__setattr__(self, "aliases", tuple(self.aliases))
        for name in ("abs_tolerance", "rel_tolerance"):
            check_from_zero(f"{name} of {self.value!r}", getattr(self, name))


@dataclass(frozen=True, slots=True)
class LabeledVideo:
    """A video file with its labels; `start_s`/`end_s` cut a window out of a longer file."""

    id: str
    path: str
    labels: tuple[Label, ...]
    split: str = "train"
    start_s: float | None = None
    end_s: float | None = None
    duration_s: float | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id or not isinstance(self.id, str):
            raise DataError(f"video id must be a non-empty string, got {self.id!r}")
        if self.split not in SPLITS:
            raise DataError(f"split of {self.id!r} is {self.split!r}; use one of {', '.join(SPLITS)}")
        if not self.labels:
            raise DataError(f"video {self.id!r} has no labels; a video needs at least one")
        object.__setattr__(self, "labels", tuple(self.labels))
        for name in ("start_s", "end_s", "duration_s"):
            check_from_zero(f"{name} of {self.id!r}", getattr(self, name))
        if self.end_s is not None and not (self.start_s or 0) < self.end_s:
            raise DataError(f"window of {self.id!r} needs 0 <= start_s < end_s, got {self.start_s}..{self.end_s}")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one video and the labels a right answer must contain.

    `id` is stable over runs. `hint` is the label in words: set only when the question is asked a second
    time for rationalization, and never seen by fine-tuning or evaluation.
    """

    id: str
    video_id: str
    text: str
    labels: tuple[Label, ...]
    template: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of one clip. `data` uint8 `[F, H, W, 3]` RGB; `times_s` presentation time of each frame.

    `height_px` and `width_px`: the upright size in the file, which `data` may have been scaled from.
    """

    video_id: str
    data: torch.Tensor
    times_s: tuple[float, ...]
    height_px: int
    width_px: int
    duration_s: float
    backend: str

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[-1] != 3 or self.data.shape[0] != len(self.times_s):
            raise DataError(
                f"frames of {self.video_id!r} must be [F, H, W, 3] with one time a frame, "
                f"got {tuple(self.data.shape)} and {len(self.times_s)} times"
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sampled answer. `token_ids` (with the tokenizer's hash) is what was sampled; `text` is for people.

    Parts of a run hold no text where the ids can be spelt; `judged.jsonl` does.
    """

    question_id: str
    video_id: str
    sample: int
    mode: str
    text: str
    token_ids: tuple[int, ...]
    logprob: float
    finish: str
    """`stop`: the model ended its turn; `length`: it ran out of its token budget; `stopped_early`: it could no
    longer hold its label, and only such answers were wanted."""
    seed: int
    tokenizer: str
    sampling: dict[str, Any]
    template: str

    @property
    def key(self) -> tuple[str, str, int]:
        """Identity within a cycle."""
        return (self.question_id, self.mode, self.sample)


@dataclass(frozen=True, slots=True)
class Span:
    """Where a matched value stands: `[start, end)` in characters, UTF-8 bytes and tokens (-1: unknown)."""

    char: tuple[int, int]
    byte: tuple[int, int]
    token: tuple[int, int] = (-1, -1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Does a candidate's answer contain every label of its question?

    `reason` is `ok` or the name of the first check that failed. `extracted` holds, per label, what was
    read out of the answer (None: nothing found), `spans` where it stood.
    """

    question_id: str
    mode: str
    sample: int
    passed: bool
    reason: str
    extracted: tuple[Any, ...] = ()
    spans: tuple[Span | None, ...] = ()
    scores: tuple[float, ...] = ()
    """Per label, in [0, 1]: 1/0 for exact kinds, IoU for intervals, matched share for sequences."""


@dataclass(frozen=True, slots=True)
class Example:
    """One supervised example: `question` (never with the hint) and the `answer` that was kept."""

    video_id: str
    question_id: str
    question: str
    answer: str
    source: str
    """`direct`, `rationalized`, `labels` (control), `instruction` (the user's own data), or FAILED: an answer that
    did not pass, to be made less likely."""
    weight: float = 1.0
    rejected: str = ""
    """An answer to the same question that did not pass, for training on preferences; empty where there is none."""
    history: tuple[tuple[str, str], ...] = ()
    """What was asked and answered before, in a conversation of several exchanges."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that was left out, and why: never dropped silently, always counted in the report.

    Text that is not UTF-8 (lone surrogates) is kept escaped (`caf\\udce9`): the record can always be written.
    """

    stage: str
    id: str
    reason: str
    detail: str = ""

    def __post_init__(self) -> None:
        for name in ("id", "detail"):
            text = getattr(self, name).encode(errors="backslashreplace").decode()
            object.__setattr__(self, name, text)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval and the number of clips behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(slots=True)
class FrameBatch:
    """Frames of several clips on the device: `data[i]` uint8 `[F_i, H, W, 3]`, row i -> `videos[i]`."""

    data: list[torch.Tensor]
    times_s: list[tuple[float, ...]]
    videos: list[LabeledVideo]


@dataclass(slots=True)
class CandidateBatch:
    """Sampled answers on the device, not detokenised.

    `token_ids` int64 `[B, T]` (padded), `lengths` int64 `[B]` (without the end token), `logprobs` fp32
    `[B]` (sum over the answer), `finished` bool `[B]`: the model ended its turn, `stopped` bool `[B]`: it was
    stopped early; row i -> `questions[i]`, `samples[i]`, `seeds[i]`.
    """

    token_ids: torch.Tensor
    lengths: torch.Tensor
    logprobs: torch.Tensor
    finished: torch.Tensor
    questions: list[Question]
    samples: list[int]
    seeds: list[int]
    stopped: torch.Tensor


def to_dict(record: Any) -> dict[str, Any]:
    """A record as plain JSON types."""
    return dataclasses.asdict(record)


def _label(row: dict[str, Any]) -> Label:
    return Label(**{**row, "aliases": tuple(row.get("aliases", ()))})


def video_from_dict(row: dict[str, Any]) -> LabeledVideo:
    """Inverse of `to_dict` for LabeledVideo."""
    return LabeledVideo(**{**row, "labels": tuple(_label(x) for x in row["labels"])})


def question_from_dict(row: dict[str, Any]) -> Question:
    """Inverse of `to_dict` for Question."""
    return Question(**{**row, "labels": tuple(_label(x) for x in row["labels"])})


def candidate_from_dict(row: dict[str, Any]) -> Candidate:
    """Inverse of `to_dict` for Candidate."""
    return Candidate(**{**row, "token_ids": tuple(row["token_ids"])})


def verdict_from_dict(row: dict[str, Any]) -> Verdict:
    """Inverse of `to_dict` for Verdict."""
    spans = tuple(None if s is None else Span(*(tuple(s[k]) for k in ("char", "byte", "token"))) for s in row["spans"])
    extracted = tuple(tuple(x) if isinstance(x, list) else x for x in row["extracted"])
    listed = {"extracted": extracted, "spans": spans, "scores": tuple(row["scores"])}
    return Verdict(**{**row, **listed})
