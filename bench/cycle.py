"""A cycle's work by vstar-fast and by a straightforward Hugging Face pipeline, stage by stage.

On a CPU the demo's model, on a GPU one of Video-LLaVA-7B's shape with random weights (`options`: which, and how much).

Baseline: `generate` once per sample with the frames decoded and preprocessed again, `re` as the filter, and
HF Trainer with PEFT on plain rows. Equality first: greedy answers token for token on a subset, the same
candidates through both filters, the loss of the first training batch. The baseline runs on a stated subset;
its figures are per answer, per candidate and per example, so that they scale. On a GPU, in half precision, rounding
parts ways: most of the first tokens, and the loss to a hundredth. Figures are CPU seconds, beside a GPU seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstar_fast.bench.cost import seconds_of
from vstar_fast.bench.generate import AGREE

from vstar_fast import demo, questions
from vstar_fast.config import CycleConfig, from_dict
from vstar_fast.records import Candidate, Frames, Label, LabeledVideo, Question

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

    from vstar_fast.models.video_lm import Features, VideoLM

NAMES = ("vstar-fast", "HF pipeline")
TARGETS = {"cpu": 5.0, "cuda": 10.0}
"""Ratio that the whole cycle is to reach."""
DEMO = "demo"
METRIC = {"cpu": "cpu", "cuda": "wall"}
MODELS = {"cpu": DEMO, "cuda": "Video-LLaVA-7B"}
ACTIONS = ("back flip", "spin kick", "cartwheel", "walk", "long jump")
"""Labels of clips that show none of it: what is drawn and trained on does not depend on what they show."""


@dataclass(frozen=True)
class Case:
    """`samples` answers of at most `tokens` tokens about each of `clips`, and so many training `steps`."""

    model: str = DEMO
    clips: int = 8
    samples: int = 4
    tokens: int = 40
    steps: int = 3


@dataclass
class Work:
    """What both sides do: questions about clips, and a loaded model."""

    model: str
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
    measure(bench, usual(bench.device, quick))


def usual(device: str, quick: bool, tokens: int = 12) -> Case:
    """What is measured unless something else is asked for; `tokens`: when quick."""
    small = "tiny" if device == "cuda" else DEMO
    return Case(small, 2, 2, tokens, 1) if quick else Case(MODELS[device])


def options(bench: Bench, arguments: Sequence[str]) -> None:
    """Any of the models: `vstar-fast bench cycle --model Video-LLaVA-7B --clips 32 --samples 8`."""
    import argparse

    parser = argparse.ArgumentParser("vstar-fast bench cycle", description=__doc__.splitlines()[0])
    default = Case(MODELS[bench.device])
    for field in fields(Case):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=getattr(default, field.name))
    measure(bench, Case(**vars(parser.parse_args(list(arguments)))))


def measure(bench: Bench, case: Case) -> None:
    """Rows for one case."""
    from vstar_fast.bench.cycle_filter import compare_filters
    from vstar_fast.bench.cycle_training import compare_training

    work = prepare(case)
    seconds = [_generate(bench, work), compare_filters(bench, work), compare_training(bench, work, case.steps)]
    ours, theirs = (sum(s[i] for s in seconds) for i in (0, 1))
    bench.add(
        case=f"answer + judge + train, per question{_named(work)}",
        subject=NAMES[0],
        baseline=NAMES[1],
        metric=METRIC[bench.device],
        value=ours * 1e6,
        unit="us/question",
        ratio=theirs / ours,
        equal=all(row.equal for row in bench.rows),
        target=TARGETS[bench.device] if case.model == MODELS[bench.device] else None,
    )


def prepare(case: Case) -> Work:
    """Clips, questions about them, and the model."""
    if case.model == DEMO:
        return _demo(case)
    from vstar_fast.bench import video_models

    from vstar_fast import backends

    config = _config(case, "")
    videos, lm = _clips(case.clips), video_models.build(case.model, backends.device())
    return Work(case.model, config, lm, videos, questions.ask(videos, config), {"actions": ACTIONS})


def _config(case: Case, data: str) -> CycleConfig:
    return from_dict(
        {
            "data": {"path": data, "dev_fraction": 0.0, "test_fraction": 0.0},
            "generate": {"samples": case.samples, "temperature": 0.8, "max_new_tokens": case.tokens},
            "finetune": demo.FINETUNE,
        }
    )


def _demo(case: Case) -> Work:
    from vstar_fast import models, readers
    from vstar_fast.demo import model, videos

    config = _config(case, str(videos.build_set("actions", {"train": 15})))
    found, rejected, sets = readers.read(config.data)
    if rejected:
        raise RuntimeError(f"demo clips were rejected: {rejected[:3]}")
    chosen = [v for v in found if v.split == "train"][: case.clips]
    lm = models.load(str(model.build()), dtype="float32")  # as Hugging Face computes: equality is proved
    return Work(case.model, config, lm, chosen, questions.ask(chosen, config), sets)


def _clips(count: int) -> list[LabeledVideo]:
    """Synthetic clips of four seconds, written once, with a class label each."""
    from vstar_fast.bench import decode_clips

    from vstar_fast.paths import cache_dir

    folder = cache_dir() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for n in range(count):
        path = Path(decode_clips.synthetic(folder, f"cycle-{n}.mp4", "libx264", 4 + n / 25, 288, 512, 50).path)
        label = Label("class", "action", ACTIONS[n % len(ACTIONS)], set="actions")
        made.append(LabeledVideo(path.stem, str(path), (label,)))
    return made


def _named(work: Work) -> str:
    """Which model, where it is not the demo's."""
    return "" if work.model == DEMO else f", {work.model}"


def add_row(bench: Bench, case: str, unit: str, ours: float, theirs: float, equal: bool) -> tuple[float, float]:
    """One row from seconds a unit; the pair again."""
    bench.add(
        case=case,
        subject=NAMES[0],
        baseline=NAMES[1],
        metric=METRIC[bench.device],
        value=ours * 1e6 if equal else None,
        unit=f"us/{unit}",
        ratio=theirs / ours if equal else None,
        equal=equal,
    )
    return ours, theirs


def _generate(bench: Bench, work: Work) -> tuple[float, float]:
    g = work.config.generate
    greedy = [c.token_ids for c in _ours(work, samples=1, temperature=0.0)]
    equal = _alike(greedy, [_theirs(work, i, 0.0) for i in range(len(work.asked))], bench.device)
    _, ours = seconds_of(lambda: _ours(work, g.samples, g.temperature), bench.device)
    rows = [i for i in range(min(2, len(work.asked))) for _ in range(g.samples)]
    _, theirs = seconds_of(lambda: [_theirs(work, i, g.temperature) for i in rows], bench.device)
    case = f"generate {len(work.asked)} questions x {g.samples} (baseline: {len(rows)} answers)"
    return add_row(bench, case, "question", ours / len(work.asked), theirs / len(rows) * g.samples, equal)


def _alike(ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]], device: str) -> bool:
    """Equal answers; of half precision on a GPU: first tokens that are equal almost everywhere."""
    first = [a[:1] == b[:1] for a, b in zip(ours, theirs, strict=True)]
    return ours == theirs if device == "cpu" else sum(first) >= AGREE * len(first)


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
    clip = decode(work.videos[index].path, work.config.frames.count)
    text = [lm.prompt(work.prompts[index])]
    inputs = lm.processor(text=text, videos=[clip], return_tensors="pt", add_special_tokens=False)
    inputs = {name: tensor.to(lm.device) for name, tensor in in_precision(lm, inputs).items()}
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    with torch.inference_mode():
        tokens = work.config.generate.max_new_tokens
        out = lm.model.generate(
            **inputs, max_new_tokens=tokens, eos_token_id=lm.eos_ids, pad_token_id=lm.pad_id, **sampling
        )
    ids = out[0, inputs["input_ids"].shape[1] :].tolist()
    ends = [i for i, t in enumerate(ids) if t in lm.eos_ids]
    return tuple(ids[: ends[0]] if ends else ids)


def in_precision(lm: VideoLM, inputs: Any) -> dict[str, Any]:
    """A processor's tensors, pixels in the model's precision."""
    return {name: t.to(lm.model.dtype) if t.is_floating_point() else t for name, t in inputs.items()}


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
