"""A process that decodes for another one: `main(FD)`, started by `worker_pool.py`.

A message is 8 bytes of length and a pickle. Pictures go back as a file descriptor of anonymous memory, without a copy
through the pipe. A file that crashes or hangs the decoder takes this process with it and no other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import mmap
import os
import pickle
import signal
import socket
import struct
import time
from typing import Any

import numpy as np

from vstar_fast.frames.job import Read, Task, do, look, probe

LENGTH = struct.Struct("<Q")
READY = "ready"
"""The first message of a worker."""
ALONE_S = 5.0
"""What a worker gets beyond a file's time limit until it ends by itself, with nobody there to stop it."""


def send(channel: socket.socket, value: Any, descriptors: tuple[int, ...] = ()) -> None:
    """Write one message, and with it open files."""
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    socket.send_fds(channel, [LENGTH.pack(len(data))], descriptors)
    channel.sendall(data)


def receive(channel: socket.socket) -> tuple[Any, list[int]]:
    """Read one message and the open files with it. Raises EOFError when the other side is gone."""
    head, descriptors, _, _ = socket.recv_fds(channel, LENGTH.size, 1)
    head += _exactly(channel, LENGTH.size - len(head))
    data = _exactly(channel, LENGTH.unpack(head)[0])
    return pickle.loads(data), descriptors


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Memory:
    """Arrays in anonymous memory that another process can open: the Room of a worker."""

    def __init__(self) -> None:
        self._open: dict[int, np.ndarray] = {}

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array of zeros."""
        descriptor = os.memfd_create("vstar-fast-frames")
        os.ftruncate(descriptor, max(1, math.prod(shape)))
        self._open[descriptor] = _mapped(descriptor, shape)
        return self._open[descriptor]

    def descriptor(self, data: np.ndarray) -> int:
        """The descriptor of an array made here; the array of another is copied first."""
        for descriptor, made in self._open.items():
            if made is data:
                return descriptor
        np.copyto(self(data.shape), data)
        return next(reversed(self._open))

    def close(self) -> None:
        """Forget all; who was sent a descriptor keeps the memory."""
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()


def _mapped(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape)
    return np.frombuffer(mmap.mmap(descriptor, max(1, size)), dtype=np.uint8, count=size).reshape(shape)


def shared(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    """The array behind a descriptor, which is closed; the memory lives as long as the array."""
    try:
        return _mapped(descriptor, shape)
    finally:
        os.close(descriptor)


def _answer(task: Task, memory: Memory) -> tuple[Any, np.ndarray | None]:
    if not task.decoder:
        index = task.index or probe(task.request)
        return (index, look(task.request.path)), None
    read = do(task, memory)
    empty = np.empty(0, dtype=np.uint8)
    return (dataclasses.replace(read, pictures=empty), read.pictures.shape), read.pictures


def main(descriptor: int) -> None:
    """Answer tasks until the other side goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other side's to answer
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also inside a decoder that hangs
    with socket.socket(fileno=descriptor) as channel, contextlib.suppress(EOFError, ConnectionError):
        send(channel, READY)
        while True:
            task, _ = receive(channel)
            signal.setitimer(signal.ITIMER_REAL, 0 if math.isinf(task.limit_s) else task.limit_s + ALONE_S)
            _serve(channel, task)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _serve(channel: socket.socket, task: Task) -> None:
    began, memory = time.process_time(), Memory()
    try:
        value, pictures = _answer(task, memory)
    except Exception as error:  # every failure of one file is an answer; the other side makes a record of it
        value, pictures = _portable(error), None
    descriptors = () if pictures is None else (memory.descriptor(pictures),)
    try:
        send(channel, (value, time.process_time() - began), descriptors)
    finally:
        memory.close()


def _portable(error: Exception) -> Exception:
    """The error itself when it survives pickling, else its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def unpack(value: Any, descriptors: list[int]) -> Any:
    """The answer to a task: a Read, or what looking found."""
    if not descriptors:
        return value
    read, shape = value
    assert isinstance(read, Read)
    return dataclasses.replace(read, pictures=shared(descriptors[0], shape))
