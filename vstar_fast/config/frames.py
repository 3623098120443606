"""Settings of the frames stage and of what is kept so that it is not done twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vstar_fast.config.file import one_of
from vstar_fast.config.ranges import in_range


@dataclass(frozen=True)
class FramesConfig:
    """How frames are taken from a clip."""

    count: int = 8
    """Frames a clip; with `policy = "fps"` the most."""
    backend: str = "auto"
    """Decoder: `auto` (each clip by what suits it), `dali`, `pyav`, `torchcodec`."""
    policy: str = "centres"
    """`centres` of equal segments, both `ends` and evenly between, or `fps` frames a second."""
    fps: float = 1.0
    """Frames a second, where `policy = "fps"`."""
    gpu_pixels: int = 900_000
    """On a GPU, `auto` has NVDEC decode clips of at least so many pixels a picture (default: from 720p on)."""
    resize: str = "model"
    """`model`: at once to the size the model sees (the same pixels, less memory); `native`: the size of the file."""
    workers: int = 2
    """Files decoded at the same time."""
    prefetch: int = 8
    """Clips that are decoded ahead while the model works."""
    limit_s: float = 60.0
    """Seconds a file may take to be indexed and decoded; one that takes longer is recorded and left out.
    The resize behind that is not counted: it cannot be stopped half-way, and what it makes is of limited size."""
    isolate: bool = True
    """Decode in processes of their own, so that a file that crashes or hangs the decoder is one record.
    Without them the time is looked at between pictures: a decoder that never comes back is waited for."""

    def __post_init__(self) -> None:
        one_of("frames.policy", self.policy, ("centres", "ends", "fps"))
        one_of("frames.resize", self.resize, ("model", "native"))
        in_range("frames", self)

    def pixels(self) -> tuple[Any, ...]:
        """The settings that decide what the model sees; the others decide how fast it comes."""
        return self.count, self.backend, self.policy, self.fps if self.policy == "fps" else None, self.resize


@dataclass(frozen=True)
class CacheConfig:
    """What is kept so that no video is decoded or encoded twice; the least recently used goes first."""

    folder: str = ""
    """Folder of the caches; default: `cache` in the run folder. Several runs and processes may share one."""
    frames_gib: float = 8.0
    """Disk for resized frames; 0: keep none."""
    embeddings_gib: float = 8.0
    """Disk for what the frozen vision tower makes of a clip; 0: keep none."""
    host_gib: float = 2.0
    """Memory for the same, in front of the disk."""

    def __post_init__(self) -> None:
        in_range("cache", self)
