"""What is asked of a clip: which pictures (`Sampling`), of which part, at which size (`Geometry`)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from vstar_fast.errors import DataError

POLICIES = ("centres", "ends", "fps", "indices", "seconds")
SHAPES = ("native", "shortest", "exact", "budget")
FILTERS = ("area", "bilinear", "bicubic")
LEAST_FPS = 1e-6
"""Times are kept to a millionth."""


def _need(ok: bool, message: str) -> None:
    if not ok:
        raise DataError(message)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which pictures of a window are taken; `policy` is one of

    - `centres`: those on screen at the centres of `count` equal segments;
    - `ends`: `count` of them evenly by number, the first and the last included;
    - `fps`: those on screen every 1/`fps` s from the start, spread over the window when they exceed `count`;
    - `indices`: pictures number `at`, counted from 0 at the start of the window;
    - `seconds`: those on screen `at` so many seconds after the start of the window.
    """

    policy: str = "centres"
    count: int = 8
    fps: float = 0.0
    at: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _need(self.policy in POLICIES, f"sampling policy {self.policy!r} is not one of {', '.join(POLICIES)}")
        object.__setattr__(self, "at", tuple(self.at))
        if self.policy in ("indices", "seconds"):
            _need(bool(self.at), f"sampling {self.policy!r} needs at least one value in `at`")
        else:
            whole = isinstance(self.count, int | float) and math.isfinite(self.count) and self.count == int(self.count)
            _need(whole and self.count >= 1, f"sampling needs a whole count >= 1, got {self.count!r}")
            object.__setattr__(self, "count", int(self.count))
        if self.policy == "fps":
            _need(LEAST_FPS <= self.fps < math.inf, f"sampling 'fps' needs fps >= {LEAST_FPS}, got {self.fps}")
        _need(all(map(math.isfinite, self.at)), f"sampling {self.policy!r} needs finite values in `at`, got {self.at}")
        if self.policy == "indices":
            _need(all(x == int(x) for x in self.at), f"picture numbers must be whole, got {self.at}")


@dataclass(frozen=True, slots=True)
class Geometry:
    """The size frames come at, from their upright size; `shape` is one of

    - `native`: as the file has them;
    - `shortest`: the shorter side scaled to `height` (the longer one to `width` at most, when that is not 0);
    - `exact`: scaled to `height` x `width`;
    - `budget`: sides multiples of `factor`, `least` to `most` pixels a frame, aspect kept (Qwen's smart resize).

    `pad` makes a picture square with black borders before it is scaled; `crop` (height, width) cuts the middle out
    afterwards. `shrink_only` leaves alone what scaling would enlarge. `filter`: `bilinear` or `bicubic` are antialiased
    and equal what Hugging Face processors do; `area` is scaled by the decoder itself: cheaper, a little different.
    """

    shape: str = "native"
    height: int = 0
    width: int = 0
    least: int = 0
    most: int = 0
    factor: int = 1
    pad: bool = False
    crop: tuple[int, int] | None = None
    shrink_only: bool = False
    filter: str = "bilinear"

    def __post_init__(self) -> None:
        _need(self.shape in SHAPES, f"geometry {self.shape!r} is not one of {', '.join(SHAPES)}")
        _need(self.filter in FILTERS, f"filter {self.filter!r} is not one of {', '.join(FILTERS)}")
        whole = (self.height, self.width, self.least, self.most, self.factor, *(self.crop or ()))
        _need(all(isinstance(x, int) for x in whole), f"geometry needs whole numbers, got {self}")
        if self.shape in ("shortest", "exact"):
            _need(self.height >= 1, f"geometry {self.shape!r} needs height >= 1, got {self.height}")
        _need(self.width >= 0, f"geometry needs width >= 0, got {self.width}")
        crop = self.crop
        _need(crop is None or min(crop) >= 1, f"geometry needs a crop (height, width) of at least 1 x 1, got {crop}")
        if self.shape == "exact":
            _need(self.width >= 1, f"geometry 'exact' needs width >= 1, got {self.width}")
        if self.shape == "budget":
            ok = 1 <= self.least <= self.most and self.factor >= 1
            _need(ok, f"geometry 'budget' needs 1 <= least <= most, got {self.least}, {self.most}, {self.factor}")


NATIVE = Geometry()


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """Frames wanted of one clip.

    `path`: a file, a folder of numbered images, a URL that fsspec opens, or `shard.tar::member`. `start_s`/`end_s`:
    the window, in seconds from the clip's first picture. `id` names the clip in the answer (default: the path).
    """

    path: str
    sampling: Sampling = field(default_factory=Sampling)
    geometry: Geometry = NATIVE
    start_s: float | None = None
    end_s: float | None = None
    id: str = ""
    max_duration_s: float = math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.fspath(self.path))

    @property
    def name(self) -> str:
        """What the answer calls this clip."""
        return self.id or self.path
