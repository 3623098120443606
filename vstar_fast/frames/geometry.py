"""The size frames come at: one plan for every backend, and the model's own resize."""

from __future__ import annotations

import copy
import math
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from vstar_fast.clip_errors import Unusable
from vstar_fast.frames.request import Geometry

if TYPE_CHECKING:
    import torch

MOST_PIXELS = 7680 * 4320
"""Of a frame (8K) that scaling or a border makes larger than the file's; beyond it a few frames fill the memory."""
MOST_ASPECT = 200
"""Of a picture for a model: longer side by shorter. Qwen's resize has the same limit."""


class Plan(NamedTuple):
    """Scale to `size` (height, width), put on a black square of side `square` (0: none), cut the middle `crop` out."""

    size: tuple[int, int]
    square: int = 0
    crop: tuple[int, int] | None = None


def plan(geometry: Geometry, height: int, width: int) -> Plan:
    """What `geometry` makes of an upright picture of `height` x `width`. Raises Unusable for more than MOST_PIXELS.

    Not for `exact`, whose size is the caller's own and the same for every clip.
    """
    size = _SHAPES[geometry.shape](geometry, height, width)
    if geometry.pad:
        longer = max(height, width)
        side = max(size)
        size = (max(1, round(side * height / longer)), max(1, round(side * width / longer)))
    if geometry.shrink_only and size[0] * size[1] >= height * width:
        size = (height, width)
    found = Plan(size, max(size) if geometry.pad else 0, geometry.crop)
    if geometry.shape != "exact":
        _check_pixels(found, height, width)
    return found


def _check_pixels(found: Plan, height: int, width: int) -> None:
    made = (found.square, found.square) if found.square else found.size
    if made[0] * made[1] > max(MOST_PIXELS, height * width):
        raise Unusable(
            "too_large",
            f"its {width} x {height} pixels would become {made[1]} x {made[0]}, and a frame that is made larger may "
            f"have {MOST_PIXELS}",
        )


def _native(_: Geometry, height: int, width: int) -> tuple[int, int]:
    return height, width


def _shortest(g: Geometry, height: int, width: int) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    side = g.height
    if g.width and side * long / short > g.width:
        side = max(1, int(g.width * short / long))
    longer = max(1, int(side * long / short))
    return (side, longer) if height <= width else (longer, side)


def _exact(g: Geometry, _height: int, _width: int) -> tuple[int, int]:
    return g.height, g.width


def _budget(g: Geometry, height: int, width: int) -> tuple[int, int]:
    """Qwen2-VL's smart resize (Wang et al., 2409.12191)."""
    f = g.factor
    size = (max(f, round(height / f) * f), max(f, round(width / f) * f))
    if size[0] * size[1] > g.most:
        scale = math.sqrt(height * width / g.most)
        return max(f, math.floor(height / scale / f) * f), max(f, math.floor(width / scale / f) * f)
    if size[0] * size[1] < g.least:
        scale = math.sqrt(g.least / (height * width))
        return math.ceil(height * scale / f) * f, math.ceil(width * scale / f) * f
    return size


_SHAPES = {"native": _native, "shortest": _shortest, "exact": _exact, "budget": _budget}


def finish(data: torch.Tensor, geometry: Geometry, height: int, width: int) -> torch.Tensor:
    """Frames uint8 `[F, h, w, 3]`, decoded from `height` x `width`, brought to the plan's size on their device.

    Frames that the decoder has scaled already are not scaled again.
    """
    wanted = plan(geometry, height, width)
    if tuple(data.shape[1:3]) != wanted.size:
        data = resize(data, wanted.size, geometry.filter)
    if wanted.square:
        data = _centred(data, (wanted.square, wanted.square))
    return data if wanted.crop is None else _centred(data, wanted.crop)


def resize(data: torch.Tensor, size: tuple[int, int], filter: str = "bilinear") -> torch.Tensor:
    """Frames uint8 `[F, H, W, 3]` scaled as Hugging Face's processors do (torchvision, antialiased)."""
    from vstar_fast import torchvision_compat

    torchvision_compat.ensure()
    from torchvision.transforms.v2 import InterpolationMode, functional

    mode = InterpolationMode.BICUBIC if filter == "bicubic" else InterpolationMode.BILINEAR
    moved = functional.resize(data.permute(0, 3, 1, 2), list(size), interpolation=mode, antialias=True)
    return moved.permute(0, 2, 3, 1)


def _centred(data: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The middle `size` of `[F, H, W, 3]`; what lies outside the picture is black."""
    height, width = data.shape[1:3]
    out = data.new_zeros((data.shape[0], *size, data.shape[3]))
    h, w = min(height, size[0]), min(width, size[1])
    top, left = (height - h) // 2, (width - w) // 2
    to, at = (size[0] - h) // 2, (size[1] - w) // 2
    out[:, to : to + h, at : at + w] = data[:, top : top + h, left : left + w]
    return out


def normalise(data: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any = None) -> torch.Tensor:
    """Frames uint8 `[F, H, W, 3]` -> `[F, 3, H, W]`, (x / 255 - mean) / std a channel, on their device."""
    import torch

    kind = dtype or torch.float32
    shift = torch.tensor(mean, dtype=torch.float32, device=data.device)
    scale = torch.tensor(std, dtype=torch.float32, device=data.device)
    return ((data.to(torch.float32) / 255 - shift) / scale).permute(0, 3, 1, 2).to(kind)


class _Stop(Exception):
    pass


class ModelSize:
    """A processor's own resize, done once when a clip is decoded, so that small frames are kept and not large ones.

    The size is asked of the processor itself, whatever its family. Frames are left alone where it would enlarge
    them, where it has no resize step, or where it would not leave the resized frames as they are: what the
    processor makes of these frames equals what it makes of the file's own.
    """

    def __init__(self, video_processor: Any) -> None:
        self._processor = copy.copy(video_processor)  # exchanges its resize while the model's own is used elsewhere
        self._known: dict[tuple[int, ...], tuple[int, int] | None] = {}
        self._lock = threading.Lock()
        mode = str(getattr(video_processor, "resample", None)).rpartition(".")[2].lower()
        # As in models/preprocessing.py: Qwen's cap is on where a folder leaves it open.
        open_cap = getattr(video_processor, "cap_pixels_per_frame", False) is None
        self._settings = {"cap_pixels_per_frame": True} if open_cap else {}
        self._filter = {"2": "bilinear", "3": "bicubic"}.get(mode, mode)
        self.key = video_processor.to_json_string() if self._filter in ("bilinear", "bicubic") else "native"

    def __call__(self, data: torch.Tensor) -> torch.Tensor:
        """Frames uint8 `[F, H, W, 3]` at the size the model sees them at."""
        size = self.size(*data.shape[:3]) if self.key != "native" else None
        return data if size is None else resize(data, size, self._filter)

    def size(self, count: int, height: int, width: int) -> tuple[int, int] | None:
        """Height and width for a clip of `count` frames of `height` x `width`; None: leave it alone.

        Raises Unusable for a picture so long that a resize by its shorter side would fill the memory.
        """
        if max(height, width) > MOST_ASPECT * min(height, width):
            raise Unusable(
                "too_large",
                f"of its {width} x {height} pixels one side is more than {MOST_ASPECT} times the other; no model's "
                "resize is made for that",
            )
        with self._lock:
            key = (count, height, width)
            if key not in self._known:
                self._known[key] = self._ask(*key)
            return self._known[key]

    def _ask(self, count: int, height: int, width: int) -> tuple[int, int] | None:
        size = self._resized(count, height, width)
        if size is None or size[0] * size[1] >= height * width or self._resized(count, *size) != size:
            return None
        return size

    def _resized(self, count: int, height: int, width: int) -> tuple[int, int] | None:
        """The size after the processor's `resize` on an empty clip; None when it has no such step."""
        import torch

        seen: list[tuple[int, int]] = []
        original = self._processor.resize

        def record(*args: Any, **kwargs: Any) -> Any:
            seen.append(tuple(original(*args, **kwargs).shape[-2:]))
            raise _Stop

        self._processor.resize = record
        try:
            empty = torch.zeros((count, 3, height, width), dtype=torch.uint8)
            self._processor(videos=[[empty]], do_sample_frames=False, return_tensors="pt", **self._settings)
        except _Stop:
            pass
        finally:
            del self._processor.resize
        return seen[0] if seen else None
