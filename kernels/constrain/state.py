"""`DecodeState`: where each row of a batch stands in its grammar; all of it in tensors on one device."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from vstar_fast.kernels.given import check_rows, shown

from vstar_fast import backends
from vstar_fast.errors import ConstrainError

from . import checks, library
from .backend import DONE, FREE, LOST, UNKNOWN_FILL, UNLIMITED, Draw, Rows, load
from .grammar import Grammar

NORMAL = torch.inference_mode(False)
"""A state that is made in inference mode may move outside of it, and the other way round."""

Budget = int | Sequence[int] | torch.Tensor | None


class DecodeState:
    """B rows under one grammar, or one grammar a row (None: a row without limits).

    Args:
        grammars: a Grammar, or a list of B of them (repeated ones are stored once).
        batch: B, when one grammar is given.
        device: where the logits are.
        max_new_tokens: tokens a row may still take, for all or for each row; None: no limit. An answer is then
            never cut: only tokens that leave enough budget to finish are legal. The end-of-sequence token is not
            counted as needed. ConstrainError when it is below a grammar's shortest answer.
        backend: "auto", "cpp", "cuda" or "reference".

    `state`, `remaining` and `step` [B] int32 keep their addresses, so that CUDA graphs may replay every method
    except `fill_bitmask` into a new tensor.
    """

    @NORMAL
    def __init__(
        self,
        grammars: Grammar | Sequence[Grammar | None],
        batch: int | None = None,
        device: torch.device | str = "cpu",
        *,
        max_new_tokens: Budget = None,
        backend: str = "auto",
    ) -> None:
        rows = _one_a_row(grammars, batch)
        self.grammars: tuple[Grammar | None, ...] = tuple(rows)
        self.device = torch.device(device)
        self.backend = backends.choose("constrain", self.device, backend).name
        self._run = load(self.backend)
        host, starts = _arena(rows)
        known = [grammars] if isinstance(grammars, Grammar) else [g for g in rows if g]
        if rows and not known:
            raise ConstrainError("no row has a grammar, so there is nothing to constrain")
        self.vocabulary = known[0].vocab.logits_size if known else 0
        self.words = (self.vocabulary + 31) // 32
        self._budget = _budgets(max_new_tokens, rows).to(self.device)
        self._starts = torch.tensor(starts, dtype=torch.int32, device="cpu").to(self.device)
        made = [torch.zeros(len(rows), dtype=torch.int32, device=self.device) for _ in range(3)]
        self.state, self.remaining, self.step = made
        self._rows = Rows(host, host.to(self.device), *made)
        self._tickets = torch.zeros_like(self.state)
        self._bits: tuple[torch.Tensor, torch.Tensor] | None = None
        self.reset()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _run=load(state["backend"]))

    def __len__(self) -> int:
        return self.state.shape[0]

    def __repr__(self) -> str:
        return f"DecodeState({len(self)} rows, {self.vocabulary} columns, {self.backend} on {self.device})"

    def reset(self) -> None:
        """Every row back to its start."""
        self.state.copy_(self._starts)
        self.remaining.copy_(self._budget)
        self.step.zero_()

    def restart_(self, rows: torch.Tensor) -> None:
        """Rows where the mask [B] bool is set back to their start; nothing is read on the host."""
        check_rows("rows", rows, self.state, ConstrainError, (torch.bool,))
        self.state.copy_(torch.where(rows, self._starts, self.state))
        self.remaining.copy_(torch.where(rows, self._budget, self.remaining))
        self.step.masked_fill_(rows, 0)

    @NORMAL
    def take(self, index: torch.Tensor) -> DecodeState:
        """A state of the rows index [R] int64 only, as they stand now; they go on by themselves."""
        if not isinstance(index, torch.Tensor) or index.dim() != 1:
            raise ConstrainError(f"index must be a tensor of int64 [R], not {shown(index)}")
        taken = copy.copy(self)
        taken.grammars = tuple(self.grammars[i] for i in index.tolist())
        named = ("state", "remaining", "step", "_starts", "_budget")
        for name in named:
            setattr(taken, name, getattr(self, name).index_select(0, index))
        taken._rows = self._rows._replace(state=taken.state, remaining=taken.remaining, step=taken.step)
        taken._tickets = torch.zeros_like(taken.state)
        taken._bits = None
        return taken

    @NORMAL
    def join(self, other: DecodeState) -> DecodeState:
        """A state with the rows of both, as they stand now, `other`'s behind; both under the same single grammar."""
        blocks = {g and g.block.data_ptr() for g in self.grammars + other.grammars}
        if len(blocks) != 1 or self.backend != other.backend:
            raise ConstrainError("only states of one and the same grammar on one backend can be joined")
        joined = copy.copy(self)
        joined.grammars = self.grammars + other.grammars
        for name in ("state", "remaining", "step", "_starts", "_budget"):
            setattr(joined, name, torch.cat([getattr(self, name), getattr(other, name)]))
        joined._rows = self._rows._replace(state=joined.state, remaining=joined.remaining, step=joined.step)
        joined._tickets = torch.zeros_like(joined.state)
        joined._bits = None
        return joined

    def mask_(self, logits: torch.Tensor) -> torch.Tensor:
        """Set logits [B, V] of tokens that are not legal to -inf, in place; the others keep their bits."""
        checks.check_logits(self, logits)
        if torch.compiler.is_compiling():
            library.mask_(*self._rows, logits, self.backend)
            return logits
        if len(self):
            self._run.mask(self._rows, logits)
        backends.ran("constrain", self.backend)
        return logits

    def advance_(self, tokens: torch.Tensor, *, strict: bool | None = None) -> None:
        """Move each row by its token [B] int64 or int32.

        A token that is not legal makes its row lost (`lost`): from then on only end-of-sequence is allowed.
        strict: then raise ConstrainError as well; default on the CPU, not possible on a GPU (nothing waits).
        """
        tokens = checks.check_tokens(self, tokens)
        strict = self.device.type == "cpu" if strict is None else strict
        if torch.compiler.is_compiling():
            library.advance_(*self._rows, tokens, strict, self.backend)
            return
        lost = self._run.advance(self._rows, tokens) if len(self) else 0
        backends.ran("constrain", self.backend)
        if strict:
            checks.check_lost(lost, self.state, tokens)

    def advance_mask_(self, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`advance_` by the tokens of the step before, then `mask_`: one call a step, on a GPU one launch."""
        fused = getattr(self._run, "advance_mask", None)
        if fused is None or torch.compiler.is_compiling():
            self.advance_(tokens)
            return self.mask_(logits)
        checks.check_logits(self, logits)
        tokens = checks.check_tokens(self, tokens)
        if len(self):
            fused(self._rows, logits, tokens, self._tickets)
        backends.ran("constrain", self.backend)
        return logits

    def sample_(
        self,
        logits: torch.Tensor,
        seeds: torch.Tensor,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a legal token for each row and move by it; reads only legal logits, and leaves them as they are.

        The draw is that of `vstar_fast.ops.sample` on masked logits at the row's own `step`: same seed, same
        token on every backend and in every batch. Top-p is cut by the same integers, so that it too is exact.

        Args:
            logits: [B, V] fp32, fp16 or bf16, any batch stride.
            seeds: [B] int64, one stream a row.
            temperature: 0 is greedy, else at least 1e-4. top_p, top_k: as in `sample`, among legal tokens.

        Returns:
            (ids [B] int64, logprobs [B] fp32): log-softmax over the legal tokens at temperature 1. A row whose
            legal logits are NaN, +inf or all -inf gets id -1 and stays where it is; on the CPU it is a ModelError.
        """
        checks.check_logits(self, logits)
        checks.check_draw(self, seeds, temperature, top_p, top_k)
        fixed = round(top_p * (1 << 62)) if temperature > 0 else 1 << 62
        scale = 0.0 if temperature == 0 else math.log2(math.e) / temperature
        kept = top_k if temperature > 0 else 0
        if torch.compiler.is_compiling():
            return library.sample_(*self._rows, logits, seeds, scale, fixed, kept, self.backend)
        ids = torch.full((len(self),), -1, dtype=torch.int64, device=self.device)
        logprobs = torch.full((len(self),), math.nan, dtype=torch.float32, device=self.device)
        if len(self):
            draw = Draw(seeds.contiguous(), ids, logprobs, scale, fixed, kept)
            self._run.sample(self._rows, logits, draw)
        backends.ran("constrain", self.backend)
        checks.check_drawn(ids)
        return ids, logprobs

    def forced(self, most: int = 64, *, advance: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens that must follow: (tokens [B, most] int64, -1 beyond the length; lengths [B] int32).

        A token is forced when it is the only legal one. The rows move by theirs unless `advance` is False.
        """
        if isinstance(most, float) or most < 1:
            raise ConstrainError(f"forced(most={most}); give a whole number, at least 1")
        if torch.compiler.is_compiling():
            return library.forced_(*self._rows, most, advance, self.backend)
        tokens = torch.full((len(self), most), -1, dtype=torch.int64, device=self.device)
        lengths = torch.zeros(len(self), dtype=torch.int32, device=self.device)
        if len(self):
            self._run.forced(self._rows, tokens, lengths, advance)
        backends.ran("constrain", self.backend)
        return tokens, lengths

    def fill_bitmask(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """Legal tokens as bits, the layout of xgrammar and vLLM: bit t % 32 of word t // 32, [B, ceil(V / 32)] int32.

        Without `out`, a buffer of this state is updated and returned: only words that changed are touched, so
        read it before the next call and do not write to it.
        """
        if torch.compiler.is_compiling():
            out = self.state.new_empty((len(self), self.words)) if out is None else out
            checks.check_bits(self, out)
            library.fill(*self._rows, out, self.backend)
            return out
        filled = None
        if out is None:
            if self._bits is None:
                shape = (len(self), self.words)
                made = torch.zeros(shape, dtype=torch.int32, device=self.device)
                self._bits = made, torch.full((len(self),), UNKNOWN_FILL, dtype=torch.int32, device=self.device)
            out, filled = self._bits
        else:
            checks.check_bits(self, out)
        if len(self):
            self._run.fill(self._rows, out, filled)
        backends.ran("constrain", self.backend)
        return out

    def reorder(self, index: torch.Tensor) -> None:
        """Row i takes the place of row index[i], as when beams are chosen; index [B] int64 or int32."""
        check_rows("index", index, self.state, ConstrainError, (torch.int64, torch.int32))
        if index.device.type == "cpu" and len(self) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise ConstrainError(f"index has {int(index.min())} to {int(index.max())}; rows are 0 to {len(self) - 1}")
        for tensor in (self.state, self.remaining, self.step, self._starts, self._budget):
            tensor.copy_(tensor.index_select(0, index))

    @property
    def done(self) -> torch.Tensor:
        """[B] bool: ended, lost, or out of budget."""
        return (self.state == DONE) | (self.state == LOST) | ((self.state >= 0) & (self.remaining <= 0))

    @property
    def lost(self) -> torch.Tensor:
        """[B] bool: a token came that was not legal."""
        return self.state == LOST

    @property
    def shortest_left(self) -> torch.Tensor:
        """[B] int32: fewest tokens to a whole answer; 0 for rows that ended or have no grammar."""
        place = self.state.clamp(min=0).long()
        return torch.where(self.state >= 0, self._rows.distances()[place], 0)

    @property
    def complete(self) -> torch.Tensor:
        """[B] bool: what was taken so far is a whole answer."""
        place = self.state.clamp(min=0).long()
        return torch.where(self.state >= 0, self._rows.distances()[place] == 0, self.state == DONE)


def _one_a_row(grammars: Grammar | Sequence[Grammar | None], batch: int | None) -> list[Grammar | None]:
    if isinstance(grammars, Grammar):
        if not isinstance(batch, int) or batch < 0:
            raise ConstrainError(f"one grammar needs the number of rows; batch is {batch!r}")
        return [grammars] * batch if batch else []
    rows = list(grammars)
    if batch is not None and batch != len(rows):
        raise ConstrainError(f"{len(rows)} grammars are given for a batch of {batch}; give one a row")
    if any(g is not None and not isinstance(g, Grammar) for g in rows):
        raise ConstrainError("each row takes a Grammar or None; compile templates first")
    keys = {g.vocab.key for g in rows if g} if len({id(g.vocab) for g in rows if g}) > 1 else set()
    if len(keys) > 1:
        raise ConstrainError("the rows' grammars were compiled for different vocabularies; use one for a batch")
    return rows


def _arena(rows: Sequence[Grammar | None]) -> tuple[torch.Tensor, list[int]]:
    """(one arena with every different grammar, start state of each row)."""
    from vstar_fast import _C

    blocks = {g.block.data_ptr(): g for g in rows if g is not None}
    if not blocks:
        return torch.zeros(0, dtype=torch.uint8, device="cpu"), [FREE] * len(rows)
    if len(blocks) == 1:
        ((_, only),) = blocks.items()
        return only.block, [FREE if g is None else only.start for g in rows]
    joined, starts = _C.constrain_join([g.block.numpy().tobytes() for g in blocks.values()])
    start_of = dict(zip(blocks, starts, strict=True))
    places = [FREE if g is None else start_of[g.block.data_ptr()] for g in rows]
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8), places


def _budgets(budget: Budget, rows: Sequence[Grammar | None]) -> Any:
    """[B] int32 tokens left at the start."""
    if budget is None:
        return torch.full((len(rows),), UNLIMITED, dtype=torch.int32, device="cpu")
    if isinstance(budget, (float, str)) or (isinstance(budget, torch.Tensor) and budget.dim() != 1):
        raise ConstrainError(f"max_new_tokens is {budget!r}; give a whole number, one a row, or None")
    values = [budget] * len(rows) if isinstance(budget, int) else [int(b) for b in budget]
    if len(values) != len(rows):
        raise ConstrainError(f"max_new_tokens has {len(values)} values for {len(rows)} rows; give one a row")
    for row, (value, grammar) in enumerate(zip(values, rows, strict=True)):
        least = max(1, grammar.shortest) if grammar else 1
        if not least <= value < UNLIMITED:
            raise ConstrainError(
                f"max_new_tokens is {value} for row {row}, below its shortest answer of {least} tokens; raise it"
            )
    return torch.tensor(values, dtype=torch.int32, device="cpu")
