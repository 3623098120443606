"""A run at work: the stages, joined to the run folder so that nothing is done twice.

Each method is one stage over whole lists. What it needs is keyed by content, read when it stands in the
run folder, else computed and stored.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from vstar_fast import config as settings
from vstar_fast import evaluate, instructions, match, questions, readers
from vstar_fast.answers import Answers, How
from vstar_fast.config import CycleConfig
from vstar_fast.errors import DataError, NothingKept
from vstar_fast.features import clip_key, weights_key
from vstar_fast.finetune import finetune, lora_settings
from vstar_fast.frames import Unusable
from vstar_fast.generate import Sampling
from vstar_fast.match.ids import with_text
from vstar_fast.models.video_lm import Features
from vstar_fast.profiling import Profiler
from vstar_fast.progress import Progress
from vstar_fast.records import (
    Candidate,
    Estimate,
    Example,
    LabeledVideo,
    Question,
    Rejected,
    Verdict,
    to_dict,
)
from vstar_fast.runfolder import RunFolder, content_key, read_json, read_jsonl, write_json, write_jsonl, write_text
from vstar_fast.runtime import Runtime, stream_seed
from vstar_fast.token_store import TokenStore

Judged = list[tuple[Candidate, Verdict]]
LEFT_OUT = "left_out.jsonl"
"""In an adapter's folder: the examples and files that its training could not use."""


class Session:
    """Data, model and run folder of one run. `number` counts cycles from 0; -1 is the base model."""

    def __init__(self, config: CycleConfig, folder: RunFolder, profiler: Profiler, progress: Progress) -> None:
        self.config = config
        self.folder = folder
        self.profiler = profiler
        self.progress = progress
        self.runtime = Runtime(config, folder.root, profiler, progress)
        self.tokens = TokenStore(folder.root / "tokens")
        self.answers = Answers(self)
        with profiler.stage("read"):
            videos, rejected, self.label_sets = readers.read(config.data, seed=config.seed)
        folder.reject(rejected)
        if rejected and config.data.strict:
            first = rejected[0]
            raise DataError(f"{first.reason}: {first.detail} (data.strict: no bad row is passed over)")
        self.videos = {v.id: v for v in videos}
        write_text(folder.root / "config.toml", settings.to_toml(config))
        write_jsonl(folder.root / "videos.jsonl", [to_dict(v) for v in videos])
        asked = questions.ask(videos, config, label_sets=self.label_sets)
        self.questions = {s: [q for q in asked if self.videos[q.video_id].split == s] for s in ("train", "dev", "test")}
        write_jsonl(folder.root / "questions.jsonl", [to_dict(q) for q in asked])
        if not self.questions["train"]:
            raise DataError(
                f"no training question could be asked of {config.data.path}; see {folder.root}/rejected.jsonl"
            )
        self.instruction_examples(0)  # what is wrong with the file is known before the run takes its time
        self._warn()

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

    # -- keys ----------------------------------------------------------------------------------

    @cached_property
    def clip_keys(self) -> dict[str, str | None]:
        """Content key of each video by its id; None where the file cannot be opened."""
        return {v.id: _clip_key(v) for v in self.videos.values()}

    @cached_property
    def _model_keys(self) -> dict[str, str]:
        return {p: weights_key(p) for p in {self.config.model.base, self.runtime.init_path}}

    @cached_property
    def seen_through(self) -> tuple[Any, ...]:
        """Settings between a file and what the model makes of it."""
        c = self.config
        return c.frames.pixels(), c.data.max_duration_s, c.model.dtype, c.model.device

    def _teacher_key(self, adapter: Path | None) -> str:
        if adapter is None:
            return self._model_keys[self.config.model.base]
        return content_key(self._model_keys[self.runtime.init_path], read_json(adapter / "key.json"))

    # -- generate ------------------------------------------------------------------------------

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
        rows = batch_size or self.config.generate.batch_size
        return self.answers.draw(asked, how, where, rows, self._teacher_key(adapter))

    # -- match ---------------------------------------------------------------------------------

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

    # -- finetune ------------------------------------------------------------------------------

    def train(
        self,
        examples: Sequence[Example],
        out: Path,
        *,
        start: Path | None = None,
        steps: int = 0,
        reason: bool = True,
        texts: dict[str, str] | None = None,
        objective: str = "",
    ) -> Path:
        """Fine-tune the initial checkpoint (or adapter `start`) on examples; returns the adapter folder."""
        c = self.config
        if not examples:
            raise NothingKept(f"no answer was kept for {out.parent}; the report lists why each was rejected")
        rate = 1.0 if start is None else c.loop.continue_rate
        rates = {"lr": rate * c.finetune.lr, "projector_lr": rate * c.finetune.projector_lr}
        tuning = settings.replace(c.finetune, steps=steps or c.finetune.steps, **rates)
        tuning = settings.replace(tuning, objective=objective or tuning.objective)
        origin = self._teacher_key(start) if start else self._model_keys[self.runtime.init_path]
        clips = [self._clip_of(e) for e in examples]
        rows_key = [to_dict(e) for e in examples]
        key = content_key(rows_key, clips, asdict(tuning), origin, self.seen_through, c.seed, reason)
        if (out / "key.json").is_file() and read_json(out / "key.json") == key:
            self.folder.reject(_left_out(out))
            return out
        temporary = out.with_name(f".{out.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        seed = stream_seed(c.seed, "finetune", key)
        lm, peft = self.runtime.trainable(lambda m: lora_settings(m, tuning), start, seed)
        features = self.runtime.features(self.runtime.init_path, self._videos_of(examples))
        unread = [f for i in sorted(_of_instructions(examples)) if isinstance(f := features[i], Rejected)]
        gone = {f.id for f in unread}
        examples = [e for e in examples if e.video_id not in gone]
        prompts = self._prompts(reason) | (texts or {})

        def rows(part: Sequence[Example]) -> tuple[list[str], list[Features | None]]:
            shown = [self._features_of(features, e) if e.video_id else None for e in part]
            return [prompts[e.question_id] for e in part], shown

        bar = self.progress.task(f"{out.parent.relative_to(self.folder.root)} finetune", 0)
        with self.profiler.stage("finetune"):
            log = finetune(lm, peft, examples, rows, tuning, temporary, seed=seed, on_step=bar.step)
            self.profiler.count("examples", tuning.batch_size * log["steps"])
            self.profiler.count("tokens", log["packed_tokens"])
        bar.close()
        unused = [Rejected("finetune", row["question_id"], row["reason"], row["detail"]) for row in log["left_out"]]
        write_jsonl(temporary / LEFT_OUT, [to_dict(row) for row in unread + unused])
        self.folder.reject(unread + unused)
        write_json(temporary / "key.json", key)
        shutil.rmtree(out, ignore_errors=True)
        temporary.rename(out)
        return out

    def _prompts(self, reason: bool) -> dict[str, str]:
        return {q.id: questions.prompt_text(q, reason=reason) for split in self.questions.values() for q in split}

    def _videos_of(self, examples: Sequence[Example]) -> list[LabeledVideo]:
        own = _of_instructions(examples)
        made = [instructions.video(i) for i in sorted(own)]
        return made + [self.videos[i] for i in sorted({e.video_id for e in examples if e.video_id} - own)]

    def _clip_of(self, example: Example) -> str | None:
        if not example.video_id or example.source != "instruction":
            return self.clip_keys.get(example.video_id)
        return _clip_key(instructions.video(example.video_id))

    @staticmethod
    def _features_of(features: dict[str, Features | Rejected], example: Example) -> Features:
        found = features[example.video_id]
        if isinstance(found, Rejected):
            raise DataError(
                f"video {example.video_id!r} of a kept example can no longer be read: {found.reason} {found.detail}"
            )
        return found

    # -- evaluate ------------------------------------------------------------------------------

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
            found["scored"] = self.answers.scored(asked, adapter, where / split, self._teacher_key(adapter))
        write_json(where / f"{split}.json", found)
        write_json(where / f"{split}-clips.json", clips)
        return found, clips

    @cached_property
    def primary(self) -> str:
        """The label kind that accuracy is reported on: `class` where there is one, else the commonest."""
        kinds = [q.labels[0].kind for q in self.questions["train"]]
        return "class" if "class" in kinds else max(sorted(set(kinds)), key=kinds.count)

    def instruction_examples(self, kept: int) -> tuple[list[Example], dict[str, str]]:
        """The user's original instruction data to mix in with so many kept examples, and its prompts."""
        path, ratio = self.config.data.instructions, self.config.finetune.mix_ratio
        if not path or ratio <= 0:
            return [], {}
        mixed = instructions.read(path, round(ratio * kept), self.config.seed)
        return mixed, {e.question_id: e.question for e in mixed}


def _of_instructions(examples: Sequence[Example]) -> set[str]:
    """Videos and images of instruction examples; one that cannot be read leaves its examples out."""
    return {e.video_id for e in examples if e.video_id and e.source == "instruction"}


def _left_out(adapter: Path) -> list[Rejected]:
    """What a finished training could not use, to be counted again by a run that goes on."""
    path = adapter / LEFT_OUT
    return [Rejected(**row) for row in read_jsonl(path)] if path.is_file() else []


def _clip_key(video: LabeledVideo) -> str | None:
    """None for a file that cannot be opened; reading its frames says why."""
    try:
        return clip_key(video)
    except (OSError, Unusable):
        return None


def estimate_from(found: dict[str, Any]) -> Estimate:
    """The accuracy of stored metrics."""
    return Estimate(**found["accuracy"])
