"""What goes into the engine and comes out: `Settings`, `Request`, `Answer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from vstar_fast.errors import ConfigError, DataError
from vstar_fast.kernels.sample.settings import check_settings

if TYPE_CHECKING:
    import torch

    from vstar_fast.kernels.constrain import Grammar
    from vstar_fast.models.video_lm import Features


SEEDS = range(-(1 << 63), 1 << 63)
"""Seeds of random streams: int64."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How one answer is drawn; temperature 0 is greedy. Every request may have its own.

    Raises ConfigError for a value that no draw takes.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        kinds = {"temperature": Real, "top_p": Real, "top_k": Integral, "max_new_tokens": Integral}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ConfigError(f"{name} is {value!r}; give a {'whole ' * (kind is Integral)}number")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; an answer takes at least 1")
        check_settings(self.temperature, self.top_p, self.top_k, ConfigError)


@dataclass(slots=True, eq=False)
class Request:
    """One question about one video: `len(seeds)` answers are drawn, each from its own random stream.

    `head`, `tail` int64 [n]: the prompt's tokens before and after the video. `features`: the video, or None for text
    alone; requests with the same object share its tokens. `settings`: how answers are drawn; `grammar`: what they may
    be; both for all of them, or a list of one an answer. `gold`: the answers that are wanted; one that can no longer
    become such an answer is stopped. It never reaches the prompt.

    Raises ConfigError for a list that is not as long as `seeds`, for settings that are none and for a seed that is no
    int64, DataError for ids that are not int64 [n] or below 0 and for no text behind no video. Of ids on a GPU only the
    shape is looked at: their values would have to be waited for.
    """

    head: torch.Tensor
    tail: torch.Tensor
    features: Features | None
    seeds: Sequence[int]
    settings: Settings | Sequence[Settings] = field(default_factory=Settings)
    grammar: Grammar | Sequence[Grammar | None] | None = None
    gold: Grammar | None = None
    tag: Any = None
    """Anything of the caller's."""

    def __post_init__(self) -> None:
        _check_ids("head", self.head)
        _check_ids("tail", self.tail)
        if not len(self.tail) and self.features is None:
            raise DataError("tail has no token and there is no video; a question is at least 1 token behind the head")
        _check_seeds(self.seeds)
        for settings in self.settings if isinstance(self.settings, (list, tuple)) else [self.settings]:
            if not isinstance(settings, Settings):
                raise ConfigError(f"settings are {settings!r:.80}; give Settings, or a list with one for each answer")
        for name in ("settings", "grammar"):
            given = getattr(self, name)
            if isinstance(given, (list, tuple)) and len(given) != len(self.seeds):
                raise ConfigError(f"there are {len(given)} {name} for {len(self.seeds)} answers; give one an answer")

    def settings_of(self, sample: int) -> Settings:
        """How an answer is drawn."""
        return self.settings if isinstance(self.settings, Settings) else self.settings[sample]

    def grammar_of(self, sample: int) -> Grammar | None:
        """What an answer may be."""
        return self.grammar[sample] if isinstance(self.grammar, (list, tuple)) else self.grammar  # type: ignore[return-value]


def _check_ids(name: str, ids: torch.Tensor) -> None:
    kind = str(ids.dtype).removeprefix("torch.") if hasattr(ids, "dim") else type(ids).__name__
    if kind != "int64" or ids.dim() != 1:
        shape = f" {list(ids.shape)}" if hasattr(ids, "shape") else ""
        raise DataError(f"{name} is {kind}{shape}; the ids of a prompt are a torch tensor, int64 [n]")
    if ids.device.type == "cpu" and len(ids) and int(ids.min()) < 0:
        at = int(ids.argmin())
        raise DataError(f"{name} has id {int(ids[at])} at place {at}; token ids count from 0, so leave out the padding")


def _check_seeds(seeds: Sequence[int]) -> None:
    if not hasattr(seeds, "__len__"):  # an iterator would be at its end behind this check
        raise ConfigError(f"seeds are {type(seeds).__name__}; give a list with one for each answer")
    ends = [*seeds[:1], *seeds[-1:]] if isinstance(seeds, range) else seeds
    for seed in ends:
        if not isinstance(seed, Integral) or int(seed) not in SEEDS:
            raise ConfigError(f"seed {seed!r} is no int64; use a whole number from -2**63 to 2**63 - 1")


@dataclass(slots=True)
class Answer:
    """One drawn answer. `token_ids` with the end-of-turn token, when there is one."""

    sample: int
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    """Sum over the tokens, the end-of-turn token too; among the legal ones where a grammar holds."""
    finish: str = "length"
    """`stop`: the model ended its turn; `length`: out of tokens; `stopped_early`: it could not become `gold`."""

    @property
    def words(self) -> list[int]:
        """The tokens without the end of the turn."""
        return self.token_ids[:-1] if self.finish == "stop" else self.token_ids


@dataclass(slots=True)
class Counts:
    """What the engine did since it was made.

    Seconds are CPU seconds of this process; of several workers at once, those of each one's own thread, without the
    threads that share its products.
    """

    answers: int = 0
    tokens: int = 0
    prefilled: int = 0
    steps: int = 0
    forced: int = 0
    """Tokens that the grammar left no choice about, and that took no step of their own."""
    stopped_early: int = 0
    tokens_saved: int = 0
    """Fewest tokens that the answers stopped early would still have taken."""
    halved: int = 0
    """Times the batch was halved because memory ran out."""
    regrown: int = 0
    """Times it was doubled again, after many steps that memory sufficed for."""
    seconds: dict[str, float] = field(default_factory=dict)
