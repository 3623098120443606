"""Prompts through a model's own forward, into its own cache; a video once for its questions where that is exact."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vstar_fast.engine.chunked_prefill import whole
from vstar_fast.engine.plain_caches import Dims, NoRows, copied, dims_between, dims_of, gathered, nbytes
from vstar_fast.engine.request import Request
from vstar_fast.kernels.linear import fast_linears
from vstar_fast.models.hf_cache import CACHE
from vstar_fast.models.modules import rounding
from vstar_fast.models.text_inputs import TextInputs

_said: set[str] = set()


@dataclass(slots=True, eq=False)
class Held:
    """A prompt in a cache of its own, of one row; `hidden` [H] of its last token. `cache` None: the model keeps none.

    `ids` [T] and `features` are what it was made of, to be read again where rows cannot be copied.
    """

    ids: torch.Tensor
    features: Any
    cache: Any
    positions: torch.Tensor
    next_position: int
    hidden: torch.Tensor
    front: int = 0
    """Tokens up to the end of the video; of text alone, the first half."""

    @property
    def length(self) -> int:
        """Tokens of the whole prompt."""
        return len(self.ids)

    @property
    def rows(self) -> int:
        """Rows of its position ids."""
        return len(self.positions)


class Nothing:
    """The store of a stack that has none."""

    nbytes = 0

    def clear(self) -> None:
        """Nothing to let go of."""


class PlainStack:
    """`lm` as it is: a prompt as one row of its body's own forward, then tokens behind the cache that it made."""

    def __init__(self, lm: Any) -> None:
        self.lm = lm
        self.store = Nothing()
        self.dims: Dims | None = {}
        """Of the model's caches, empty before they were looked at; None: their rows cannot be copied."""
        self._sizes: dict[int, int] = {}
        """Tokens of the shortest and the longest prompt so far -> bytes of their caches."""
        self._continues: bool | None = None

    most_prompts = 1 << 62

    def look(self) -> None:
        """Nothing: the model's own forward knows its layers."""

    def admit(self, _: int) -> None:
        """Any length, as the model's own forward."""

    @property
    def text_model(self) -> Any:
        """The decoder stack."""
        return self.lm.text_model

    def read(self, ids: torch.Tensor, features: Any, last: int = 1) -> tuple[Held, torch.Tensor]:
        """A prompt's row of ids [T], and the hidden states [last, H] of its last tokens."""
        inputs = self.lm.row_inputs(ids, features)
        try:
            with _watched(self.text_model) as seen, fast_linears(half=self.lm.mixed):
                self.lm.body(**inputs, use_cache=True)
        finally:
            self.lm.forget_positions()
        call, out = seen
        given = TextInputs(torch.empty(0), self._positions(call.get("position_ids"), len(ids)))
        hidden = out[0][0, -last:].clone()  # not a view of the whole prompt's
        cache = out.get(CACHE)
        if cache is not None:
            self._sizes[len(ids)] = nbytes(cache)
            self._sizes = {n: self._sizes[n] for n in (min(self._sizes), max(self._sizes))}
        return Held(ids, features, cache, given.position_ids, given.next_position, hidden[-1]), hidden

    def row_bytes(self, tokens: int) -> float:
        """About how many bytes a row of so many tokens takes, states that do not grow among them; 0 before any."""
        if not self._sizes:
            return 0.0
        (few, small), (many, large) = self._sizes.items() if len(self._sizes) > 1 else [(0, 0), *self._sizes.items()]
        return small + (tokens - few) * (large - small) / (many - few)

    def _positions(self, given: torch.Tensor | None, tokens: int) -> torch.Tensor:
        """Positions [R, T] that the text stack was called with for one row."""
        if given is None:
            return torch.arange(tokens, device=self.lm.device).expand(getattr(self.lm, "position_rows", 1), -1)
        return given if given.ndim == 2 else given[:, 0]

    def behind(self, cache: Any, ids: torch.Tensor, first: Sequence[int], rows: int) -> torch.Tensor:
        """Hidden states [B, n, H] of tokens ids [B, n] behind a cache of B rows, that grows; `first` positions."""
        device = self.lm.device
        positions = torch.tensor(first, device=device)[:, None] + torch.arange(ids.shape[1], device=device)
        positions = positions if rows == 1 else positions.expand(rows, *positions.shape)
        with fast_linears(half=self.lm.mixed):
            out = self.text_model(
                input_ids=self.lm.as_read(ids), position_ids=positions, use_cache=True, **{CACHE: cache}
            )
        hidden: torch.Tensor = out[0]
        return hidden

    def gathered(self, parts: Sequence[tuple[Any, Sequence[int]]], rows: int) -> Any:
        """A cache of the rows named of each; the first has `rows` rows. Raises NoRows where there can be none."""
        if self.dims is None:
            raise NoRows("rows of this model's cache cannot be copied")
        try:
            return gathered(parts, self.dims)
        except NoRows:
            self.dims |= self._learnt(parts[0][0], rows)
            return gathered(parts, self.dims)

    def _learnt(self, cache: Any, rows: int) -> Dims:
        """Where rows stand, at first from two calls of the text stack; what shows later only, from this cache."""
        try:
            return dims_of(cache, rows) if self.dims else self._probed()
        except NoRows as error:
            self.dims = None
            name = type(self.text_model).__name__
            _say(f"{name} reads a prompt once for each answer: {error}")
            raise

    def _probed(self) -> Dims:
        ids = torch.arange(1, 4, device=self.lm.device)
        made = [self.text_model(input_ids=ids.expand(n, -1), use_cache=True).get(CACHE) for n in (1, 2)]
        return dims_between(*made)

    def continues(self, ids: torch.Tensor, features: Any, cut: int) -> bool:
        """Whether tokens from `cut` on, several at once behind the cache of those before, are what the whole row gives.

        Tried on the first row that has two such tokens: masks over a whole prompt, positions that hang on what follows
        and states that one token at a time goes into do not allow it.
        """
        if self._continues is None and 0 < cut < len(ids) - 1:
            entire, wanted = self.read(ids, features, len(ids) - cut)
            front, _ = self.read(ids[:cut], features)
            self._continues = front.cache is not None and self._same(entire, front, wanted, cut)
            if not self._continues:
                name = type(self.text_model).__name__
                _say(f"{name} reads a video anew for each question: tokens behind its cache give something else")
        return bool(self._continues)

    def _same(self, entire: Held, front: Held, wanted: torch.Tensor, cut: int) -> bool:
        count = len(wanted)
        counted = torch.arange(front.next_position, front.next_position + count, device=entire.positions.device)
        if not bool((entire.positions[:, cut:] == counted).all()):
            return False
        found = self.behind(front.cache, entire.ids[None, cut:], [front.next_position], front.rows)[0]
        error = (found - wanted).float().norm() / wanted.float().norm()
        return bool(error < rounding(self.lm))


def _say(what: str) -> None:
    """Warn of what makes a run slower, once."""
    if what not in _said:
        _said.add(what)
        logging.getLogger(__name__).warning(what)


@contextlib.contextmanager
def _watched(module: torch.nn.Module) -> Iterator[list[Any]]:
    """Holds the arguments by name and the output of a module's last call inside."""
    seen: list[Any] = []

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        names = inspect.signature(module.forward).parameters
        seen[:] = [{**dict(zip(names, args, strict=False)), **kwargs}, out]

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def front_of(request: Request) -> torch.Tensor:
    """The tokens of a prompt up to the end of its video."""
    return torch.cat([request.head, *([] if request.features is None else [request.features.ids])])


def ids_of(request: Request) -> torch.Tensor:
    """All tokens of a prompt."""
    return torch.cat([front_of(request), request.tail])


class PlainPrompts:
    """Reads requests' prompts; the face of `engine.prompts.Prompts`."""

    def __init__(self, stack: PlainStack) -> None:
        self.stack = stack
        self.tokens = 0
        """Prompt tokens that went through the text stack."""
        self._videos: dict[int, Held] = {}

    def clear(self) -> None:
        """Forget every prompt."""
        self._videos.clear()

    def put(self, requests: Sequence[Request], later: Iterable[Request] = ()) -> list[Held]:
        """Read requests' prompts; `later` ones tell which videos will be asked about again."""
        return whole(self.arriving(requests, later))

    def arriving(self, requests: Sequence[Request], later: Iterable[Request] = ()) -> Generator[int, None, list[Held]]:
        """As `put`; stops between two prompts and says how many tokens the first one took."""
        asked = Counter(id(r.features) for r in (*requests, *later) if r.features is not None)
        found: list[Held] = []
        for request in requests:
            if found:
                yield found[-1].length
            held = self._one(request, asked[id(request.features)] > 1)
            held.front = held.length // 2 if request.features is None else len(front_of(request))
            found.append(held)
        return found

    def let_go(self, _: Held, wanted: Iterable[Request] = ()) -> None:
        """Only the videos that `wanted` ones are about stay."""
        ids = {id(r.features) for r in wanted}
        self._videos = {key: held for key, held in self._videos.items() if key in ids}

    def _one(self, request: Request, shared: bool) -> Held:
        front, ids = front_of(request), ids_of(request)
        known = id(request.features) in self._videos
        if not (shared or known) or not self.stack.continues(ids, request.features, len(front)):
            self.tokens += len(ids)
            return self.stack.read(ids, request.features)[0]
        if not known:
            self._videos[id(request.features)], _ = self.stack.read(front, request.features)
            self.tokens += len(front)
        return self._behind(self._videos[id(request.features)], ids)

    def _behind(self, video: Held, ids: torch.Tensor) -> Held:
        """The rest of a row behind a copy of its video."""
        cache, count = copied(video.cache), len(ids) - video.length
        hidden = self.stack.behind(cache, ids[None, video.length :], [video.next_position], video.rows)
        self.tokens += count
        return Held(ids, video.features, cache, video.positions, video.next_position + count, hidden[0, -1])
