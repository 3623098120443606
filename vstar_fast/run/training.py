"""Fine-tuning of a run: examples with their videos and prompts, an adapter by content key, what could not be used."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstar_fast import questions
from vstar_fast.config.finetune import FinetuneConfig, weighty
from vstar_fast.errors import DataError, NothingKept, RunError
from vstar_fast.files import appears, content_key, read_json, read_jsonl, write_json, write_jsonl
from vstar_fast.finetune import Places, finetune, lora_settings
from vstar_fast.models.video_lm import Features
from vstar_fast.readers import instructions
from vstar_fast.records import Example, LabeledVideo, Rejected, to_dict
from vstar_fast.run.features import clip_key_of
from vstar_fast.run.runtime import stream_seed

if TYPE_CHECKING:
    from vstar_fast.run.session import Session

LEFT_OUT = "left_out.jsonl"
"""In an adapter's folder: the examples and files that its training could not use."""


class Training:
    """Trains the adapters of a `Session`."""

    def __init__(self, session: Session) -> None:
        self._session = session

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
        s = self._session
        if not examples:
            raise NothingKept(f"no answer was kept for {out.parent}; the report lists why each was rejected")
        tuning = self._settings(start, steps, objective)
        key = self._key(examples, tuning, start, reason)
        if (out / "key.json").is_file() and read_json(out / "key.json") == key:
            s.folder.reject(_left_out(out))
            return out
        if (out / "key.json").is_file():
            name = out.relative_to(s.folder.root)
            s.progress.note(f"{name}: what stands there was trained on other examples or settings; trained anew")
        temporary = out.with_name(f".{out.name}.tmp")
        if s.ranks.first:
            shutil.rmtree(temporary, ignore_errors=True)
        unused = self._fit(
            examples, tuning, start, key, temporary, Places.beside(out), self._prompts(reason) | (texts or {})
        )
        write_jsonl(temporary / LEFT_OUT, [to_dict(row) for row in unused])
        s.folder.reject(unused)
        write_json(temporary / "key.json", key)
        s.ledger.write()
        if s.ranks.first:
            shutil.rmtree(out, ignore_errors=True)
            temporary.rename(out)
        s.ranks.wait()
        if not appears(out / "key.json"):
            raise RunError(f"the first process's adapter {out} is not there; all need the same run folder")
        return out

    def _fit(
        self,
        examples: Sequence[Example],
        tuning: FinetuneConfig,
        start: Path | None,
        key: str,
        out: Path,
        places: Places,
        prompts: dict[str, str],
    ) -> list[Rejected]:
        """Train and write the adapter to `out`; what could not be used."""
        from vstar_fast.models import memory

        s = self._session
        seed = stream_seed(s.config.seed, "finetune", key)
        lm, peft = s.runtime.trainable(lambda m: lora_settings(m, tuning), start, seed)
        features = self._features(self._videos_of(examples))
        unread = [f for i in sorted(_of_instructions(examples)) if isinstance(f := features[i], Rejected)]
        gone = {f.id for f in unread}
        examples = [e for e in examples if e.video_id not in gone]

        def rows(part: Sequence[Example]) -> tuple[list[str], list[Features | None]]:
            shown = [_features_of(features, e) if e.video_id else None for e in part]
            return [prompts[e.question_id] for e in part], shown

        bar = s.progress.task(f"{places.checkpoints.parent.relative_to(s.folder.root)} finetune", 0)
        told: dict[str, Any] = {"on_step": bar.step, "note": s.progress.note}
        with s.profiler.stage("finetune"):
            log = finetune(lm, peft, examples, rows, tuning, out, seed=seed, places=places, key=key, **told)
            s.profiler.count("examples", tuning.batch_size * log["steps"])
            s.profiler.count("tokens", log["packed_tokens"])
        bar.close()
        memory.release(lm.device)  # activations: what answers are drawn with next lies elsewhere
        if tuning.split:
            s.runtime.forget(lm)
        left_out = [Rejected("finetune", row["question_id"], row["reason"], row["detail"]) for row in log["left_out"]]
        return unread + left_out

    def _features(self, videos: list[LabeledVideo]) -> dict[str, Features | Rejected]:
        """Features of videos; of several processes each reads its share first, and finds the rest in the cache."""
        s = self._session
        if s.ranks.size > 1:
            s.runtime.features(s.runtime.init_path, [videos[i] for i in s.ranks.mine([v.id for v in videos])])
            s.ranks.wait()
        return s.runtime.features(s.runtime.init_path, videos)

    def _settings(self, start: Path | None, steps: int, objective: str) -> FinetuneConfig:
        c = self._session.config
        rate = 1.0 if start is None else c.loop.continue_rate
        return replace(
            c.finetune,
            steps=steps or c.finetune.steps,
            objective=objective or c.finetune.objective,
            lr=rate * c.finetune.lr,
            projector_lr=rate * c.finetune.projector_lr,
        )

    def _key(self, examples: Sequence[Example], tuning: FinetuneConfig, start: Path | None, reason: bool) -> str:
        """Content key of an adapter: all that its weights depend on."""
        s = self._session
        origin = s.teacher_key(start) if start else s.model_keys[s.runtime.init_path]
        clips = [self._clip_of(e) for e in examples]
        rows = [to_dict(e) for e in examples]
        return content_key(rows, clips, weighty(tuning), origin, s.seen_through, s.config.seed, reason)

    def _prompts(self, reason: bool) -> dict[str, str]:
        asked = self._session.questions.values()
        return {q.id: questions.prompt_text(q, reason=reason) for split in asked for q in split}

    def _videos_of(self, examples: Sequence[Example]) -> list[LabeledVideo]:
        own = _of_instructions(examples)
        made = [instructions.video(i) for i in sorted(own)]
        return made + [self._session.videos[i] for i in sorted({e.video_id for e in examples if e.video_id} - own)]

    def _clip_of(self, example: Example) -> str | None:
        if not example.video_id or example.source != "instruction":
            return self._session.clip_keys.get(example.video_id)
        return clip_key_of(instructions.video(example.video_id))

    def instruction_examples(self, kept: int) -> tuple[list[Example], dict[str, str]]:
        """The user's original instruction data to mix in with so many kept examples, and its prompts.

        Rows that cannot be used are counted. Raises DataError for them under data.strict.
        """
        s = self._session
        path, ratio = s.config.data.instructions, s.config.finetune.mix_ratio
        if not path or ratio <= 0:
            return [], {}
        mixed, rejected = instructions.read(path, round(ratio * kept), s.config.seed)
        s.folder.reject(rejected)
        if rejected and s.config.data.strict:
            first = rejected[0]
            raise DataError(f"{first.id}: {first.detail} (data.strict: no bad row is passed over)")
        return mixed, {e.question_id: e.question for e in mixed}


def _features_of(features: dict[str, Features | Rejected], example: Example) -> Features:
    found = features[example.video_id]
    if isinstance(found, Rejected):
        raise DataError(
            f"video {example.video_id!r} of a kept example can no longer be read: {found.reason} {found.detail}"
        )
    return found


def _of_instructions(examples: Sequence[Example]) -> set[str]:
    """Videos and images of instruction examples; one that cannot be read leaves its examples out."""
    return {e.video_id for e in examples if e.video_id and e.source == "instruction"}


def _left_out(adapter: Path) -> list[Rejected]:
    """What a finished training could not use, to be counted again by a run that goes on."""
    path = adapter / LEFT_OUT
    return [Rejected(**row) for row in read_jsonl(path)] if path.is_file() else []
