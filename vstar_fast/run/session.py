"""A run at work: the stages, joined to the run folder so that nothing is done twice.

Each method is one stage over whole lists. What it needs is keyed by content, read when it stands in the
run folder, else computed and stored.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vstar_fast import config as settings
from vstar_fast import evaluate, match, questions, readers
from vstar_fast.config import CycleConfig
from vstar_fast.config import file as config_file
from vstar_fast.distributed import Ranks
from vstar_fast.errors import ConfigError, DataError
from vstar_fast.files import content_key, read_json, write_json, write_jsonl, write_text
from vstar_fast.generate import Sampling
from vstar_fast.match.ids import with_text
from vstar_fast.models.base_model import weights_key
from vstar_fast.profiling import Profiler
from vstar_fast.progress import Progress
from vstar_fast.records import (
    Candidate,
    Estimate,
    Question,
    Verdict,
    to_dict,
)
from vstar_fast.run.answers import Answers, How
from vstar_fast.run.features import clip_key_of
from vstar_fast.run.folder import RunFolder
from vstar_fast.run.ledger import Ledger
from vstar_fast.run.runtime import Runtime
from vstar_fast.run.token_store import TokenStore
from vstar_fast.run.training import Training

Judged = list[tuple[Candidate, Verdict]]


class Session:
    """Data, model and run folder of one run. `number` counts cycles from 0; -1 is the base model."""

    def __init__(self, config: CycleConfig, folder: RunFolder, profiler: Profiler, progress: Progress) -> None:
        self.config = config
        self.folder = folder
        self.profiler = profiler
        self.progress = progress
        self.ranks = Ranks()
        self.runtime = Runtime(config, folder.root, profiler, progress)
        self.tokens = TokenStore(folder.root / "tokens")
        self.answers = Answers(self)
        self.training = Training(self)
        self.ledger = Ledger(folder.root, profiler, self.runtime.frame_counts)
        with profiler.stage("read"):
            videos, rejected, self.label_sets = readers.read(config.data, seed=config.seed)
        folder.reject(rejected)
        if rejected and config.data.strict:
            first = rejected[0]
            raise DataError(f"{first.reason}: {first.detail} (data.strict: no bad row is passed over)")
        self.videos = {v.id: v for v in videos}
        self._tell_changes(folder.root / "config.toml")
        write_text(folder.root / "config.toml", settings.to_toml(config))
        write_jsonl(folder.root / "videos.jsonl", [to_dict(v) for v in videos])
        asked = questions.ask(videos, config, label_sets=self.label_sets)
        self.questions = {s: [q for q in asked if self.videos[q.video_id].split == s] for s in ("train", "dev", "test")}
        write_jsonl(folder.root / "questions.jsonl", [to_dict(q) for q in asked])
        if not self.questions["train"]:
            raise DataError(
                f"no training question could be asked of {config.data.path}; see {folder.root}/rejected.jsonl"
            )
        self.training.instruction_examples(0)  # what is wrong with the file is known before the run takes its time
        self._warn()

    def _tell_changes(self, before: Path) -> None:
        """Say which settings are not those that the folder's last process had: what depends on them is done anew."""
        if not before.is_file():
            return
        now = tomllib.loads(settings.to_toml(self.config))
        with contextlib.suppress(ConfigError):  # of a file that is damaged, and is written anew now
            for text in config_file.changes(config_file.read(before), now):
                self.progress.note(f"changed since the last start, {text}")

    def _warn(self) -> None:
        """Say what the run will not do, before it takes its time."""
        if not self.questions["dev"]:
            self.progress.note("no dev videos: the stop rule cannot see a plateau, loop.max_cycles ends the run")
        if not self.questions["test"]:
            self.progress.note("no test videos: no accuracy will be reported")
        if self.config.recipe == "paper" and not self.config.data.instructions:
            self.progress.note("recipe paper without data.instructions: no original instruction data is mixed in")
        if self.config.recipe == "paper" and not self.config.model.init:
            self.progress.note("recipe paper without model.init: fine-tuning starts from model.base")

    @cached_property
    def clip_keys(self) -> dict[str, str | None]:
        """Content key of each video by its id; None where the file cannot be opened."""
        return {v.id: clip_key_of(v) for v in self.videos.values()}

    @cached_property
    def model_keys(self) -> dict[str, str]:
        return {p: weights_key(p) for p in {self.config.model.base, self.runtime.init_path}}

    @cached_property
    def seen_through(self) -> tuple[Any, ...]:
        """Settings between a file and what the model makes of it."""
        c = self.config
        kept = (c.model.quantize,) if c.model.quantize != "none" else ()
        return c.frames.pixels(), c.data.max_duration_s, self._dtype(), c.model.device, *kept

    def _dtype(self) -> str:
        """`model.dtype`; of `auto`, which goes by the processor, `mixed` where it is that."""
        from vstar_fast.models.loading import pick_device, pick_dtype

        m = self.config.model
        if m.dtype != "auto" or m.device not in ("auto", "cpu"):
            return m.dtype
        return "mixed" if pick_dtype("auto", pick_device(m.device))[1] else "auto"

    def teacher_key(self, adapter: Path | None) -> str:
        if adapter is None:
            return self.model_keys[self.config.model.base]
        return content_key(self.model_keys[self.runtime.init_path], read_json(adapter / "key.json"))

    def answer(
        self,
        asked: Sequence[Question],
        adapter: Path | None,
        sampling: Sampling,
        where: Path,
        *,
        mode: str = "direct",
        stage: str = "generate",
        reason: bool = True,
        batch_size: int | None = None,
    ) -> list[Candidate]:
        """Answers to questions by the base model (`adapter` None) or a trained one, part by part."""
        how = How(adapter, sampling, mode, stage, reason)
        rows = self.config.generate.batch_size if batch_size is None else batch_size
        found = self.answers.draw(asked, how, where, rows or None, self.teacher_key(adapter))
        self.ledger.write()
        return found

    def judge(self, candidates: list[Candidate], asked: Sequence[Question], where: Path | None) -> Judged:
        """Verdicts on candidates, in their order; kept beside them for the report."""
        tokens = self.tokens.of(candidates)
        with self.profiler.stage("match"):
            verdicts = match.verify(
                candidates,
                asked,
                self.config.match,
                label_sets=self.label_sets,
                rationalize=self.config.rationalize,
                tokens=tokens,
            )
            self.profiler.count("answers", len(candidates))
        judged = [(with_text(c, tokens), v) for c, v in zip(candidates, verdicts, strict=True)]
        if where is not None:
            rows = [{"candidate": to_dict(c), "verdict": to_dict(v)} for c, v in judged]
            write_jsonl(where / "judged.jsonl", rows)
        return judged

    def sampling(self, samples: int) -> Sampling:
        """Sampling settings of the run for so many candidates."""
        g = self.config.generate
        return Sampling(samples, g.temperature, g.top_p, g.top_k, g.max_new_tokens)

    def measure(
        self, adapter: Path | None, where: Path, *, split: str, reason: bool = True
    ) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """Greedy answers on a split: (metrics, 1/0 per answer of the primary kind by clip)."""
        asked = self.questions[split]
        e = self.config.evaluate
        greedy = Sampling(1, 0.0, 1.0, 0, e.max_new_tokens)
        answers = self.answer(
            asked, adapter, greedy, where / split, stage="evaluate", reason=reason, batch_size=e.batch_size
        )
        judged = self.judge(answers, asked, where / split)
        by_id = {q.id: q for q in asked}
        primary = [v for _, v in judged if by_id[v.question_id].labels[0].kind == self.primary]
        clips = evaluate.by_clip(primary, by_id)
        estimate = evaluate.estimate(clips, bootstrap=e.bootstrap, seed=self.config.seed)
        found = {
            "accuracy": to_dict(estimate),
            "kinds": evaluate.metrics([v for _, v in judged], by_id),
            "reasoned": evaluate.reasoned([c for c, _ in judged]),
        }
        if e.score_labels:
            found["scored"] = self.answers.scored(asked, adapter, where / split, self.teacher_key(adapter))
            self.ledger.write()
        write_json(where / f"{split}.json", found)
        write_json(where / f"{split}-clips.json", clips)
        return found, clips

    @cached_property
    def primary(self) -> str:
        """The label kind that accuracy is reported on: `class` where there is one, else the commonest."""
        kinds = [q.labels[0].kind for q in self.questions["train"]]
        return "class" if "class" in kinds else max(sorted(set(kinds)), key=kinds.count)


def estimate_from(found: dict[str, Any]) -> Estimate:
    """The accuracy of stored metrics."""
    return Estimate(**found["accuracy"])
