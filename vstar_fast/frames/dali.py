"""DALI: NVDEC on a GPU, or the same graph on the CPU for VP8, VP9 and MJPEG.

DALI decodes; rotation and the BT.709 matrix, which it does not look at, and the resize are done by torch on what it
hands over through DLPack, on the device where it lies. Clips are asked for one by one and decoded in batches of equal
codec and size. A failed batch is tried again clip by clip, so that one bad file fails alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from vstar_fast.frames.job import Look
from vstar_fast.frames.picture import turned

if TYPE_CHECKING:
    import torch

BATCH = 16
"""Clips a call: at least the number of NVDEC engines of any card, and what keeps their buffers small."""
PIXELS = 2 << 30
"""Bytes of full-size RGB that one call may hold."""
WAIT_S = 0.02
"""How long the first clip of a batch waits for others."""
_CHUNK = 4


@dataclass(frozen=True, slots=True)
class Clip:
    """A file's bytes, the numbers of the pictures wanted in order of time, and how they are to be shown."""

    data: np.ndarray
    numbers: list[int]
    look: Look
    bucket: tuple[str, int, int]
    """Codec, stored height and width: a decoder is made anew for each."""

    @property
    def nbytes(self) -> int:
        """Bytes of the pictures as full-size RGB."""
        return len(self.numbers) * self.bucket[1] * self.bucket[2] * 3


class Dali:
    """Decodes in batches on `device`: `cpu`, or a CUDA device's number. Thread-safe: a caller waits for its clip."""

    def __init__(self, device: str | int = "cpu", threads: int = 2) -> None:
        self.device = device
        self._threads = threads
        self._batcher = Batcher(self._decode)

    def read(self, clip: Clip) -> torch.Tensor:
        """Upright RGB pictures uint8 `[U, H, W, 3]` on the device. Raises RuntimeError when DALI fails."""
        return self._batcher.ask(clip)

    def close(self) -> None:
        """End the thread that batches."""
        self._batcher.close()

    @cached_property
    def _graph(self) -> Any:
        from nvidia.dali import fn, pipeline_def, types

        gpu = self.device != "cpu"

        @pipeline_def(
            batch_size=BATCH,
            num_threads=self._threads,
            device_id=int(self.device) if gpu else None,
            prefetch_queue_depth=1,
        )
        def graph() -> Any:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            numbers = fn.external_source(name="numbers", dtype=types.INT32, ndim=1)
            # Without pad_mode a number past the end is a black picture.
            return fn.decoders.video(encoded, frames=numbers, device="mixed" if gpu else "cpu", pad_mode="none")

        built = graph()
        built.build()
        return built

    def _decode(self, clips: Sequence[Clip]) -> list[torch.Tensor]:
        self._graph.feed_input("encoded", [clip.data for clip in clips])
        self._graph.feed_input("numbers", [np.asarray(clip.numbers, dtype=np.int32) for clip in clips])
        (out,) = self._graph.run()
        pictures = [_right(_tensor(out, i), clip) for i, clip in enumerate(clips)]
        if self.device != "cpu":
            import torch

            torch.cuda.current_stream(int(self.device)).synchronize()  # DALI reuses its buffers at the next run
        return pictures


def _tensor(out: Any, row: int) -> torch.Tensor:
    import torch

    return torch.from_dlpack(out[row])


def _right(pictures: torch.Tensor, clip: Clip) -> torch.Tensor:
    """A copy of DALI's pictures, upright and in the matrix the file states."""
    if len(pictures) != len(clip.numbers):
        raise RuntimeError(f"DALI gave {len(pictures)} pictures for {len(clip.numbers)}")
    pictures = turned(pictures, clip.look.turn)
    return to_709(pictures) if clip.look.colorspace == 1 else pictures.contiguous().clone()


_BT601 = (0.299, 0.114)
_BT709 = (0.2126, 0.0722)


def _from_yuv(kr: float, kb: float) -> np.ndarray:
    """RGB from luma and scaled colour differences (ITU-R BT.601-7, BT.709-6)."""
    kg = 1 - kr - kb
    red, blue = 2 * (1 - kr), 2 * (1 - kb)
    return np.array([[1, 0, red], [1, -kb / kg * blue, -kr / kg * red], [1, blue, 0]])


def to_709(pictures: torch.Tensor) -> torch.Tensor:
    """RGB uint8 `[F, H, W, 3]` that was converted by BT.601 although it is BT.709, converted rightly, on its device.

    Exact to rounding but where BT.601 left the range of a byte: there the picture has lost what it was.
    """
    import torch

    matrix = _from_yuv(*_BT709) @ np.linalg.inv(_from_yuv(*_BT601))
    how = torch.tensor(matrix.T, dtype=torch.float32, device=pictures.device)
    out = torch.empty(pictures.shape, dtype=torch.uint8, device=pictures.device)
    for start in range(0, len(pictures), _CHUNK):  # as floats a long clip would be large
        part = pictures[start : start + _CHUNK].to(torch.float32) @ how
        out[start : start + _CHUNK] = part.round_().clamp_(0, 255).to(torch.uint8)
    return out


class Batcher:
    """Gathers clips of one bucket that are asked for at the same time into one call of `decode`."""

    def __init__(self, decode: Callable[[Sequence[Clip]], list[torch.Tensor]]) -> None:
        self._decode = decode
        self._asked: queue.Queue[tuple[Clip, Future[torch.Tensor]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="dali", daemon=True)
        self._thread.start()

    def ask(self, clip: Clip) -> torch.Tensor:
        """The clip's pictures, when its batch is done."""
        answer: Future[torch.Tensor] = Future()
        self._asked.put((clip, answer))
        return answer.result()

    def close(self) -> None:
        """End the thread once what was asked for is done."""
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._asked.get()) is not None:
            rows, last = [first], time.monotonic() + WAIT_S
            while len(rows) < BATCH and (left := last - time.monotonic()) > 0:
                try:
                    more = self._asked.get(timeout=left)
                except queue.Empty:
                    break
                if more is None:
                    self._asked.put(None)
                    break
                rows.append(more)
            for batch in _batches(rows):
                self._answer(batch)

    def _answer(self, rows: list[tuple[Clip, Future[torch.Tensor]]]) -> None:
        try:
            found = self._decode([clip for clip, _ in rows])
        except Exception as error:  # whatever it is, it is this batch's alone and its callers hear of it
            if len(rows) == 1:
                rows[0][1].set_exception(error)
            else:
                for row in rows:
                    self._answer([row])
            return
        for (_, answer), pictures in zip(rows, found, strict=True):
            answer.set_result(pictures)


def _batches(rows: list[tuple[Clip, Future[torch.Tensor]]]) -> list[list[tuple[Clip, Future[torch.Tensor]]]]:
    """Rows by bucket, cut where their pictures would exceed PIXELS."""
    cut: list[list[tuple[Clip, Future[torch.Tensor]]]] = []
    for row in sorted(rows, key=lambda r: r[0].bucket):
        same = cut and cut[-1][0][0].bucket == row[0].bucket
        if same and sum(r[0].nbytes for r in cut[-1]) + row[0].nbytes <= PIXELS:
            cut[-1].append(row)
        else:
            cut.append([row])
    return cut
