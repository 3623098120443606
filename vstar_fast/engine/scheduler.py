"""`Scheduler`: requests in as rows get free, a step of the model for all rows, finished requests out.

A video's tokens go through the model once, a question once behind them, and its answers fork from there: what they
share is stored once and read once a step. Answers that end leave at once, and further questions take their place.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from vstar_fast.engine import graphs
from vstar_fast.engine.batch import Batch, Flight, Group, Row
from vstar_fast.engine.chunked_prefill import BETWEEN_STEPS
from vstar_fast.engine.prompts import Prompts
from vstar_fast.engine.request import Answer, Counts, Request
from vstar_fast.engine.stack import Stack
from vstar_fast.errors import ConfigError, ModelError, out_of_memory
from vstar_fast.kernels.prefix_attention import threshold
from vstar_fast.models import memory
from vstar_fast.models.model_lock import alone
from vstar_fast.models.modules import dropping, evaluating

LOOKAHEAD = 64
"""Requests that are looked at before their turn, to see which videos will be asked about again."""
UPLOADS = 2
"""Requests whose videos are on their way to a GPU while it decodes."""
REFILL = 8
"""New questions are taken in when a REFILLth of the rows is free, so that they come several at a time."""


class Scheduler:
    """Takes requests in as rows get free, steps, gives finished requests back.

    `lm`: a `VideoLM`, or a `TextLM`. `max_rows`: answers drawn at once; `memory_bytes`: for keys and values, default
    half of what is free. `plain_below`: prompts of at most so many tokens are copied to their answers, which then have
    one part to attend to, not two; default `threshold.plain_below`. `skip_forced`: tokens that a grammar leaves no
    choice about take no step of their own; False is there to measure what that saves. An answer depends on its request
    alone, on none of these. Threads may have schedulers of their own over one model; they take turns.
    """

    def __init__(
        self, lm: Any, *, max_rows: int = 64, memory_bytes: int | None = None, plain_below: int | None = None,
        skip_forced: bool = True,
    ) -> None:  # fmt: skip
        if max_rows < 1:
            raise ConfigError(f"max_rows is {max_rows}; at least 1 answer must be drawn at once")
        self.lm = lm
        if lm.device.type == "cpu":
            memory.keep_freed()
        self.counts = Counts()
        self._rows = memory.RowLimit(max_rows)
        self.memory_bytes = memory.free_bytes(lm.device) // 2 if memory_bytes is None else memory_bytes
        self._begin(plain_below, skip_forced)
        self._inbound: list[Flight] = []
        self._arriving: Iterator[int] | None = None
        self._busy = threading.Lock()
        self._dropping: list[torch.nn.Module] = []
        self.clock: Callable[[], float] = time.process_time
        """CPU seconds, for `counts.seconds`."""

    def _begin(self, plain_below: int | None, skip_forced: bool) -> None:
        self.stack: Any = Stack(self.lm)
        self._prompts: Any = Prompts(self.stack)
        short = threshold.plain_below(self.lm.device) if plain_below is None else plain_below
        self._batch: Any = Batch(self.stack, self.lm.eos_ids, self.counts, short, skip_forced)
        self._graphs = graphs.made_for(self._batch)

    @property
    def max_rows(self) -> int:
        """Answers drawn at once, as of now: fewer than asked for after memory ran out, more again later."""
        return self._rows.now

    def run(
        self, requests: Iterable[Request], stop: threading.Event | None = None
    ) -> Generator[tuple[Request, list[Answer]]]:
        """Requests with their answers, as they get done. One run at a time; a run may be left with `close()`, or ended
        by another thread with `stop`, at the next step."""
        if not self._busy.acquire(blocking=False):
            raise ModelError(
                "this scheduler has a run that is not at its end; finish or close() it, or make another one over the "
                "same model"
            )
        source = iter(requests)
        waiting: deque[Flight] = deque()
        try:
            self.stack.look()
            self._dropping = dropping(self.lm.model)
            while stop is None or not stop.is_set():
                self._look_ahead(source, waiting)
                if not waiting and not len(self._batch) and self._arriving is None:
                    return
                for flight in self._turn(waiting):
                    yield flight.request, flight.answers
        finally:
            self.clear()
            self._busy.release()

    def clear(self) -> None:
        """Let go of all prompts, rows and their memory."""
        if self._graphs is not None:
            self._graphs.clear()
        self._arriving, self._inbound = None, []
        self._batch.clear()
        self._prompts.clear()
        self.stack.store.clear()

    def _look_ahead(self, source: Iterator[Request], waiting: deque[Flight]) -> None:
        while len(waiting) < LOOKAHEAD:
            request = next(source, None)
            if request is None:
                return
            answers = [Answer(n, seed, finish="") for n, seed in enumerate(request.seeds)]
            flight = Flight(request, answers, list(answers))
            longest = max((request.settings_of(a.sample).max_new_tokens for a in answers), default=0)
            self.stack.admit(prompt_tokens(flight) + longest)
            waiting.append(flight)

    @torch.inference_mode()
    def _turn(self, waiting: deque[Flight]) -> list[Flight]:
        """Take in what fits, one step; the requests that got done. On out-of-memory, half the rows, all anew."""
        done: list[Flight] = []
        try:
            with alone(self.stack.text_model), evaluating(self.lm.model, self._dropping):
                self._advance(waiting, done)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self._halve(waiting, error)
        return done

    def _advance(self, waiting: deque[Flight], done: list[Flight]) -> None:
        """Requests that get done join `done` at once: what comes behind may run out of memory."""
        with self._clock("prefill"):
            done += _nothing_to_draw(waiting)
            self._take_in(waiting)
            done += self._let_go(waiting)
        if len(self._batch):
            for flight in islice(waiting, UPLOADS):
                self.lm.expect(flight.request.features)
            with self._clock("decode"):
                (self._graphs or self._batch).step()
            if self._rows.went_well(len(self._batch)):
                self.counts.regrown += 1
                logging.getLogger(__name__).info("memory has sufficed; %d answers at once again", self.max_rows)
            done += self._let_go(waiting)

    def _take_in(self, waiting: deque[Flight]) -> None:
        """Prompts of requests from the front of `waiting`, piece by piece while answers are in flight."""
        self._arriving = self._arriving or self._picked(waiting)
        room = BETWEEN_STEPS[self.lm.device.type] if len(self._batch) else 1 << 62
        for tokens in self._arriving or ():
            room -= tokens
            if room <= 0:
                return
        self._arriving = None

    def _picked(self, waiting: deque[Flight]) -> Iterator[int] | None:
        """The arrival of requests from the front of `waiting`, as many as fit."""
        taken = len(self._batch)
        if taken and self.max_rows - taken < max(1, self.max_rows // REFILL):
            return None
        picked: list[tuple[Flight, list[Answer]]] = []
        reserved = sum(g.reserved for g in self._batch.groups)
        room = BETWEEN_STEPS[self.lm.device.type] if taken else 1 << 62
        while waiting and (room > 0 or not picked):
            flight = waiting[0]
            n, need = len(flight.todo), self._need(flight)
            fits = taken + n <= self.max_rows and reserved + need <= self.memory_bytes
            if not fits and (taken or picked):
                break
            answers = flight.todo[: self.max_rows]
            flight.todo = flight.todo[self.max_rows :]
            picked.append((flight, answers))
            taken, reserved = taken + len(answers), reserved + need
            room -= prompt_tokens(flight)
            if flight.todo:
                break
            waiting.popleft()
        if not picked:
            return None
        for flight, answers in picked:
            flight.open += len(answers)
        self._inbound = [flight for flight, _ in picked]
        return self._arrival(picked, [f.request for f in waiting])

    def _arrival(self, picked: list[tuple[Flight, list[Answer]]], later: list[Request]) -> Iterator[int]:
        """Prompts go in, then their first tokens are drawn; yields the tokens of each call but the last."""
        prefixes = yield from self._prompts.arriving([f.request for f, _ in picked], later)
        groups = []
        for (flight, answers), prefix in zip(picked, prefixes, strict=True):
            rows = [Row(flight, answer, prefix.next_position, prefix.length) for answer in answers]
            groups.append(Group(flight, prefix, rows, self._need(flight, answers)))
        self._batch.join(groups)
        self._inbound = []
        self.counts.prefilled = self._prompts.tokens

    def _need(self, flight: Flight, drawn: list[Answer] | None = None) -> int:
        """Bytes of keys, values and states that a request may come to hold."""
        drawn = flight.todo if drawn is None else drawn
        answers = sum(flight.request.settings_of(a.sample).max_new_tokens for a in drawn)
        states = (1 + len(drawn)) * self.stack.mixers.row_bytes
        return (prompt_tokens(flight) + answers) * self.stack.store.shape.token_bytes + states

    def _let_go(self, waiting: deque[Flight]) -> list[Flight]:
        """Finished rows leave; the requests that are done with it."""
        done = []
        for group in self._batch.leave():
            self._prompts.let_go(group.prefix, [f.request for f in (*waiting, *self._inbound)])
            if group.flight.done:
                done.append(group.flight)
        return done

    def _halve(self, waiting: deque[Flight], error: BaseException) -> None:
        flights = list(dict.fromkeys([*(g.flight for g in self._batch.groups), *self._inbound]))
        flights = [f for f in flights if not f.done]
        rows = max(len(self._batch), min(self.max_rows, sum(len(f.answers) for f in flights)))
        if rows <= 1:
            raise ModelError(
                f"memory ran out with a single answer in flight ({error}); use a smaller model or dtype, fewer frames, "
                "or a lower max_new_tokens"
            ) from error
        self._rows.halve(rows)
        self.counts.halved += 1
        logging.getLogger(__name__).warning(
            "memory ran out with %d answers in flight; going on with %d, nothing is lost", rows, self.max_rows
        )
        for flight in flights:
            flight.restart()
        for flight in reversed(flights):
            if flight not in waiting:
                waiting.appendleft(flight)
        self.clear()
        memory.release(self.lm.device)

    def _clock(self, name: str) -> Any:
        return _Clock(self.counts.seconds, name, self.clock)


class _Clock:
    """Adds the CPU seconds spent inside to `seconds[name]`."""

    def __init__(self, seconds: dict[str, float], name: str, clock: Callable[[], float]) -> None:
        self.seconds, self.name, self.clock = seconds, name, clock

    def __enter__(self) -> None:
        self.began = self.clock()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + self.clock() - self.began


def prompt_tokens(flight: Flight) -> int:
    """Tokens of a request's prompt."""
    r = flight.request
    return len(r.head) + len(r.tail) + (0 if r.features is None else len(r.features.ids))


def _nothing_to_draw(waiting: deque[Flight]) -> list[Flight]:
    """Take requests for no answers, and those whose last answer had ended when memory ran out, off the queue."""
    done = [flight for flight in waiting if not flight.todo]
    for flight in done:
        waiting.remove(flight)
    return done
