"""A training at work: steps over batches, what is written on the way, and where it goes on after a stop."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vstar_fast.config import FinetuneConfig
from vstar_fast.config.finetune import weighty
from vstar_fast.distributed import Ranks
from vstar_fast.errors import RunError
from vstar_fast.files import content_key, writing
from vstar_fast.finetune import replay
from vstar_fast.finetune.batches import batches, count_steps
from vstar_fast.finetune.checkpoints import Checkpoints, Note
from vstar_fast.finetune.items import Item
from vstar_fast.finetune.optimizer import Optimizer
from vstar_fast.finetune.step import accumulate, copied, streams
from vstar_fast.finetune.tracking import Tracking
from vstar_fast.models import base_model
from vstar_fast.models.video_lm import VideoLM

LOSSES = ("loss", "grad_norm")
COUNTS = ("answer_tokens", "row_tokens", "packed_tokens")


@dataclass(frozen=True)
class Places:
    """Where a training writes beside its adapter: its checkpoints, a batch that broke it, and what trackers keep."""

    checkpoints: Path
    broken: Path
    tracking: Path

    @classmethod
    def beside(cls, adapter: Path) -> Places:
        """In the adapter's parent folder, under its name."""
        made = {name: adapter.with_name(f"{adapter.name}.{name}") for name in ("checkpoints", "broken")}
        return cls(**made, tracking=adapter.with_name(f"{adapter.name}.runs"))


class Fit:
    """Everything that changes while an adapter is trained; see `finetune` for the arguments."""

    def __init__(
        self,
        lm: VideoLM,
        peft: Any,
        items: Sequence[Item],
        config: FinetuneConfig,
        ranks: Ranks,
        seed: int,
        places: Places,
        key: str,
        note: Note,
    ) -> None:
        self._lm, self._peft, self._config, self._ranks, self._seed = lm, peft, config, ranks, seed
        self._places, self._note = places, note
        self.steps = count_steps(config, len(items))
        self._batches = batches(items, [i.clip for i in items], config.batch_size, self.steps, seed)
        self._optimizer = Optimizer(lm, peft, config, self.steps)
        ranks.same_start(self._optimizer.parameters)
        self.log: dict[str, Any] = {**{name: [] for name in LOSSES}, **dict.fromkeys(COUNTS, 0)}
        key = key or self._digest(items)
        kept = (config.checkpoint_steps, config.checkpoints_kept)
        self._checkpoints = Checkpoints(places.checkpoints, key, *kept, note)

    def run(self, on_step: Callable[[int, int, float], None] | None) -> None:
        """Take the steps that are not done yet."""
        done = self._restore()
        self._peft.train()
        self._peft.zero_grad()  # what a training that broke, or the caller, has left behind
        tracking = Tracking(
            self._config.track if self._ranks.first else "none", self._places.tracking, self._facts(), self._note
        )
        devices = [torch.cuda.current_device()] if self._lm.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), copied(self._lm, self._config):
                for step in range(done, self.steps):
                    tracking.log(step, *self._step(step))
                    if on_step is not None:
                        on_step(step + 1, self.steps, self.log["loss"][-1])
                    if self._checkpoints.due(step + 1, self.steps):
                        self._save(step + 1)
        finally:
            tracking.close()
        self._peft.eval()

    def save(self, out: Path, log: dict[str, Any]) -> None:
        """Write the adapter and `training.json` to a folder; the checkpoints are of no use any more."""
        if self._ranks.first:
            with writing(out):
                self._peft.save_pretrained(str(out))
                (out / "training.json").write_text(json.dumps(log))
            self._checkpoints.clear()
        self._ranks.wait()

    def _step(self, step: int) -> tuple[dict[str, float], int]:
        """One step: (values for trackers, tokens read)."""
        batch = self._batches[step]
        loss, counts = accumulate(self._lm, self._peft, batch, self._config, self._ranks, streams(self._seed, step))
        self._ranks.sum_gradients(self._optimizer.parameters)
        rate, norm = self._optimizer.rate, self._optimizer.clip()
        for name, value in zip(LOSSES, (loss, norm), strict=True):
            if not math.isfinite(value):
                self._stop(step, name.replace("grad_norm", "gradient norm"), value)
            self.log[name].append(value)
        self._optimizer.step()
        self.log |= {name: self.log[name] + n for name, n in counts.items()}
        saved = 1 - counts["packed_tokens"] / counts["row_tokens"]
        return {"loss": loss, "grad_norm": norm, "lr": rate, "prefix_saved": saved}, counts["packed_tokens"]

    def _stop(self, step: int, name: str, value: float) -> None:
        where = self._places.broken
        if self._ranks.first:
            replay.save(where, self._lm, self._peft, self._batches[step], self._config, self._seed, step)
        self._ranks.wait()
        raise RunError(
            f"{name} is {value} at step {step}; lower finetune.lr (now {self._config.lr}) and run again. "
            f"`vstar-fast replay {where}` shows which example and which weights it comes from"
        )

    def _save(self, step: int) -> None:
        if self._ranks.first:
            state = {"optimizer": self._optimizer.state(), "log": json.dumps(self.log)}
            self._checkpoints.save(step, lambda folder: self._peft.save_pretrained(str(folder)), state)
        self._ranks.wait()

    def _restore(self) -> int:
        """Go on from the newest checkpoint, if there is any; steps done."""
        found = self._checkpoints.load(self._fits)
        seen = self._ranks.merged({str(self._ranks.rank): found.step if found else 0})
        if len(set(seen.values())) > 1:
            named = ", ".join(f"process {rank} step {step}" for rank, step in seen.items())
            raise RunError(
                f"the newest checkpoint is not the same for all ({named}); all need the same run folder: wait until "
                "its file system shows the same everywhere, and start again"
            )
        if found is None:
            return 0
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(self._peft, load_peft_weights(str(found.adapter), device="cpu"))
        self._optimizer.restore(found.state["optimizer"])
        self.log = json.loads(found.state["log"])
        self._note(f"training goes on behind step {found.step} of {self.steps}")
        return found.step

    def _fits(self, adapter: Path) -> bool:
        from peft import get_peft_model_state_dict

        own = {name: tuple(t.shape) for name, t in get_peft_model_state_dict(self._peft).items()}
        return base_model.shapes(adapter) == own

    def _digest(self, items: Iterable[Item]) -> str:
        """Key of all that the weights depend on: what is trained, on what, and how."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in self._optimizer.parameters:
            digest.update(_bytes(tensor))
        for features in {id(i.features): i.features for i in items if i.features is not None}.values():
            for tensor in features.kwargs.values():
                digest.update(_bytes(tensor))
        rows = [(asdict(i.example), i.text, i.clip) for i in items]
        halved = self._lm.mixed and self._config.half
        return content_key(
            base_model.key_of(self._lm), rows, weighty(self._config), self._seed, digest.hexdigest(), halved
        )

    def _facts(self) -> dict[str, Any]:
        """What trackers are told of the run."""
        return {**asdict(self._config), "steps_in_all": self.steps, "seed": str(self._seed), "model": self._lm.path}


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
