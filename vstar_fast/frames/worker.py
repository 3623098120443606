"""A process that decodes for another one: `main(FD)`, started by `workers.py`.

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


def share(data: np.ndarray) -> int:
    """A descriptor of anonymous memory that holds the array's bytes."""
    descriptor = os.memfd_create("vstar-fast-frames")
    os.ftruncate(descriptor, max(1, data.nbytes))
    with mmap.mmap(descriptor, max(1, data.nbytes)) as memory:
        view = np.frombuffer(memory, dtype=np.uint8, count=data.nbytes)
        view[:] = data.reshape(-1)
        del view
    return descriptor


def shared(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    """The array behind a descriptor, which is closed; the memory lives as long as the array."""
    size = int(np.prod(shape))
    try:
        memory = mmap.mmap(descriptor, max(1, size))
    finally:
        os.close(descriptor)
    return np.frombuffer(memory, dtype=np.uint8, count=size).reshape(shape)


def _answer(task: Task) -> tuple[Any, np.ndarray | None]:
    if not task.decoder:
        index = task.index or probe(task.request)
        return (index, look(task.request.path)), None
    read = do(task)
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
    began = time.process_time()
    try:
        value, pictures = _answer(task)
    except Exception as error:  # every failure of one file is an answer; the other side makes a record of it
        send(channel, (_portable(error), time.process_time() - began))
        return
    if pictures is None:
        send(channel, (value, time.process_time() - began))
        return
    memory = share(pictures)
    try:
        send(channel, (value, time.process_time() - began), (memory,))
    finally:
        os.close(memory)


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
