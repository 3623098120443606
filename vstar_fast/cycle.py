"""The self-training cycle of Video-STaR (arXiv 2407.06189, section 2) over the stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vstar_fast import dataset, evaluate, questions
from vstar_fast.config import CycleConfig
from vstar_fast.errors import NothingKept, RunError
from vstar_fast.files import read_json, write_jsonl
from vstar_fast.profiling import Profiler
from vstar_fast.progress import Progress
from vstar_fast.records import Example, Question, to_dict
from vstar_fast.run import advice, summary
from vstar_fast.run.folder import RunFolder
from vstar_fast.run.runtime import stream_seed
from vstar_fast.run.session import Judged, Session, estimate_from


@dataclass(frozen=True)
class Round:
    """One time round the loop: its number, its folder, what is asked, and the adapter that answers."""

    number: int
    folder: Path
    asked: list[Question]
    teacher: Path | None


def run(
    config: CycleConfig,
    run_dir: str | Path,
    *,
    profiler: Profiler | None = None,
    progress: Progress | None = None,
    controls: bool = False,
) -> dict[str, Any]:
    """Run cycles until the plateau on `dev`; returns what `summary.json` holds.

    Kill it anywhere and call it again: parts that stand in `run_dir` are read, the rest is done. Without a `profiler`
    clocks alone run, without `progress` it is shown as text.
    """
    folder = RunFolder(run_dir)
    session: Session | None = None
    try:
        session = Session(config, folder, profiler or Profiler(), progress or Progress())
        record = summary.Record(session)
        record.base = measure(session, None, folder.root / "base" / "metrics")
        history = [estimate_from(record.base["dev"])]
        teacher: Path | None = None
        for n in range(config.loop.max_cycles):
            this = Round(n, folder.cycle(n), session.questions["train"], teacher)
            try:
                teacher, result = one_cycle(session, this)
            except NothingKept as error:
                if n == 0:
                    raise
                record.stopped = f"nothing to train on in cycle {n} ({error})"
                break
            record.cycles.append(result)
            history.append(estimate_from(result["dev"]))
            record.write("running")
            if evaluate.plateau(history, config.loop.patience):
                record.stopped = f"no gain on dev beyond its interval for {config.loop.patience} cycle(s)"
                break
        record.stopped = record.stopped or f"loop.max_cycles = {config.loop.max_cycles} reached"
        if config.recipe == "paper" and record.cycles[-1]["kept"]["rationalized"]:
            record.final = final_model(session, len(record.cycles) - 1)
            if record.final is None:
                record.stopped += "; no direct answer can be trained on, so there is no final model"
        if controls:
            record.controls = run_controls(session, len(record.cycles) - 1)
        return record.write("done")
    finally:
        if session is not None:
            session.runtime.close()
        folder.close()


def one_cycle(session: Session, r: Round) -> tuple[Path, dict[str, Any]]:
    """Answer, verify, rationalize what failed, verify, fine-tune, evaluate: (adapter, results)."""
    adapter, direct, rationalized, examples = self_train(session, r)
    found = measure(session, adapter, r.folder / "metrics")
    counted = summary.yields(direct, rationalized, examples, r.asked, session.label_sets, session.config)
    return adapter, {"cycle": r.number, **counted, **found}


def self_train(session: Session, r: Round) -> tuple[Path, Judged, Judged, list[Example]]:
    """All of a cycle but its evaluation: (adapter, direct answers, rationalizations, examples)."""
    direct = answer(session, r)
    rationalized = rationalize(session, r, direct)
    examples = keep(session, r, direct, rationalized)
    _require_examples(session, r, direct, rationalized, examples)
    return train(session, r, examples), direct, rationalized, examples


def answer(session: Session, r: Round) -> Judged:
    """k answers to every question, judged."""
    g, where = session.config.generate, r.folder / "generate"
    write_jsonl(r.folder / "questions.jsonl", [to_dict(q) for q in r.asked])
    asked = r.asked if session.config.loop.direct else []
    candidates = session.answer(asked, r.teacher, session.sampling(g.samples), where, reason=g.reason)
    return session.judge(candidates, asked, where)


def rationalize(session: Session, r: Round, direct: Judged) -> Judged:
    """The questions of which nothing was kept once more, with the label as a hint, judged with the leak guard."""
    config, where = session.config, r.folder / "rationalize"
    wanted = config.rationalize.enabled and config.generate.reason and config.loop.filter
    if not wanted or _for_final_model(config, r.number):
        return []
    kept = {e.question_id for e in dataset.select(direct, {q.id: q for q in r.asked}, config.match)}
    again = [questions.with_hint(q) for q in r.asked if q.id not in kept]
    samples = session.sampling(config.rationalize.samples)
    candidates = session.answer(again, r.teacher, samples, where, mode="rationalized", stage="rationalize")
    return session.judge(candidates, again, where)


def _for_final_model(config: CycleConfig, number: int) -> bool:
    """The last of several cycles trains on direct answers only (paper, 2.2)."""
    last = number == config.loop.max_cycles - 1
    return last and number > 0 and config.loop.direct and not config.loop.rationalize_last


def keep(session: Session, r: Round, direct: Judged, rationalized: Judged) -> list[Example]:
    """What fine-tuning sees: answers that passed (all of them without the filter)."""
    config = session.config
    asked = {q.id: q for q in r.asked}
    if config.loop.filter:
        kept = dataset.select(direct, asked, config.match)
    else:
        kept = [Example(c.video_id, c.question_id, asked[c.question_id].text, c.text, c.mode) for c, _ in direct]
    hinted = dataset.select(rationalized, asked, config.match)
    seed = stream_seed(config.seed, "cap", r.number)
    examples = kept + dataset.cap(hinted, len(kept), config.rationalize, seed)
    examples = _preferences(config, examples, direct, asked)
    write_jsonl(r.folder / "examples.jsonl", [to_dict(e) for e in examples])
    return examples


def _require_examples(
    session: Session, r: Round, direct: Judged, rationalized: Judged, examples: list[Example]
) -> None:
    """Raise NothingKept, with what to change, where there is nothing to train on."""
    if not examples:
        raise NothingKept(advice.nothing_kept(f"cycle {r.number}", direct, rationalized, session.config))


def _preferences(
    config: CycleConfig, examples: list[Example], judged: Judged, asked: dict[str, Question]
) -> list[Example]:
    """Where training is on preferences: a failed answer beside each example (`dpo`), or behind them (`kto`)."""
    if config.finetune.objective == "dpo":
        return dataset.paired(examples, judged)
    if config.finetune.objective == "kto" and examples:
        return examples + dataset.failed(examples, judged, asked)
    return examples


def train(session: Session, r: Round, examples: list[Example], *, steps: int = 0) -> Path:
    """Fine-tune from the initial checkpoint (or the last cycle's adapter) on what was kept."""
    start = r.teacher if session.config.loop.restart == "continue" else None
    return fit(session, examples, r.folder / "adapter", start=start, steps=steps)


def fit(session: Session, examples: list[Example], out: Path, *, start: Path | None = None, steps: int = 0) -> Path:
    """Fine-tune on examples and the instruction data that goes with so many, asked as they were answered."""
    examples = dataset.distinct(examples)
    mixed, prompts = session.training.instruction_examples(len(examples))
    if session.config.finetune.balance:
        examples = dataset.balance(examples, {q.id: q for q in session.questions["train"]})
    asked_for_reasons = session.config.generate.reason
    return session.training.train(
        examples + dataset.distinct(mixed), out, start=start, steps=steps, reason=asked_for_reasons, texts=prompts
    )


def measure(session: Session, adapter: Path | None, where: Path, *, reason: bool | None = None) -> dict[str, Any]:
    """Greedy answers on dev (which steers) and test (which steers nothing); `reason` as the run asks by default."""
    reason = session.config.generate.reason if reason is None else reason
    dev, _ = session.measure(adapter, where, split="dev", reason=reason)
    test, clips = session.measure(adapter, where, split="test", reason=reason)
    return {"dev": dev, "test": test, "clips": clips}


def final_model(session: Session, number: int) -> dict[str, Any] | None:
    """The paper's last step when the plateau came early: the direct answers of the last cycle only; None without."""
    before = session.folder.cycle(number - 1) / "adapter" if number else None
    last = Round(number, session.folder.cycle(number), session.questions["train"], before)
    where = session.folder.root / "final"
    judged = answer(session, last)
    asked = {q.id: q for q in last.asked}
    kept = dataset.select(judged, asked, session.config.match)
    if not kept:
        return None
    examples = _preferences(session.config, kept, judged, asked)
    try:
        adapter = fit(session, examples, where / "adapter")
    except NothingKept:
        return None
    return {"kept": len(kept), **measure(session, adapter, where / "metrics")}


def run_controls(session: Session, number: int) -> dict[str, Any]:
    """Labels-only SFT and shuffled labels, each with as many steps as the last cycle had."""
    steps = read_json(session.folder.cycle(number) / "adapter" / "training.json")["steps"]
    where = session.folder.root / "controls"
    return {
        "labels_only": labels_only(session, where / "labels_only", steps),
        "shuffled": shuffled(session, where / "shuffled", steps),
    }


def labels_only(session: Session, where: Path, steps: int) -> dict[str, Any]:
    """SFT on the gold labels without reasoning (Video-LLaVA+ in the paper), asked the way it was trained."""
    unread = {r.id for r in session.folder.rejected}
    asked = [q for q in session.questions["train"] if q.video_id not in unread]
    gold = [Example(q.video_id, q.id, q.text, questions.answer_text(q), "labels") for q in asked]
    adapter = session.training.train(gold, where / "adapter", steps=steps, reason=False, objective="sft")
    return {"steps": steps, "kept": len(gold), **measure(session, adapter, where / "metrics", reason=False)}


def shuffled(session: Session, where: Path, steps: int) -> dict[str, Any]:
    """One cycle whose training labels are permuted over the videos: it must not gain."""
    permuted = questions.shuffle_labels(session.questions["train"], session.config.seed)
    r = Round(0, where, permuted, None)
    direct = answer(session, r)
    examples = keep(session, r, direct, rationalize(session, r, direct))
    try:
        adapter = train(session, r, examples, steps=steps)
    except NothingKept:  # there is nothing to learn from, and the control is the base model itself
        adapter = None
    return {"steps": steps, "kept": len(examples), **measure(session, adapter, where / "metrics")}


STAGES = ("generate", "match", "rationalize", "finetune", "evaluate")


def run_stage(
    name: str, config: CycleConfig, run_dir: str | Path, number: int, *, profiler: Profiler, progress: Progress
) -> dict[str, Any]:
    """One stage of a cycle (see STAGES), after whatever it still lacks of that cycle's stages before it.

    Raises RunError when the cycle before has no adapter yet.
    """
    folder = RunFolder(run_dir)
    session: Session | None = None
    try:
        session = Session(config, folder, profiler, progress)
        if number and not (folder.cycle(number - 1) / "adapter" / "key.json").is_file():
            raise RunError(f"cycle {number - 1} has no adapter; run `vstar-fast finetune --cycle {number - 1}` first")
        teacher: Path | None = None
        for n in range(number):  # an adapter of other settings would not be this run's
            before = Round(n, folder.cycle(n), session.questions["train"], teacher)
            teacher = self_train(session, before)[0]
        return _stage(session, name, Round(number, folder.cycle(number), session.questions["train"], teacher))
    finally:
        if session is not None:
            session.runtime.close()
        folder.close()


def _stage(session: Session, name: str, r: Round) -> dict[str, Any]:
    direct = answer(session, r)
    if name in ("generate", "match"):
        return summary.counts(direct)
    rationalized = rationalize(session, r, direct)
    if name == "rationalize":
        return summary.counts(rationalized)
    examples = keep(session, r, direct, rationalized)
    _require_examples(session, r, direct, rationalized, examples)
    adapter = train(session, r, examples)
    if name == "finetune":
        return {"examples": len(examples), "adapter": str(adapter)}
    found = measure(session, adapter, r.folder / "metrics")
    return {"dev": found["dev"], "test": found["test"]}


def run_seeds(
    config: CycleConfig,
    run_dir: str | Path,
    seeds: int,
    *,
    profiler: Profiler,
    progress: Progress,
    controls: bool = False,
) -> dict[str, Any]:
    """The same run with `seeds` seeds, each in a folder of its own, and their gain pooled by clip."""
    root, found = Path(run_dir), []
    if not config.cache.folder:  # the seeds see the same videos
        config = replace(config, cache=replace(config.cache, folder=str(root / "cache")))
    for i in range(seeds):
        seeded = replace(config, seed=config.seed + i)
        where = root / f"seed-{seeded.seed}"
        found.append(run(seeded, where, profiler=profiler.fresh(), progress=progress, controls=controls))
    return summary.pool(root, config, found)
