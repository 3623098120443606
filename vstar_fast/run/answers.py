"""Answers of a run, part by part: what stands in the run folder is read, the rest is drawn in one stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vstar_fast import ops, questions
from vstar_fast.files import content_key
from vstar_fast.generate import Asked, Sampling, batches, joined, stream, to_candidates, usable
from vstar_fast.labels import scores
from vstar_fast.labels.slots import Slots
from vstar_fast.labels.wanted import Wanted, judge
from vstar_fast.match.text import Names
from vstar_fast.models.base_model import weights_key
from vstar_fast.records import Candidate, Question, Rejected, candidate_from_dict, to_dict
from vstar_fast.run.folder import Part
from vstar_fast.run.runtime import stream_seed
from vstar_fast.run.shared_parts import SharedParts

if TYPE_CHECKING:
    from vstar_fast.engine import Counts
    from vstar_fast.kernels.constrain import Grammar
    from vstar_fast.kernels.constrain.nodes import Node
    from vstar_fast.models.video_lm import Features, VideoLM
    from vstar_fast.records import CandidateBatch
    from vstar_fast.run.session import Session


SCORED_TOGETHER = 64
"""Questions whose labels are scored as one part."""


PART = 64
"""Most answers of a part: what a killed process loses, and what several processes deal out among them."""


class How(NamedTuple):
    """What is common to the answers of one call."""

    adapter: Path | None
    sampling: Sampling
    mode: str
    stage: str
    reason: bool


class Group:
    """The questions of one part, and what there is of its answers."""

    def __init__(self, asked: list[Question], path: Path, key: str) -> None:
        self.asked, self.path, self.key = asked, path, key
        self.rejected: list[Rejected] = []
        self.kept: list[Question] = []
        self.found: dict[str, CandidateBatch] = {}

    @property
    def whole(self) -> bool:
        """Every question whose video can be read is answered."""
        return len(self.found) == len(self.kept)


class Answers:
    """Draws the answers of a `Session`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._grammars = ops.GrammarCache(size=1024)

    def draw(self, asked: Sequence[Question], how: How, where: Path, rows: int | None, teacher: str) -> list[Candidate]:
        """Candidates of all questions, in their order. `rows`: `Crew`'s `max_rows`; `teacher`: key of the weights."""
        s = self._session
        groups = [
            Group(part, where / "parts", self._key(part, how, teacher))
            for part in batches(asked, min(rows or PART, PART), how.sampling.samples)
        ]
        name = " ".join(where.relative_to(s.folder.root).parts)
        bar = s.progress.task(name, len(asked))
        parts = SharedParts(s.folder, s.ranks, [(g.path, g.key) for g in groups])
        own = [groups[i] for i in parts.mine()]
        if own and s.folder.only_others(where / "parts", [g.key for g in groups]):
            s.progress.note(f"{name}: what stands there is of other settings, data, weights or arithmetic; drawn anew")
        for done in self._stream(own, how, rows):
            parts.store((done.path, done.key), self._part(done, how))
            bar.advance(len(done.asked))
        found = [candidate_from_dict(row) for rows_of in parts.rows() for row in rows_of]
        bar.advance(len(asked) - sum(len(g.asked) for g in own))
        bar.close()
        return found

    def _key(self, group: Sequence[Question], how: How, teacher: str) -> str:
        s = self._session
        rows = [(questions.prompt_text(q, reason=how.reason), s.clip_keys.get(q.video_id), q.id) for q in group]
        slots = [self._slot_key(q, how) for q in group]
        proposed = s.config.generate.propose if how.stage == "generate" else 0
        slots += [("proposed", proposed)] if proposed else []
        return content_key(rows, slots, teacher, asdict(how.sampling), s.seen_through, s.config.seed, how.mode)

    def _slot_key(self, question: Question, how: How) -> Any:
        """Key of the answers that a question allows (None: any), and of those that are drawn to their end."""
        found = (self._template(question, how.reason), self._wanted(question, how))
        allowed, wanted = (None if x is None else content_key(x.write().hex()) for x in found)
        return allowed if wanted is None else (allowed, wanted)

    def _stream(self, groups: list[Group], how: How, rows: int | None) -> Iterator[Group]:
        """Groups whose answers are all there, one after the other; the model is loaded when there are any."""
        if not groups:
            return
        s = self._session
        path = s.config.model.base if how.adapter is None else s.runtime.init_path
        lm = s.runtime.plain(path) if how.adapter is None else s.runtime.adapted(how.adapter)
        s.runtime.expect(path, [s.videos[q.video_id] for group in groups for q in group.asked])
        waiting: list[Group] = []
        source = self._asked(groups, waiting, lm, path, how)
        with s.profiler.stage(how.stage):
            drawn = stream(
                lm,
                source,
                how.sampling,
                lambda q: questions.prompt_text(q, reason=how.reason),
                lambda q, n: stream_seed(s.config.seed, how.mode, q.id, n),
                max_rows=rows,
                engine=s.config.generate.engine,
                counts=self._count,
            )
            for question, batch in drawn:
                group = next(g for g in waiting if any(q is question for q in g.kept))
                group.found[question.id] = batch
                s.profiler.count("tokens", int(batch.lengths.sum()))
                s.profiler.count("answers", len(batch.samples))
                while waiting and waiting[0].whole:
                    yield waiting.pop(0)
        yield from waiting

    def _asked(
        self, groups: Sequence[Group], waiting: list[Group], lm: VideoLM, path: str, how: How
    ) -> Iterator[Asked]:
        """The questions of groups with their videos, read and encoded group by group."""
        s = self._session
        for group in groups:
            features = s.runtime.features(path, [s.videos[q.video_id] for q in group.asked])
            group.rejected = [f for f in features.values() if isinstance(f, Rejected)]
            group.kept, kept = usable(group.asked, features)
            waiting.append(group)
            s.profiler.count("videos", len({q.video_id for q in group.kept}))
            proposed = self._proposed(lm, group.kept, kept, how)
            for question, video in zip(group.kept, kept, strict=True):
                grammar = proposed.get(question.id) or self._grammar(lm, question, how)
                yield Asked(question, video, grammar, self._gold(lm, question, how))

    def _proposed(
        self, lm: VideoLM, asked: Sequence[Question], videos: Sequence[Features], how: How
    ) -> dict[str, list[Grammar]]:
        """Per question about a closed set the grammar of each answer: its likeliest labels are shared out to them."""
        slots, most = self._slots, min(self._session.config.generate.propose, how.sampling.samples)
        if slots is None or not most or how.stage != "generate":
            return {}
        closed = [(q, v) for q, v in zip(asked, videos, strict=True) if slots.scored(q)]
        prompts = [questions.prompt_text(q, reason=False) for q, _ in closed]
        names = [slots.scored(q) for q, _ in closed]
        engine = self._session.config.generate.engine
        found = scores.score(lm, [q for q, _ in closed], [v for _, v in closed], prompts, names, engine=engine)
        self._session.profiler.count("scored", len(found))

        def each(question: Question, labels: Sequence[Sequence[str]]) -> list[Grammar]:
            nodes = [slots.filled(question, [ops.choice(list(x))], reason=how.reason) for x in labels]
            made = [ops.compile(node, lm.vocab, cache=self._grammars) for node in nodes]
            return [made[i % len(made)] for i in range(how.sampling.samples)]

        return {
            q.id: each(q, [listed[name] for name in scored.labels[:most]])
            for (q, _), listed, scored in zip(closed, names, found, strict=True)
        }

    def scored(self, asked: Sequence[Question], adapter: Path | None, where: Path, teacher: str) -> dict[str, float]:
        """How questions about closed sets score (`scores.metrics`), asked for the answer alone."""
        s = self._session
        slots = self._slots or Slots(asked, s.videos, Names(asked, s.label_sets).closed)
        closed = [q for q in asked if slots.scored(q)]
        norm = s.config.evaluate.score_norm
        groups = list(batches(closed, SCORED_TOGETHER, 1))
        places = [(where / "parts", self._scored_key(group, slots, teacher)) for group in groups]
        parts = SharedParts(s.folder, s.ranks, places)

        def compute(closed: list[Question]) -> Part:
            path = s.config.model.base if adapter is None else s.runtime.init_path
            lm = s.runtime.plain(path) if adapter is None else s.runtime.adapted(adapter)
            features = s.runtime.features(path, [s.videos[q.video_id] for q in closed])
            kept, videos = usable(closed, features)
            prompts = [questions.prompt_text(q, reason=False) for q in kept]
            blank = scores.blank_video(lm, s.config.frames.count) if norm == "pmi" else None
            with s.profiler.stage("evaluate"):
                names = [slots.scored(q) for q in kept]
                engine = s.config.generate.engine
                found = scores.score(lm, kept, videos, prompts, names, norm=norm, blank=blank, engine=engine)
                s.profiler.count("scored", len(found))
            return [asdict(x) for x in found], [f for f in features.values() if isinstance(f, Rejected)]

        for i in parts.mine():
            parts.store(places[i], compute(groups[i]))
        return scores.metrics([scores.Scored(**row) for rows in parts.rows() for row in rows])

    def _scored_key(self, closed: Sequence[Question], slots: Slots, teacher: str) -> str:
        s = self._session
        rows = [(questions.prompt_text(q, reason=False), s.clip_keys.get(q.video_id), slots.scored(q)) for q in closed]
        norm = s.config.evaluate.score_norm
        return content_key("scored", rows, teacher, s.seen_through, *(() if norm == "sum" else (norm,)))

    def _part(self, group: Group, how: How) -> Part:
        if not group.kept:
            return [], group.rejected
        s = self._session
        path = s.config.model.base if how.adapter is None else s.runtime.init_path
        lm = s.runtime.lm(path)
        tokenizer = s.tokens.put(lm.token_bytes) if lm.token_bytes else weights_key(lm.path)
        batch = joined([group.found[q.id] for q in group.kept])
        return [to_dict(c) for c in to_candidates(batch, lm, how.sampling, tokenizer, how.mode)], group.rejected

    def _count(self, counts: Counts) -> None:
        """What the engine did, into the profile; savings also where there are none."""
        for name in ("steps", "prefilled", "forced", "stopped_early", "tokens_saved", "halved", "regrown"):
            self._session.profiler.count(name, getattr(counts, name))

    @cached_property
    def _slots(self) -> Slots | None:
        s = self._session
        if not s.config.generate.constrain:
            return None
        asked = [q for split in s.questions.values() for q in split]
        return Slots(asked, s.videos, Names(asked, s.label_sets).closed)

    def _template(self, question: Question, reason: bool) -> Node | None:
        return None if self._slots is None else self._slots.template(question, reason=reason)

    def _grammar(self, lm: VideoLM, question: Question, how: How) -> Grammar | None:
        template = self._template(question, how.reason)
        return None if template is None else ops.compile(template, lm.vocab, cache=self._grammars)

    def _gold(self, lm: VideoLM, question: Question, how: How) -> Grammar | None:
        template = self._wanted(question, how)
        return None if template is None else ops.compile(template, lm.vocab, cache=self._grammars)

    def _wanted(self, question: Question, how: How) -> Node | None:
        """What the judge accepts, where the run only wants accepted answers; None: draw all to the end.

        Only `strict` reads the slot and nothing else, so only then an answer is lost with its slot.
        """
        c = self._session.config
        failed_too = not c.loop.filter or c.generate.keep_rejected or c.finetune.objective != "sft"
        read_by_slot = how.stage in ("generate", "rationalize") and c.match.profile == "strict"
        if self._wanted_slots is None or failed_too or not read_by_slot:
            return None
        return self._wanted_slots.template(question, reason=how.reason)

    @cached_property
    def _wanted_slots(self) -> Wanted | None:
        s = self._session
        if self._slots is None:
            return None
        asked = [q for split in s.questions.values() for q in split]
        return Wanted(self._slots, judge(s.config.match, s.label_sets, asked), s.config.match)
