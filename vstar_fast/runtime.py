"""What a run holds while it works: models with their adapters, video features, seeds, profiler."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vstar_fast import frames, models, torchvision_compat
from vstar_fast.config import CycleConfig
from vstar_fast.errors import ModelError
from vstar_fast.models.video_lm import Features, VideoLM
from vstar_fast.profiling import Profiler
from vstar_fast.progress import Progress
from vstar_fast.records import Frames, LabeledVideo, Rejected
from vstar_fast.runfolder import content_key, file_key, write_atomic

FEATURE_BUDGET_BYTES = 2 << 30


def stream_seed(*parts: Any) -> int:
    """A 63-bit seed of its own for (run, cycle, question, mode, sample): neither batching nor a restart changes it."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def weights_key(path: str) -> str:
    """Key of a model folder's or adapter's content; a hub id stands for itself."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model"))
    return content_key([(p.name, file_key(p)) for p in files])


def clip_key(video: LabeledVideo) -> str:
    """Key of the pixels a video stands for: file content and window."""
    return content_key(file_key(video.path), video.start_s, video.end_s)


class FeatureStore:
    """Video -> Features, encoded once: kept in memory under a byte budget, on disk where they are small."""

    def __init__(self, lm: VideoLM, config: CycleConfig, folder: Path, profiler: Profiler) -> None:
        self._lm = lm
        self._config = config
        self._folder = folder
        self._profiler = profiler
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0
        self._failed: dict[str, Rejected] = {}
        self._weights = content_key(weights_key(lm.path), type(lm).__name__, str(lm.model.dtype))

    def get(self, videos: Sequence[LabeledVideo]) -> dict[str, Features | Rejected]:
        """Features of each video by its id, or why there are none."""
        unique = {v.id: v for v in videos}
        missing = [v for v in unique.values() if not self._load(v)]
        for start in range(0, len(missing), 8):
            self._encode(missing[start : start + 8])
        self._evict(keep=set(unique))
        return {i: self._failed[i] if i in self._failed else self._touch(i) for i in unique}

    def _touch(self, video_id: str) -> Features:
        self._kept.move_to_end(video_id)
        return self._kept[video_id]

    def _load(self, video: LabeledVideo) -> bool:
        if video.id in self._kept or video.id in self._failed:
            return True
        path = self._path(video) if self._lm.small_features else None
        if path is None or not path.is_file():
            return False
        self._keep(video.id, _read_features(path))
        return True

    def _path(self, video: LabeledVideo) -> Path | None:
        try:
            clip = clip_key(video)
        except OSError:
            return None
        return self._folder / f"{content_key(clip, self._config.frames.count, self._weights)}.safetensors"

    def _encode(self, videos: list[LabeledVideo]) -> None:
        read = list(frames.read(videos, self._config.frames, max_duration_s=self._config.data.max_duration_s))
        for video, item in zip(videos, read, strict=True):
            if isinstance(item, Rejected):
                self._failed[video.id] = item
        good = [(v, f) for v, f in zip(videos, read, strict=True) if isinstance(f, Frames)]
        if not good:
            return
        batch = frames.to_batch([f for _, f in good], [v for v, _ in good])
        for (video, _), features in zip(good, self._lm.encode(batch), strict=True):
            self._keep(video.id, features)
            self._profiler.count("videos", 1)
            path = self._path(video) if self._lm.small_features else None
            if path is not None:
                _write_features(path, features)

    def _keep(self, video_id: str, features: Features) -> None:
        self._kept[video_id] = features
        self._bytes += features.nbytes

    def _evict(self, keep: set[str]) -> None:
        for video_id in list(self._kept):
            if self._bytes <= FEATURE_BUDGET_BYTES:
                return
            if video_id not in keep:
                self._bytes -= self._kept.pop(video_id).nbytes


def _write_features(path: Path, features: Features) -> None:
    from safetensors.torch import save_file

    groups = {"k": features.kwargs, "t": features.token_kwargs}
    tensors = {f"{g}.{n}": t.contiguous() for g, named in groups.items() for n, t in named.items()}
    write_atomic(path, lambda temporary: save_file({"ids": features.ids, **tensors}, str(temporary)))


def _read_features(path: Path) -> Features:
    from safetensors.torch import load_file

    tensors = load_file(str(path))
    pick = {g: {n[2:]: t for n, t in tensors.items() if n.startswith(f"{g}.")} for g in ("k", "t")}
    return Features(tensors["ids"], pick["k"], pick["t"])


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

    @property
    def init_path(self) -> str:
        """The checkpoint that fine-tuning starts from."""
        return self.config.model.init or self.config.model.base

    def lm(self, path: str) -> VideoLM:
        """The model at `path`, loaded at the first call."""
        if path not in self._models:
            m = self.config.model
            with self.profiler.stage("load"):
                lm = models.load(path, dtype=m.dtype, device=m.device, family=m.family)
            self._models[path] = lm
            self._stores[path] = FeatureStore(lm, self.config, self._folder / "features", self.profiler)
        return self._models[path]

    def features(self, path: str, videos: Sequence[LabeledVideo]) -> dict[str, Features | Rejected]:
        """Features of videos for the model at `path`; a video that cannot be read gives its Rejected."""
        self.lm(path)
        with self.profiler.stage("encode"):
            return self._stores[path].get(videos)

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

        if not (adapter / "adapter_config.json").is_file():
            raise ModelError(f"{adapter} has no adapter_config.json; run `vstar-fast finetune` first")
        self._detach(lm.path)
        self._peft[lm.path] = PeftModel.from_pretrained(lm.model, str(adapter), is_trainable=trainable)

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
