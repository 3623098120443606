"""What a run holds while it works: models with their adapters, video features, seeds, profiler."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vstar_fast import models, torchvision_compat
from vstar_fast.config import CycleConfig
from vstar_fast.errors import ModelError
from vstar_fast.models import base_model
from vstar_fast.models.video_lm import Features, VideoLM
from vstar_fast.profiling import Profiler
from vstar_fast.progress import Progress
from vstar_fast.records import LabeledVideo, Rejected
from vstar_fast.run.features import FeatureStore


def stream_seed(*parts: Any) -> int:
    """A 63-bit seed of its own for (run, cycle, question, mode, sample): neither batching nor a restart changes it."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Runtime:
    """Loaded models (once each), the adapter in use, features, seeds."""

    def __init__(self, config: CycleConfig, folder: Path, profiler: Profiler, progress: Progress) -> None:
        torchvision_compat.ensure()  # peft and transformers fail to import beside CPU torch without it
        self.config = config
        self.profiler = profiler
        self.progress = progress
        self._folder = folder
        self._models: dict[str, VideoLM] = {}
        self._stores: dict[str, FeatureStore] = {}
        self._peft: dict[str, Any] = {}
        self._attached: dict[str, str] = {}
        self._forgotten: Counter[str] = Counter()

    @property
    def init_path(self) -> str:
        """The checkpoint that fine-tuning starts from."""
        return self.config.model.init or self.config.model.base

    def lm(self, path: str) -> VideoLM:
        """The model at `path`, loaded at the first call."""
        if path not in self._models:
            m = self.config.model
            with self.profiler.stage("load"):
                lm = models.load(path, dtype=m.dtype, device=m.device, family=m.family, quantize=m.quantize)
            self._models[path] = lm
            self._stores[path] = FeatureStore(lm, self.config, self._folder, self.profiler)
        return self._models[path]

    def features(self, path: str, videos: Sequence[LabeledVideo]) -> dict[str, Features | Rejected]:
        """Features of videos for the model at `path`; a video that cannot be read gives its Rejected."""
        self.lm(path)
        with self.profiler.stage("encode"):
            return self._stores[path].get(videos)

    def expect(self, path: str, videos: Sequence[LabeledVideo]) -> None:
        """Say which videos will be asked for, in order: their files are decoded while the model works."""
        self.lm(path)
        self._stores[path].expect(videos)

    def frame_counts(self) -> dict[str, float]:
        """What reading frames took in this process: see `FeatureStore.counts`, summed over models."""
        total = self._forgotten.copy()
        for store in self._stores.values():
            total.update(store.counts())
        return dict(total)

    def close(self) -> None:
        """End the threads that decode ahead."""
        for store in self._stores.values():
            store.close()

    def forget(self, lm: VideoLM) -> None:
        """Let go of the initial checkpoint and its adapter, whose weights are whole no more; the next use loads it."""
        self._peft.pop(lm.path, None)
        self._attached.pop(lm.path, None)
        del self._models[self.init_path]
        store = self._stores.pop(self.init_path)
        store.close()
        self._forgotten.update(store.counts())

    def plain(self, path: str) -> VideoLM:
        """The model without any adapter."""
        lm = self.lm(path)
        self._detach(path)
        return lm

    def adapted(self, adapter: Path) -> VideoLM:
        """The initial checkpoint with a trained adapter switched on; the base weights are not copied."""
        lm = self.lm(self.init_path)
        if self._attached.get(lm.path) != str(adapter):
            self._attach(lm, adapter, trainable=False)
            self._attached[lm.path] = str(adapter)
        return lm

    def trainable(self, settings: Callable[[VideoLM], Any], start: Path | None, seed: int) -> tuple[VideoLM, Any]:
        """The initial checkpoint with an adapter to train: new (seeded, as `settings` says), or a copy of `start`."""
        from peft import get_peft_model

        lm = self.lm(self.init_path)
        torch.manual_seed(seed)
        if start is not None:
            self._attach(lm, start, trainable=True)
        else:
            self._detach(lm.path)
            self._peft[lm.path] = get_peft_model(lm.model, settings(lm))
        return lm, self._peft[lm.path]

    def _attach(self, lm: VideoLM, adapter: Path, *, trainable: bool) -> None:
        from peft import PeftModel
        from safetensors import SafetensorError

        if not (adapter / "adapter_config.json").is_file():
            raise ModelError(f"{adapter} has no adapter_config.json; run `vstar-fast finetune` first")
        self._detach(lm.path)
        base_model.check(lm, adapter)
        try:
            self._peft[lm.path] = PeftModel.from_pretrained(lm.model, str(adapter), is_trainable=trainable)
        except SafetensorError as error:
            raise ModelError(f"{adapter} is damaged ({error}); delete it and run the same command again") from None

    def _detach(self, path: str) -> None:
        self._attached.pop(path, None)
        if path in self._peft:
            unload(self._peft.pop(path))
            self._models[path].model.eval()


def unload(peft: Any) -> None:
    """Take an adapter off its base model, which is then what it was before.

    PEFT's own `unload` leaves the trained copy of a module in `modules_to_save` (our projector) in place.
    """
    from peft.utils import ModulesToSaveWrapper

    base = peft.get_base_model()
    originals = {n: m.original_module for n, m in base.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    peft.unload()
    for name, module in originals.items():
        parent, _, leaf = name.rpartition(".")
        setattr(base.get_submodule(parent), leaf, module)


def versions() -> dict[str, str]:
    """Versions that may change a result."""
    import platform
    from importlib.metadata import version

    named = {n: version(n) for n in ("vstar-fast", "torch", "transformers", "peft", "av")}
    named |= {"python": platform.python_version(), "threads": str(torch.get_num_threads())}
    return named | {"cpus": str(os.cpu_count()), "machine": platform.machine()}
