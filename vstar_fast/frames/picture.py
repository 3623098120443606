"""One rule for how a decoded picture becomes upright RGB: rotation, mirror, matrix and range as the file states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import av


class Turn(NamedTuple):
    """Quarter turns and mirrors as two steps: swap the axes, then flip either one."""

    swap: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the turn (and the other way round: what must be turned to get there)."""
        return (width, height) if self.swap else (height, width)


UPRIGHT = Turn()


def turn(matrix: Any) -> Turn:
    """The turn a display matrix (9 int32) stands for; None stands for none."""
    if matrix is None:
        return UPRIGHT
    # A point (x, y) of the stored picture is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype="=i4")[:5].tolist()
    swap = abs(b) > abs(a)
    columns, rows = (c, b) if swap else (a, d)
    return Turn(swap, rows < 0, columns < 0)


def of_frame(frame: av.VideoFrame) -> Turn:
    """The turn a decoded frame is tagged with."""
    side_data: Any = frame.side_data
    return turn(side_data.get("DISPLAYMATRIX"))


def turned(pictures: Any, how: Turn) -> Any:
    """An array or tensor `[..., H, W, C]` turned; a view where it can be."""
    if how.swap:
        pictures = pictures.swapaxes(-3, -2)
    if isinstance(pictures, np.ndarray):
        return pictures[..., :: -1 if how.flip_rows else 1, :: -1 if how.flip_columns else 1, :]
    axes = [axis for axis, flip in ((-3, how.flip_rows), (-2, how.flip_columns)) if flip]
    return pictures.flip(axes) if axes else pictures


class Rgb:
    """Decoded pictures of one clip -> upright RGB. Keeps the scaler from one picture to the next.

    Matrix and range are those the file states; without a statement BT.601, as FFmpeg and torchcodec do.
    """

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._scaler = VideoReformatter()

    def __call__(self, frame: av.VideoFrame, how: Turn, out: np.ndarray) -> None:
        """Write a picture, turned, into `out`, uint8 `[h, w, 3]`, scaled where that is not its own size."""
        height, width = how.size(*out.shape[:2])
        scaling = None if (height, width) == (frame.height, frame.width) else "AREA"
        small = self._scaler.reformat(frame, width, height, "rgb24", interpolation=scaling, threads=1)
        np.copyto(out, turned(_view(small), how))


def _view(frame: av.VideoFrame) -> np.ndarray:
    """The memory of an RGB frame as uint8 `[H, W, 3]`, without the padding of its rows."""
    plane: Any = frame.planes[0]
    rows = np.frombuffer(plane, dtype=np.uint8, count=frame.height * plane.line_size)
    return rows.reshape(frame.height, plane.line_size)[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
