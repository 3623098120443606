"""Warm-start the demo model: the script, settings and seed behind `assets/warm_start.safetensors`.

The tower stays frozen. A projector and a small LoRA on the language model (merged when the model folder is
assembled) see captions of the `warm` clips only: the motions of the demo, but with seeds and a camera band
of their own, disjoint from train, dev and test. Each target first says what is seen (the clip's own
kinematics), then `Answer: <label>`. The clips are few on purpose: the base model is meant to be right on a
fair part of the clips only, so that self-training has something to do.

First the frames are aligned with words (no language model runs: a frame's visual token is pulled to the mean
embedding of its clip's label and caption), then projector and LoRA learn from the captions.
"""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vstar_fast.demo import model as demo_model
from vstar_fast.demo import videos as demo_videos

if TYPE_CHECKING:
    import torch

    from vstar_fast.models.video_lm import VideoLM

FRAMES = 8
ALIGN_STEPS = 400
LABEL_SHARE = 0.6
"""Share of the label's words in what a frame is aligned with; the rest is the caption's."""
STILL_WEIGHT = 0.1
"""Weight of a frame as it is beside its difference from the clip's mean: few clips cannot teach it to look past
clothes and floors."""


@dataclass(frozen=True)
class Settings:
    """What the committed weights were trained with; chosen by accuracy on `dev`."""

    clips: int = 45
    """Warm clips, 3 of every class."""
    epochs: int = 8
    hinted_share: float = 0.33
    """Rows whose prompt carries the label as a hint, as a rationalization's does; the target stays the same."""
    batch_size: int = 4
    lr: float = 2e-3
    """Peak of AdamW's learning rate for the projector; 10 % linear warm-up, then cosine to 0."""
    lora_lr: float = 5e-4
    lora_r: int = 4
    lora_alpha: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Clip:
    """One clip as the trainer needs it; `features` are the tower's, `[F, features]`."""

    id: str
    label: str
    caption: str
    facts: tuple[str, ...]
    features: torch.Tensor


def questions(hint: str | None = None) -> tuple[str, ...]:
    """The cycle's prompts for an action, word for word; with the label `hint` those of its second try."""
    from vstar_fast.questions import TEMPLATES, prompt_text, with_hint
    from vstar_fast.records import Label, Question

    action = Label("class", "action", hint or "walk")
    asked = [Question("", "", text.format(name=action.name), (action,), "") for text in TEMPLATES["class"]]
    return tuple(prompt_text(with_hint(q) if hint else q, reason=True) for q in asked)


def answer(clip: Clip) -> str:
    """What is seen, then the label."""
    return f"{clip.caption} Answer: {clip.label}"


def read_clips(manifest: Path, split: str, lm: VideoLM) -> list[Clip]:
    """Clips of one split with the tower's features of `FRAMES` frames at segment centres."""
    from vstar_fast import frames, readers
    from vstar_fast.config import DataConfig, FramesConfig

    found, rejected, _ = readers.read(DataConfig(path=str(manifest), dev_fraction=0.0, test_fraction=0.0))
    if rejected:
        raise click.ClickException(f"{manifest}: {len(rejected)} unusable rows, first: {rejected[0]}")
    wanted = [video for video in found if video.split == split]
    clips = []
    for video, seen in zip(wanted, frames.read(wanted, FramesConfig(count=FRAMES)), strict=True):
        if not isinstance(seen, frames.Frames):
            raise click.ClickException(f"{video.path}: {seen.reason}: {seen.detail}")
        encoded = lm.encode(frames.to_batch([seen], [video]))[0].kwargs["video_features"][0]
        told = video.meta["caption"], tuple(video.meta["facts"])
        clips.append(Clip(video.id, str(video.labels[0].value), *told, encoded))
    return clips


def features_of(lm: VideoLM, clips: Sequence[Clip]) -> list[Any]:
    """Clips -> what `VideoLM.inputs` takes."""
    import torch

    from vstar_fast.models.video_lm import Features

    place = torch.full((FRAMES,), lm.model.config.video_token_id)
    return [Features(place, {"video_features": clip.features[None]}) for clip in clips]


def restart(lm: VideoLM, clips: Sequence[Clip], seed: int) -> None:
    """Put the projector back to random weights and standardise by the statistics of `clips`."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    projector = lm.model.model.multi_modal_projector
    features = projector.describe(torch.stack([clip.features for clip in clips])).flatten(0, 1)
    projector.mean.copy_(features.mean(0))
    projector.scale.copy_(1 / features.std(0).clamp_min(1e-3))
    projector.scale[: features.shape[-1] // 2] *= STILL_WEIGHT
    for module in (projector.linear_1, projector.linear_2, projector.position):
        torch.nn.init.normal_(module.weight, std=0.02, generator=generator)
    for linear in (projector.linear_1, projector.linear_2):
        torch.nn.init.zeros_(linear.bias)


def words_of(lm: VideoLM, clips: Sequence[Clip]) -> torch.Tensor:
    """Where a clip's frames should land `[clips, hidden]`: mean embedding of its words, centred, at token length."""
    import torch

    table = lm.model.get_input_embeddings().weight.detach()

    def mean(text: str) -> torch.Tensor:
        return table[lm.tokenizer(" " + text, add_special_tokens=False)["input_ids"]].mean(0)

    rows = [LABEL_SHARE * mean(clip.label) + (1 - LABEL_SHARE) * mean(clip.caption) for clip in clips]
    centred = torch.stack(rows) - torch.stack(rows).mean(0)
    length = (table - table.mean(0)).norm(dim=1).mean()
    return torch.nn.functional.normalize(centred, dim=1) * length


def align(lm: VideoLM, clips: Sequence[Clip], seed: int) -> float:
    """Pull visual tokens to the words of their clip; the last loss, as a share of a token's squared length."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    projector = lm.model.model.multi_modal_projector
    features, target = torch.stack([clip.features for clip in clips]), words_of(lm, clips)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-3, weight_decay=1e-2)
    scale = target.square().sum(-1).mean()
    for _ in range(ALIGN_STEPS):
        rows = torch.randint(0, len(clips), (32,), generator=generator)
        noise = 0.1 * features.std() * torch.randn(features[rows].shape, generator=generator)
        tokens, wanted = projector(features[rows] + noise), target[rows]
        clip_loss = (tokens.mean(1) - wanted).square().sum(-1).mean()
        frame_loss = (tokens - wanted[:, None]).square().sum(-1).mean()
        loss = (clip_loss + 0.3 * frame_loss) / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def loss_of(lm: VideoLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy of the answers; the head runs on supervised positions only."""
    import torch.nn.functional as F

    targets = batch.pop("labels")[:, 1:]
    hidden = lm.model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
    supervised = targets != -100
    logits = lm.model.lm_head(hidden[supervised])
    return F.cross_entropy(logits.float(), targets[supervised])


def train(lm: VideoLM, clips: Sequence[Clip], settings: Settings) -> Iterator[dict[str, float]]:
    """Train projector and LoRA in place; yields the mean loss and learning rate of every epoch."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    lora = [p for n, p in lm.model.named_parameters() if "lora_" in n]
    projector = list(lm.model.model.multi_modal_projector.parameters())
    groups = [{"params": projector, "lr": settings.lr}, {"params": lora, "lr": settings.lora_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    steps = settings.epochs * -(-len(clips) // settings.batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    generator = torch.Generator().manual_seed(settings.seed)
    for epoch in range(settings.epochs):
        losses = []
        for rows in torch.randperm(len(clips), generator=generator).split(settings.batch_size):
            hinted = torch.rand(len(rows), generator=generator) < settings.hinted_share
            loss = loss_of(lm, _batch(lm, [clips[i] for i in rows], hinted.tolist(), epoch + int(rows[0])))
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*projector, *lora], 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        yield {"epoch": epoch + 1, "loss": sum(losses) / len(losses), "lr": schedule.get_last_lr()[0]}


def _batch(lm: VideoLM, clips: Sequence[Clip], hinted: Sequence[bool], turn: int) -> dict[str, torch.Tensor]:
    asked = []
    for i, (clip, with_label) in enumerate(zip(clips, hinted, strict=True)):
        prompts = questions(clip.label if with_label else None)
        asked.append(prompts[(turn + i) % len(prompts)])
    return lm.inputs(asked, features_of(lm, clips), [answer(clip) for clip in clips])


def with_lora(lm: VideoLM, settings: Settings) -> Any:
    """Wrap the language model's linear layers for training; the projector is trained whole."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings.seed)
    wanted = LoraConfig(r=settings.lora_r, lora_alpha=settings.lora_alpha, target_modules=lm.language_linears())
    peft = get_peft_model(lm.model, wanted)
    lm.model.model.multi_modal_projector.requires_grad_(True)
    return peft


def save(peft: Any, path: Path, settings: Settings) -> None:
    """Write projector and LoRA factors in fp16 (the scale folded into B), named as `demo.model` reads them."""
    from safetensors.torch import save_file

    base = peft.get_base_model()
    halves = {f"projector.{n}": t for n, t in base.model.multi_modal_projector.state_dict().items()}
    for name, module in base.named_modules():
        if hasattr(module, "lora_A"):
            scale = settings.lora_alpha / settings.lora_r
            halves[f"lora.{name}.A"] = module.lora_A["default"].weight
            halves[f"lora.{name}.B"] = module.lora_B["default"].weight * scale
    save_file({n: t.detach().half().contiguous() for n, t in halves.items()}, path)


def seen(clips: Sequence[Clip], manifest: Path) -> dict[str, Any]:
    """Everything the warm start has seen, for the log."""
    return {
        "set": manifest.parent.name,
        "clips": len(clips),
        "clips_of_each_class": dict(sorted(Counter(clip.label for clip in clips).items())),
        "split": "warm: seeds and camera band of its own; no clip of train, dev or test",
        "captions": dict(Counter(answer(clip) for clip in clips).most_common()),
        "questions": [*questions(), *questions("<label>")],
        "ids": [clip.id for clip in clips],
    }


def run(out: Path, settings: Settings, *, threads: int) -> dict[str, Any]:
    """Train from scratch, write `warm_start.safetensors` and its log; figures are of the folder built from it."""
    import torch

    from vstar_fast import models
    from vstar_fast.demo.figures import report

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    started = time.process_time()
    lm = models.load(str(demo_model.build(weights=None)), dtype="float32", device="cpu")
    manifest = demo_videos.build_warm(n=settings.clips)
    clips = read_clips(manifest, "train", lm)
    restart(lm, clips, settings.seed)
    log: dict[str, Any] = {"settings": asdict(settings), "seen": seen(clips, manifest), "epochs": []}
    log["align_loss"] = align(lm, clips, settings.seed)
    peft = with_lora(lm, settings)
    for row in train(lm, clips, settings):
        log["epochs"].append(row)
        click.echo(json.dumps(row))
    out.mkdir(parents=True, exist_ok=True)
    save(peft, out / "warm_start.safetensors", settings)
    log["train_cpu_s"] = round(time.process_time() - started, 1)
    ready = models.load(str(demo_model.build(weights=out / "warm_start.safetensors")), dtype="float32", device="cpu")
    log["figures"] = report(ready, demo_videos.build().actions)
    log["versions"] = {name: version(name) for name in ("torch", "transformers", "peft", "numpy", "av")}
    log |= {"python": platform.python_version(), "threads": threads}
    (out / "warm_start.json").write_text(json.dumps(log, indent=1, ensure_ascii=False) + "\n")
    return log


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the weights and their log.")
@click.option("--clips", default=Settings.clips, show_default=True)
@click.option("--epochs", default=Settings.epochs, show_default=True)
@click.option("--lr", default=Settings.lr, show_default=True)
@click.option("--seed", default=Settings.seed, show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads; another number may round otherwise.")
def main(out: Path, threads: int, **settings: Any) -> None:
    """Warm-start the demo model again; the defaults are those of the committed weights."""
    log = run(out, Settings(**settings), threads=threads)
    click.echo(json.dumps({name: log["figures"][name]["accuracy"] for name in ("dev", "test", "train_sampled")}))


if __name__ == "__main__":
    main()
