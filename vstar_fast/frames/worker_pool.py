"""Processes that decode, one file at a time each; one that crashes or hangs is killed and started again."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

from vstar_fast.clip_errors import Unusable
from vstar_fast.errors import BackendError
from vstar_fast.frames import worker
from vstar_fast.frames.job import Task

START_S = 120.0
GRACE_S = 2.0
"""What a worker gets beyond a file's time limit to stop by itself."""


class Worker:
    """One decoding process. It ends with this one, since its channel does."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        code = f"from vstar_fast.frames.worker import main; main({theirs.fileno()})"
        command = [sys.executable, "-c", code]
        paths = os.pathsep.join(p for p in sys.path if p)
        self._process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths}
        )
        theirs.close()
        self._channel = ours
        self._await_start()

    def _await_start(self) -> None:
        """A file's time limit does not include the start of its worker."""
        self._channel.settimeout(START_S)
        try:
            worker.receive(self._channel)
        except (OSError, EOFError) as error:
            why = f"{error}; {self._died()}"
            raise BackendError(
                f"no decoding process starts ({why}); set frames.isolate = false to do without"
            ) from None

    def ask(self, task: Task) -> tuple[Any, float]:
        """The answer to `task` and the CPU seconds it took. Raises what the task raised; Unusable when it died."""
        try:
            self._channel.settimeout(None if task.limit_s == float("inf") else task.limit_s + GRACE_S)
            worker.send(self._channel, task)
            (value, cpu_s), descriptors = worker.receive(self._channel)
        except TimeoutError:
            self.close()
            raise Unusable("too_slow", f"took longer than {task.limit_s:g} s and was stopped") from None
        except (OSError, EOFError):
            raise Unusable("decoder_crashed", f"the decoder died on it ({self._died()})") from None
        if isinstance(value, Exception):
            raise value
        return worker.unpack(value, descriptors), cpu_s

    def _died(self) -> str:
        self.close()
        code = self._process.returncode
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"

    @property
    def alive(self) -> bool:
        """Whether it can take another task."""
        return self._channel.fileno() >= 0 and self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Workers:
    """Idle workers of this process, started as they are needed and used again."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self._pid = os.getpid()

    def ask(self, task: Task) -> tuple[Any, float]:
        """See `Worker.ask`; takes an idle worker or starts one."""
        try:
            taken = self._idle.get_nowait()
        except queue.Empty:
            taken = Worker()
        if not taken.alive:
            taken = Worker()
        try:
            return taken.ask(task)
        finally:
            if taken.alive:
                self._idle.put(taken)

    def close(self) -> None:
        """End the idle workers."""
        while os.getpid() == self._pid:
            try:
                self._idle.get_nowait().close()
            except queue.Empty:
                return


_lock = threading.Lock()
_shared: Workers | None = None


def workers() -> Workers:
    """The workers all readers of this process share."""
    global _shared
    with _lock:
        if _shared is None or _shared._pid != os.getpid():
            _shared = Workers()
            atexit.register(_shared.close)
        return _shared
