"""The demo's work by vstar-fast and by a straightforward Hugging Face pipeline, stage by stage.

Baseline: `generate` once per sample with the frames decoded and preprocessed again, `re` as the filter, and
HF Trainer with PEFT on plain rows. Equality first: greedy answers token for token on a subset, the same
candidates through both filters, the loss of the first training batch. The baseline runs on a stated subset;
its figures are per answer, per candidate and per example, so that they scale.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vstar_fast import backends, demo, match, questions
from vstar_fast.config import CycleConfig, from_dict, replace
from vstar_fast.records import Candidate, Frames, LabeledVideo, Question, Verdict

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

    from vstar_fast.models.video_lm import Features, VideoLM

NAMES = ("vstar-fast", "HF pipeline")
TARGET = 5.0
"""Ratio that the whole cycle is to reach on a CPU."""


@dataclass
class Work:
    """What both sides do: questions about demo clips, and a loaded model."""

    config: CycleConfig
    lm: VideoLM
    videos: list[LabeledVideo]
    asked: list[Question]
    label_sets: dict[str, tuple[str, ...]]

    @property
    def prompts(self) -> list[str]:
        """The user's text of each question."""
        return [questions.prompt_text(q) for q in self.asked]


def run(bench: Bench, quick: bool) -> None:
    """Rows generate, filter, finetune and the three together."""
    from vstar_fast.bench.cycle_training import compare_training

    work = prepare(clips=2 if quick else 8, samples=2 if quick else 4, tokens=12 if quick else 40)
    seconds = [_generate(bench, work), _filter(bench, work), compare_training(bench, work, steps=1 if quick else 3)]
    ours, theirs = (sum(s[i] for s in seconds) for i in (0, 1))
    bench.add(
        case="answer + judge + train, per question",
        subject=NAMES[0],
        baseline=NAMES[1],
        metric="cpu",
        value=ours * 1e6,
        unit="us/question",
        ratio=theirs / ours,
        equal=all(row.equal for row in bench.rows),
        target=TARGET,
    )


def prepare(clips: int, samples: int, tokens: int) -> Work:
    """Demo clips, questions about them, and the demo model."""
    from vstar_fast import models, readers
    from vstar_fast.demo import model, videos

    data = videos.build_set("actions", {"train": 15})
    config = from_dict(
        {
            "data": {"path": str(data), "dev_fraction": 0.0, "test_fraction": 0.0},
            "generate": {"samples": samples, "temperature": 0.8, "max_new_tokens": tokens},
            "finetune": demo.FINETUNE,
        }
    )
    found, rejected, sets = readers.read(config.data)
    if rejected:
        raise RuntimeError(f"demo clips were rejected: {rejected[:3]}")
    chosen = [v for v in found if v.split == "train"][:clips]
    dtype = "bfloat16" if backends.device() == "cuda" else "float32"  # as Hugging Face computes: equality is proved
    return Work(config, models.load(str(model.build()), dtype=dtype), chosen, questions.ask(chosen, config), sets)


def cpu_of(work: Callable[[], Any]) -> tuple[Any, float]:
    """Result and CPU seconds."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def add_row(bench: Bench, case: str, unit: str, ours: float, theirs: float, equal: bool) -> tuple[float, float]:
    """One row from CPU seconds a unit; the pair again."""
    bench.add(
        case=case,
        subject=NAMES[0],
        baseline=NAMES[1],
        metric="cpu",
        value=ours * 1e6 if equal else None,
        unit=f"us/{unit}",
        ratio=theirs / ours if equal else None,
        equal=equal,
    )
    return ours, theirs


# -- generate ------------------------------------------------------------------------------------


def _generate(bench: Bench, work: Work) -> tuple[float, float]:
    g = work.config.generate
    greedy = _ours(work, samples=1, temperature=0.0)
    equal = [c.token_ids for c in greedy] == [_theirs(work, i, 0.0) for i in range(len(work.asked))]
    _, ours = cpu_of(lambda: _ours(work, g.samples, g.temperature))
    rows = [i for i in range(min(2, len(work.asked))) for _ in range(g.samples)]
    _, theirs = cpu_of(lambda: [_theirs(work, i, g.temperature) for i in rows])
    case = f"generate {len(work.asked)} questions x {g.samples} (baseline: {len(rows)} answers)"
    return add_row(bench, case, "question", ours / len(work.asked), theirs / len(rows) * g.samples, equal)


def features_of(work: Work) -> list[Features]:
    """What the model keeps of each clip, decoded here and now."""
    from vstar_fast import frames

    read = [f for f in frames.read(work.videos, replace(work.config.frames, isolate=False)) if isinstance(f, Frames)]
    return work.lm.encode(frames.to_batch(read, work.videos))


def _ours(work: Work, samples: int, temperature: float) -> list[Candidate]:
    from vstar_fast.generate import Sampling, generate, to_candidates

    sampling = Sampling(samples, temperature, 1.0, 0, work.config.generate.max_new_tokens)
    features = features_of(work)
    batch = generate(work.lm, work.asked, features, sampling, questions.prompt_text, lambda q, n: hash((q.id, n)) >> 1)
    return list(to_candidates(batch, work.lm, sampling, "bench", "direct"))


def _theirs(work: Work, index: int, temperature: float) -> tuple[int, ...]:
    """One answer: decode, preprocess, `generate`."""
    import torch

    lm = work.lm
    inputs = lm.processor(
        text=[lm.prompt(work.prompts[index])],
        videos=[decode(work.videos[index].path, work.config.frames.count)],
        return_tensors="pt",
        add_special_tokens=False,
    )
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with torch.inference_mode():
        tokens = work.config.generate.max_new_tokens
        out = lm.model.generate(
            **inputs, max_new_tokens=tokens, eos_token_id=lm.eos_ids, pad_token_id=lm.pad_id, **sampling
        )
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    ends = [i for i, t in enumerate(ids) if t in lm.eos_ids]
    return tuple(ids[: ends[0]] if ends else ids)


def decode(path: str, count: int) -> Any:
    """The usual loader: every frame decoded, turned upright, those at segment centres kept."""
    import av
    import numpy as np
    import torch

    with av.open(path) as file:
        decoded = list(file.decode(video=0))
    picked = [decoded[int((i + 0.5) * len(decoded) / count)] for i in range(count)]
    pictures = [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in picked]
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)


# -- filter --------------------------------------------------------------------------------------


def _filter(bench: Bench, work: Work) -> tuple[float, float]:
    """The same candidates, right and wrong ones, through both filters, from the ids that generation leaves."""
    replayed = [_replayed(work, i) for i in range(512)]
    copies = [c for c, _ in replayed]
    tokens, tokenizer = work.lm.token_bytes, work.lm.tokenizer
    patterns = {q.id: _pattern(q) for q in work.asked}

    def judge() -> list[Verdict]:
        return match.verify(copies, work.asked, work.config.match, label_sets=work.label_sets, tokens=tokens)

    def search() -> list[bool]:
        texts = tokenizer.batch_decode([list(c.token_ids) for c in copies], skip_special_tokens=True)
        return [bool(patterns[c.question_id].search(t)) for c, t in zip(copies, texts, strict=True)]

    judge()  # tables of the label set and of the tokenizer, built once a run
    search()
    verdicts, ours = cpu_of(judge)
    kept, theirs = cpu_of(search)
    equal = [v.passed for v in verdicts] == kept == [right for _, right in replayed]
    pair = add_row(bench, "filter 512 candidates, from ids", "candidate", ours / 512, theirs / 512, equal)
    samples = work.config.generate.samples
    return pair[0] * samples, pair[1] * samples


def _replayed(work: Work, i: int) -> tuple[Candidate, bool]:
    question = work.asked[i % len(work.asked)]
    right = str(question.labels[0].value)
    names = [n for n in work.label_sets["actions"] if not set(n.split()) & set(right.split())]
    said = right if i % 3 else names[i % len(names)]
    text = f"The person bends both knees, turns once and lands upright in take {i}. Answer: {said}"
    ids = tuple(work.lm.answer_ids(text)[:-1].tolist())
    candidate = Candidate(question.id, question.video_id, i, "direct", "", ids, 0.0, "stop", 0, "", {}, "")
    return candidate, bool(i % 3)


def _pattern(question: Question) -> re.Pattern[str]:
    label = question.labels[0]
    names = "|".join(re.escape(n).replace(r"\ ", r"[\s_-]+") for n in (label.value, *label.aliases))
    return re.compile(rf"answer:\W*(?:{names})\b", re.IGNORECASE)
