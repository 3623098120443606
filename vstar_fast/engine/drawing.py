"""What is drawn for the rows in flight, and which of them that ends: lanes, wanted answers, and their counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from vstar_fast.engine.lanes import Lane, Tracked
from vstar_fast.engine.request import Counts, Settings

if TYPE_CHECKING:
    from vstar_fast.engine.batch import Row
    from vstar_fast.kernels.constrain import Grammar


class Drawing:
    """The lanes that tokens are drawn in, and the rows that are drawn towards a wanted answer."""

    def __init__(self, eos_ids: Sequence[int], counts: Counts, skip_forced: bool) -> None:
        self.eos = frozenset(eos_ids)
        self.counts, self.skip_forced = counts, skip_forced
        self.lanes: dict[Any, Lane] = {}
        self.golds: dict[int, Tracked] = {}

    def clear(self) -> None:
        """Forget all lanes."""
        self.lanes, self.golds = {}, {}

    def _new_lanes(self, rows: Sequence[Row], device: torch.device) -> dict[Any, Lane]:
        held: dict[Any, tuple[Settings, Grammar | None, list[Row]]] = {}
        for row in rows:
            asked, sample = row.flight.request, row.answer.sample
            settings, grammar = asked.settings_of(sample), asked.grammar_of(sample)
            held.setdefault((settings, id(grammar)), (settings, grammar, []))[2].append(row)
        return {key: Lane(*parts, device) for key, parts in held.items()}

    def _new_golds(self, rows: Sequence[Row], device: torch.device) -> dict[int, Tracked]:
        by_key: dict[int, tuple[Grammar, list[Row]]] = {}
        for row in rows:
            gold = row.flight.request.gold
            if gold is not None:
                by_key.setdefault(id(gold), (gold, []))[1].append(row)
        return {key: Tracked(gold, held, None, device) for key, (gold, held) in by_key.items()}

    def _among(self, lanes: dict[Any, Lane], golds: dict[int, Tracked]) -> None:
        """New lanes join those there are."""
        for key, lane in lanes.items():
            self.lanes[key] = joined(self.lanes.get(key), lane)
        for gold, tracked in golds.items():
            self.golds[gold] = joined(self.golds.get(gold), tracked)

    def _draw(
        self, rows: Sequence[Row], logits: torch.Tensor, lanes: dict[Any, Lane], golds: dict[int, Tracked]
    ) -> None:
        """Next tokens of `rows` from logits [len(rows), V]; rows that are done leave lanes, golds and groups."""
        for i, row in enumerate(rows):
            row.index = i
        new: dict[int, list[int]] = {}
        for lane in lanes.values():
            if lane.rows:
                self._draw_lane(lane, logits, new)
        for gold in golds.values():
            self._stop_early(gold, new, lanes)
        keep_open(lanes)
        keep_open(golds)

    def _draw_lane(self, lane: Lane, logits: torch.Tensor, new: dict[int, list[int]]) -> None:
        ids, logprobs = lane.draw(_pick(logits, [row.index for row in lane.rows]))
        most = lane.settings.max_new_tokens
        follow = lane.forced() if self.skip_forced else [[]] * len(lane.rows)
        drawn = zip(lane.rows, ids.tolist(), logprobs.tolist(), follow, strict=True)
        for row, token, logprob, forced in drawn:
            answer = row.answer
            answer.logprob += logprob
            taken = [token, *forced]
            end = next((i for i, t in enumerate(taken) if t in self.eos), len(taken) - 1)
            taken = taken[: min(end + 1, most - len(answer.token_ids))]
            answer.token_ids += taken
            self.counts.forced += len(taken) - 1
            if taken[-1] in self.eos:
                answer.finish = "stop"
            elif len(answer.token_ids) >= most:
                answer.finish = "length"
            row.pending = taken
            new[id(row)] = taken

    def _stop_early(self, gold: Tracked, new: dict[int, list[int]], lanes: dict[Any, Lane]) -> None:
        """End the rows that can no longer become a wanted answer."""
        alive = [i for i, row in enumerate(gold.rows) if not row.answer.finish and id(row) in new]
        for column in range(max((len(new[id(gold.rows[i])]) for i in alive), default=0)):
            index = [i for i in alive if column < len(new[id(gold.rows[i])])]
            tokens = [new[id(gold.rows[i])][column] for i in index]
            gold.advance(index, torch.tensor(tokens, device=gold.state.device))
        lost = gold.state.lost.tolist()
        stopped = {id(gold.rows[i]) for i in alive if lost[i]}
        if stopped:
            self.count_saved(stopped, lanes)
        for i in alive:
            if lost[i]:
                gold.rows[i].answer.finish = "stopped_early"

    def count_saved(self, stopped: set[int], lanes: dict[Any, Lane]) -> None:
        """Count rows, by their ids, that were stopped early, and the tokens that they would still have taken."""
        self.counts.stopped_early += len(stopped)
        for lane in lanes.values():
            if lane.tracked is not None and any(id(row) in stopped for row in lane.rows):
                left = lane.tracked.state.shortest_left.tolist()
                saved = [n for row, n in zip(lane.rows, left, strict=True) if id(row) in stopped]
                self.counts.tokens_saved += sum(saved)


def _pick(logits: torch.Tensor, index: list[int]) -> torch.Tensor:
    """Rows of logits in this order; a view where they stand together."""
    if index == list(range(index[0], index[0] + len(index))):
        return logits[index[0] : index[0] + len(index)]
    return logits[torch.tensor(index, device=logits.device)]


def keep_open(held: dict[Any, Any]) -> None:
    """Only rows whose answer is not finished stay in lanes (or golds)."""
    for key, lane in list(held.items()):
        left = [i for i, row in enumerate(lane.rows) if not row.answer.finish]
        if not left:
            del held[key]
        elif len(left) < len(lane.rows):
            lane.keep(left)


def joined(before: Any, new: Any) -> Any:
    """A lane with the rows of a new one behind its own; the new one where there was none."""
    if before is None:
        return new
    before.join(new)
    return before
