"""Hugging Face `generate`: a LogitsProcessor that may be used for many calls, with beams and left padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vstar_fast.errors import ConstrainError

from .grammar import Grammar
from .state import Budget, DecodeState


class LogitsProcessor:
    """Pass `[LogitsProcessor(grammar)]` as `logits_processor` to `generate`.

    grammars: one for every prompt, or a list with one for each prompt of the batch (None: free). With beams or
    `num_return_sequences` the rows of a prompt lie side by side, as `generate` has them.
    max_new_tokens: give generate's own number, so that no answer is cut.

    The answer begins where the prompt of a call ends. A row is recognised by its ids: a row that continues none
    of the step before begins anew, so nothing has to be reset between calls, and nothing is read on the host. A
    single row may also go back a few tokens, as in assisted decoding. What looks alike is a call whose prompts are
    the previous call's output plus one token, or, for a single row, the beginning of that output plus one token
    that is legal there: call `reset()` before it. With sampling use top_k=0 or at least the number of beams.
    """

    def __init__(self, grammars: Grammar | Sequence[Grammar | None], *, max_new_tokens: Budget = None) -> None:
        self.grammars = grammars if isinstance(grammars, Grammar) else list(grammars)
        self.max_new_tokens = max_new_tokens
        self._state: DecodeState | None = None
        self._before: torch.Tensor | None = None
        self._start = 0

    def reset(self) -> None:
        """Forget the call before."""
        self._before = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] with -inf where a token is not legal behind input_ids [B, T]."""
        state, rows = self._state, len(input_ids)
        if state is None or len(state) != rows or state.device != scores.device:
            state = self._state = DecodeState(self._each(rows), device=scores.device, max_new_tokens=self._budget(rows))
            self._before = None
        before, self._before = self._before, input_ids
        if before is not None and before.shape[1] + 1 == input_ids.shape[1]:
            self._follow(state, before, input_ids)
        elif before is None or not self._went_back(state, before, input_ids):
            state.reset()
            self._start = input_ids.shape[1]
        return state.mask_(scores.contiguous().clone())

    def _each(self, rows: int) -> list[Grammar | None]:
        if isinstance(self.grammars, Grammar):
            return [self.grammars] * rows
        if not self.grammars or rows % len(self.grammars):
            raise ConstrainError(f"{len(self.grammars)} grammars do not share out {rows} rows; give one a prompt")
        beams = rows // len(self.grammars)
        return [grammar for grammar in self.grammars for _ in range(beams)]

    def _budget(self, rows: int) -> Budget:
        if self.max_new_tokens is None or isinstance(self.max_new_tokens, int):
            return self.max_new_tokens
        budgets = [int(budget) for budget in self.max_new_tokens]
        return [budget for budget in budgets for _ in range(max(rows // max(len(budgets), 1), 1))]

    def _went_back(self, state: DecodeState, before: torch.Tensor, input_ids: torch.Tensor) -> bool:
        """Whether one row is where the row before was some tokens ago, but for its last one; then so is its state."""
        length = input_ids.shape[1]
        if len(input_ids) != 1 or not self._start < length <= before.shape[1]:
            return False
        if not torch.equal(input_ids[:, : length - 1], before[:, : length - 1]):
            return False
        state.reset()
        for at in range(self._start, length):
            state.advance_(input_ids[:, at].long(), strict=False)
        return not bool(state.lost)

    def _follow(self, state: DecodeState, before: torch.Tensor, input_ids: torch.Tensor) -> None:
        """Each row takes the state of the row it continues, then its last token; without one it begins."""
        prompts = 1 if isinstance(self.grammars, Grammar) else len(self.grammars)
        old, new = (t.unflatten(0, (prompts, -1)) for t in (before, input_ids[:, :-1]))
        same = (new[:, :, None] == old[:, None]).all(-1)
        beams = same.shape[1]
        own = torch.eye(beams, dtype=torch.int8, device=same.device)
        parent = (same.to(torch.int8) * 2 + own * same).argmax(-1)
        offset = torch.arange(prompts, device=parent.device)[:, None] * beams
        state.reorder((parent + offset).flatten())
        state.advance_(input_ids[:, -1].long(), strict=False)
        state.restart_(~same.any(-1).flatten())
