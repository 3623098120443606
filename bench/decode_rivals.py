"""How others take the pictures at segment centres, each by its own cheapest way to 224 pixels on the shorter side."""

from __future__ import annotations

import functools
import importlib
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np

SIDE = 224

Take = Callable[[str, list[int], tuple[int, int]], Any]
"""Path, picture numbers in order, (height, width) to scale to -> pictures `[F, h, w, 3]`."""


def pyav_all(path: str, numbers: list[int], size: tuple[int, int]) -> Any:
    """PyAV, every picture decoded."""
    import av
    from av.video.reformatter import VideoReformatter

    wanted, found, scaler = set(numbers), {}, VideoReformatter()
    with av.open(path) as file:
        stream = file.streams.video[0]
        stream.thread_type = "NONE"
        for i, frame in enumerate(file.decode(stream)):
            if i in wanted:
                small = scaler.reformat(frame, size[1], size[0], "rgb24", interpolation="AREA", threads=1)
                found[i] = small.to_ndarray()
    return np.stack([found[n] for n in numbers])


def torchcodec(path: str, numbers: list[int], size: tuple[int, int]) -> Any:
    """torchcodec's exact mode, one FFmpeg thread, resized while it decodes."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, transforms=[_torchcodec_resize(size)])
    return decoder.get_frames_at(numbers).data.numpy()


@functools.cache
def _torchcodec_resize(size: tuple[int, int]) -> Any:
    from vstar_fast import torchvision_compat

    torchvision_compat.ensure()
    from torchcodec.transforms import Resize

    return Resize(size)


def torchcodec_cuda(path: str, numbers: list[int], size: tuple[int, int]) -> Any:
    """torchcodec on NVDEC, resized by torch on the GPU."""
    from torchcodec.decoders import VideoDecoder

    from vstar_fast.frames.geometry import resize

    decoder = VideoDecoder(path, dimension_order="NHWC", device="cuda")
    return resize(decoder.get_frames_at(numbers).data, size)


def pynvvideocodec(path: str, numbers: list[int], size: tuple[int, int]) -> Any:
    """PyNvVideoCodec's SimpleDecoder on NVDEC, resized by torch on the GPU."""
    import PyNvVideoCodec as nvc
    import torch

    from vstar_fast.frames.geometry import resize

    decoder = nvc.SimpleDecoder(path, use_device_memory=True, output_color_type=nvc.OutputColorType.RGB)
    pictures = [torch.from_dlpack(p).clone() for p in decoder.get_batch_frames_by_index(numbers)]
    return resize(torch.stack(pictures), size)


def decord2(path: str, numbers: list[int], size: tuple[int, int]) -> Any:
    """decord2, one thread."""
    from decord import VideoReader

    return VideoReader(path, height=size[0], width=size[1], num_threads=1).get_batch(numbers).asnumpy()


def opencv(path: str, numbers: list[int], size: tuple[int, int]) -> Any:
    """OpenCV, seeking by picture number."""
    import cv2

    cv2.setNumThreads(1)
    file, found = cv2.VideoCapture(path), []
    for number in numbers:
        file.set(cv2.CAP_PROP_POS_FRAMES, number)
        ok, picture = file.read()
        if not ok:
            raise RuntimeError(f"OpenCV gives no picture {number}")
        small = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA)
        found.append(cv2.cvtColor(small, cv2.COLOR_BGR2RGB))
    return np.stack(found)


def ffmpeg(path: str, numbers: list[int], size: tuple[int, int]) -> Any:
    """The ffmpeg program with a select filter, one thread."""
    select = "+".join(rf"eq(n\,{n})" for n in sorted(set(numbers)))
    graph = f"select='{select}',scale={size[1]}:{size[0]}:flags=area"
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", path, "-vf", graph, "-fps_mode", "passthrough"]
    out = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True).stdout
    return np.frombuffer(out, np.uint8).reshape(len(numbers), *size, 3)


RIVALS: dict[str, tuple[Take, str]] = {
    "PyAV, whole": (pyav_all, "av"),
    "torchcodec": (torchcodec, "torchcodec.decoders"),
    "decord2": (decord2, "decord"),
    "OpenCV": (opencv, "cv2"),
    "ffmpeg": (ffmpeg, "program"),
}
"""Name -> how, and the module it needs."""
ON_GPU: dict[str, tuple[Take, str]] = {
    "torchcodec CUDA": (torchcodec_cuda, "torchcodec.decoders"),
    "PyNvVideoCodec": (pynvvideocodec, "PyNvVideoCodec"),
}


def installed(cuda: bool = False) -> dict[str, Take]:
    """The rivals that run here: those on NVDEC with `cuda`, else those on the CPU. Says which do not."""
    asked = ON_GPU if cuda else RIVALS
    here = {name: take for name, (take, module) in asked.items() if _there(module)}
    if missing := sorted(set(asked) - set(here)):
        print(f"not installed here, no rows: {', '.join(missing)}")
    return here


def load(name: str) -> None:
    """Import what a reader needs, ours or another's, and torch, beside which all of them run."""
    import torch

    torch.set_num_threads(1)
    if name == "torchcodec":
        _torchcodec_resize((8, 8))
    wanted = (
        ("av", "vstar_fast.frames.source", "vstar_fast.frames.pyav") if name == "vstar-fast" else (RIVALS[name][1],)
    )
    for module in wanted:
        if module != "program":
            importlib.import_module(module)


@functools.cache
def _there(module: str) -> bool:
    if module == "program":
        return shutil.which("ffmpeg") is not None
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError, OSError):  # torchcodec raises RuntimeError without FFmpeg's libraries
        return False
    return True


def held(path: str) -> int:
    """Pictures in a file, counted by playing it."""
    import av

    with av.open(path) as file:
        return sum(1 for _ in file.decode(video=0))
