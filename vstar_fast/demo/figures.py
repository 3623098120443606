"""Figures of the warm-started demo model: accuracy, form and facts of what it says about held-out clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstar_fast.demo.warm_start import Clip, features_of, questions, read_clips

if TYPE_CHECKING:
    from vstar_fast.models.video_lm import VideoLM


def answers(
    lm: VideoLM, clips: Sequence[Clip], *, temperature: float = 0.0, samples: int = 1, seed: int = 0
) -> list[list[str]]:
    """Generated texts, `samples` a clip; greedy at temperature 0."""
    import torch

    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    texts: list[str] = []
    prompts = questions()
    for start in range(0, len(clips), 64):
        part = clips[start : start + 64]
        asked = [prompts[(start + i) % len(prompts)] for i in range(len(part))]
        inputs = lm.inputs(asked, features_of(lm, part))
        with torch.inference_mode():
            out = lm.model.generate(**inputs, max_new_tokens=48, num_return_sequences=samples, **sampling)
        texts += lm.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def read_answer(text: str) -> str | None:
    """What stands after the last `Answer:`, lower case; None if nothing does or nothing is said before it."""
    before, mark, after = text.rpartition("Answer:")
    value = after.strip().rstrip(".").lower()
    return value if mark and value and before.strip() else None


def said_facts(text: str) -> set[str]:
    """Facts whose words stand in a text."""
    from vstar_fast.demo.facts import PHRASES

    return {name for name, words in PHRASES.items() if words in text.lower()}


def figures(clips: Sequence[Clip], texts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Share of right and of well-formed answers, right facts among those said, and hits of each class."""
    rows = [(clip, text) for clip, own in zip(clips, texts, strict=True) for text in own]
    hits, total, said = Counter[str](), Counter[str](), Counter[str]()
    formed = told = true = 0
    for clip, text in rows:
        value = read_answer(text)
        formed += value is not None
        total[clip.label] += 1
        hits[clip.label] += value == clip.label
        said[value or "(none)"] += 1
        facts = said_facts(text)
        told, true = told + len(facts), true + len(facts & set(clip.facts))
    return {
        "n": len(rows),
        "accuracy": round(hits.total() / len(rows), 4),
        "well_formed": round(formed / len(rows), 4),
        "facts_right": round(true / max(told, 1), 4),
        "class_hits": {label: f"{hits[label]}/{total[label]}" for label in sorted(total)},
        "said": dict(said.most_common(20)),
    }


def report(lm: VideoLM, actions: Path) -> dict[str, Any]:
    """Greedy answers on dev and test, and four samples a clip of train at temperature 0.8."""
    dev, test, train_split = (read_clips(actions, split, lm) for split in ("dev", "test", "train"))
    sampled = answers(lm, train_split, temperature=0.8, samples=4)
    return {
        "dev": figures(dev, answers(lm, dev)),
        "test": figures(test, answers(lm, test)),
        "train_sampled": figures(train_split, sampled),
        "examples": {clip.id: own for clip, own in zip(train_split[:15], sampled, strict=False)},
    }
