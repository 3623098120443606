"""`Crew`: several schedulers over one model at the same time, each in a thread with its share of a CPU's cores.

Between the products of a step everything runs on one core, products of a few rows on hardly more. Steps of different
batches have nothing to wait for in each other.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import enum
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain, islice
from typing import Any

import torch

from vstar_fast import backends
from vstar_fast.engine import ways
from vstar_fast.engine.request import Answer, Counts, Request
from vstar_fast.engine.scheduler import LOOKAHEAD, Scheduler
from vstar_fast.errors import ConfigError, ModelError
from vstar_fast.kernels.linear import packed_linears
from vstar_fast.models import memory
from vstar_fast.models.model_lock import meanwhile
from vstar_fast.models.replica import replicas
from vstar_fast.openmp import settable, threads_here

MOST_WORKERS = 8
"""Each worker reads all weights for its own rows."""
ROWS = {"cpu": 64, "cuda": 256}
"""Answers drawn at once: a GPU reads all weights in a step, and that takes as long for one row as for a few hundred."""
WORTH = 16
"""Answers that a worker of its own, and weights put in order for it, are worth."""
HELD = 2 * LOOKAHEAD
"""Requests of a worker that are dealt to it and not taken yet."""

Done = tuple[Request, list[Answer]]


class _Word(enum.Enum):
    """What a worker tells beside answers and errors."""

    ROOM = "it has taken a request"
    ENDED = "it has nothing more to do"


def workers_for(lm: Any) -> int:
    """How many schedulers work at the same time: on a CPU up to a thread each, on a GPU one.

    One as well where weights are not plain tensors in one place, what a call does hangs on the thread it is made in, or
    threads cannot be told how many more to start.
    """
    places = set(getattr(lm.model, "hf_device_map", {}).values())
    plain = len(places) < 2 and not getattr(lm.model, "is_quantized", False)
    if lm.device.type != "cpu" or not plain or torch.is_autocast_enabled("cpu"):
        return 1
    return min(MOST_WORKERS, torch.get_num_threads()) if settable() else 1


class Crew:
    """`Scheduler` several times over; `max_rows` of each worker, `memory_bytes` of all together, see there.

    Videos are dealt out in turn, with their requests, so that the batches, and with them the rounding, are the same
    every time. `workers`: how many; None: `workers_for`. With one, the caller's thread does it all. `max_rows`: None
    is 64 on a CPU and 256 on a GPU. `engine`: `packed`, `plain`, or `auto`, see `ways.choose`.
    """

    def __init__(
        self,
        lm: Any,
        *,
        max_rows: int | None = None,
        memory_bytes: int | None = None,
        workers: int | None = None,
        engine: str = "auto",
    ) -> None:
        self.workers = workers_for(lm) if workers is None else workers
        if self.workers < 1:
            raise ConfigError(f"workers is {self.workers}; at least 1 scheduler must work")
        self._room = memory.free_bytes(lm.device) // 2 if memory_bytes is None else memory_bytes
        self.lm = lm
        self.way = ways.chosen(lm, engine)
        rows = ROWS[lm.device.type] if max_rows is None else max_rows
        self._made = partial(ways.WAYS[self.way.name], max_rows=rows, memory_bytes=self._room // self.workers)
        self.first = self._made(lm)
        self._others = Counts()
        self._busy = threading.Lock()

    @property
    def counts(self) -> Counts:
        """What all workers did so far; of the workers but the first, in runs that are at their end."""
        return _sum(self.first.counts, self._others)

    def run(self, requests: Iterable[Request]) -> Generator[Done]:
        """Requests with their answers, as they get done. `requests` are drawn from in the caller's thread.

        One run at a time; a run may be left with `close()`. What breaks a worker is raised here, and ends the others.
        Weights must not change while it lasts, not between two answers either: copies of them may be in use.
        Where the model cannot be copied, or the system gives no thread, a warning says so and one does it all from
        then on. Inside an autocast, which holds for the caller's thread alone, one does it all as well.
        """
        if not self._busy.acquire(blocking=False):
            raise ModelError("this crew has a run that is not at its end; finish or close() it, or make another one")
        backends.ran("generation", self.way.name, why=self.way.reason)
        try:
            yield from self._run(iter(requests))
        finally:
            self._busy.release()

    def _run(self, source: Iterator[Request]) -> Iterator[Done]:
        seen, answers, videos = _front(source, self.workers)
        workers = 1 if torch.is_autocast_enabled("cpu") else min(self.workers, answers // WORTH, videos)
        requests = chain(seen, source)
        with meanwhile(self.lm.text_model, packed(self.lm)) if answers >= WORTH else contextlib.nullcontext():
            yield from self._together(requests, workers) if workers > 1 else self.first.run(requests)

    def _together(self, requests: Iterable[Request], workers: int) -> Iterator[Done]:
        with contextlib.ExitStack() as stack:
            deal = self._begun(stack, workers)
            yield from self.first.run(requests) if deal is None else deal.all(requests)

    def _begun(self, stack: contextlib.ExitStack, workers: int) -> _Deal | None:
        """Workers that wait for requests, until `stack` is left; None where there can be no more than one."""
        try:
            made = stack.enter_context(meanwhile(self.lm.text_model, replicas(self.lm, workers - 1)))
            others = [self._made(lm) for lm in made]
            deal = _Deal([_Worker(s) for s in (self.first, *others)], max(1, torch.get_num_threads() // workers))
            stack.callback(self._ended, deal, others)
            deal.start()
        except ModelError as error:
            logging.getLogger(__name__).warning("answers are drawn by one worker, not %d: %s", workers, error)
            stack.close()
            self.workers, self.first.memory_bytes = 1, self._room
            return None
        return deal

    def _ended(self, deal: _Deal, others: list[Scheduler]) -> None:
        deal.end()
        for scheduler in others:
            self._others = _sum(self._others, scheduler.counts)


def _front(source: Iterator[Request], workers: int) -> tuple[list[Request], int, int]:
    """(requests from the front, their answers, their videos): enough for so many workers, or all they look at."""
    seen: list[Request] = []
    answers, videos = 0, set()
    for request in islice(source, LOOKAHEAD * workers):
        seen.append(request)
        answers += len(request.seeds)
        videos.add(id(request if request.features is None else request.features))
        if answers >= WORTH * workers and len(videos) >= workers:
            break
    return seen, answers, len(videos)


@contextlib.contextmanager
def packed(lm: Any) -> Iterator[None]:
    """`packed_linears` of what a step calls, if there is memory for the copies."""
    parts = ((lm.text_model, lm.mixed), (lm.head, False))
    weights = {id(p): p.nbytes for module, _ in parts for p in module.parameters()}
    if lm.device.type != "cpu" or not memory.room_for_copies(sum(weights.values()), lm.device):
        yield
        return
    with contextlib.ExitStack() as stack:
        for module, half in parts:
            stack.enter_context(packed_linears([module], half=half))
        yield


class _Worker:
    """A scheduler, and the requests dealt to it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.dealt: queue.SimpleQueue[Request | None] = queue.SimpleQueue()


@dataclass
class _Video:
    """Where the requests about a video go. `features` are held so that their id stays their own."""

    features: Any
    worker: int
    requests: int = 0


class _Deal:
    """One run of a crew."""

    def __init__(self, workers: list[_Worker], threads: int) -> None:
        self._workers, self._share = workers, threads
        self._told: queue.SimpleQueue[Done | BaseException | _Word] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads = [self._thread(worker) for worker in workers]
        self._next = 0
        self._worker_of: OrderedDict[int, _Video] = OrderedDict()

    def start(self) -> None:
        """Have the workers wait for requests. Raises ModelError where the system gives no thread."""
        atexit.register(self.end)  # a thread that still works while the interpreter ends would abort the process
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            raise ModelError(f"the system gives no further thread ({error})") from error

    def all(self, requests: Iterable[Request]) -> Iterator[Done]:
        """Deal requests out and give back what gets done, until everything is."""
        working, left = len(self._workers), True
        source = iter(requests)
        request = _drawn(source)
        while working:
            while request is not None and self._takes(request):
                request = _drawn(source)
            if request is None and left:
                left = False
                self._nothing_more()
            told = self._told.get()
            if isinstance(told, BaseException):
                raise told
            if told is _Word.ENDED:
                working -= 1
            elif told is not _Word.ROOM:
                yield told

    def end(self) -> None:
        """Have all workers stop where they are."""
        atexit.unregister(self.end)
        self._stop.set()
        self._nothing_more()
        if threading.current_thread() in self._threads:  # the collector let go of the run there, which cannot wait
            return
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        for worker in self._workers:
            worker.scheduler.clock = time.process_time

    def _takes(self, request: Request) -> bool:
        """Whether the worker that the request belongs to has room; it is dealt to it then."""
        video = self._worker_of.get(id(request.features))
        worker = self._next if video is None else video.worker
        if self._workers[worker].dealt.qsize() >= HELD:
            return False
        if video is None:
            video = _Video(request.features, worker)
            self._next = (worker + 1) % len(self._workers)
        self._remember(video)
        self._workers[worker].dealt.put(request)
        return True

    def _remember(self, video: _Video) -> None:
        """The next requests about a video go where this one goes, LOOKAHEAD of them: more are worth a second worker."""
        video.requests += 1
        self._worker_of[id(video.features)] = video
        self._worker_of.move_to_end(id(video.features))
        if video.features is None or video.requests == LOOKAHEAD:
            del self._worker_of[id(video.features)]
        while len(self._worker_of) > HELD:
            self._worker_of.popitem(last=False)

    def _nothing_more(self) -> None:
        for worker in self._workers:
            worker.dealt.put(None)

    def _thread(self, worker: _Worker) -> threading.Thread:
        context = contextvars.copy_context()
        return threading.Thread(target=context.run, args=(self._work, worker), name="answers", daemon=True)

    def _work(self, worker: _Worker) -> None:
        threads_here(self._share)
        worker.scheduler.clock = time.thread_time
        try:
            with contextlib.closing(worker.scheduler.run(self._given(worker), self._stop)) as found:
                for done in found:
                    self._told.put(done)
        except BaseException as error:  # raised in the caller's thread
            self._told.put(error)
        self._told.put(_Word.ENDED)

    def _given(self, worker: _Worker) -> Iterator[Request]:
        while (request := worker.dealt.get()) is not None:
            self._told.put(_Word.ROOM)
            yield request


def _drawn(source: Iterator[Request]) -> Request | None:
    """The next request. What makes it works beside the workers: a team of threads would wait for their cores."""
    threads = torch.get_num_threads()
    threads_here(1)
    try:
        return next(source, None)
    finally:
        threads_here(threads)


def _sum(one: Counts, other: Counts) -> Counts:
    seconds = {kind: one.seconds.get(kind, 0.0) + other.seconds.get(kind, 0.0) for kind in one.seconds | other.seconds}
    numbers = [f.name for f in fields(Counts) if f.name != "seconds"]
    return Counts(**{name: getattr(one, name) + getattr(other, name) for name in numbers}, seconds=seconds)
