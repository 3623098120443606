"""Examples packed into one row for the text stack: what they share stands once, the rest are branches behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vstar_fast.errors import NotPacked
from vstar_fast.finetune.items import Item
from vstar_fast.kernels.tree_attention.tree import Node, Sighted, Tree
from vstar_fast.models.bidirectional import embedded
from vstar_fast.models.video_lm import Features, TextInputs, VideoLM


@dataclass(slots=True)
class Packed:
    """One call of the text stack over N packed tokens, and the S positions that are trained.

    `inputs_embeds` `[1, N, H]`, `position_ids` `[1, N]` or `[R, 1, N]`; hidden state `sources[i]` is to predict token
    `targets[i]` of example `owners[i]` (index into the items).
    """

    inputs_embeds: torch.Tensor
    position_ids: torch.Tensor
    extras: dict[str, Any]
    tree: Tree
    sources: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor


@dataclass(slots=True)
class _Branch:
    """Tokens of one kind: text, a video, or (with `owners`) an answer without its last token."""

    ids: torch.Tensor
    features: Features | None = None
    after: torch.Tensor | None = None
    """Of a video: ids of the text behind it in the first item."""
    answer: torch.Tensor | None = None
    owners: list[int] = field(default_factory=list)
    """Of an answer: the items that have it."""
    branches: dict[object, _Branch] = field(default_factory=dict)


def pack(lm: VideoLM, items: Sequence[Item]) -> Packed:
    """Lay items out as one tree of branches: prompt head, video, question, answer.

    Embeddings and positions are those of the model's own forward over each item alone. Differentiable through a
    trained projector. Raises NotPacked where a model's inputs cannot be told apart by video.
    """
    root = _Branch(torch.empty(0, dtype=torch.long))
    for number, item in enumerate(items):
        _grow(root, number, item)
    return _Layout(lm, root).packed()


def _grow(root: _Branch, number: int, item: Item) -> None:
    """Walk down to the item's answer, making what is not there yet."""
    made = [_Branch(ids) for ids in item.prompt]
    if item.features is not None:
        made.insert(1, _Branch(item.features.ids, item.features, item.tail))
    made.append(_Branch(item.answer[:-1], answer=item.answer))
    at = root
    for key, branch in zip(item.path, made, strict=True):
        at = at.branches.setdefault(key, branch)
    at.owners.append(number)


class _Layout:
    """Walks the branches depth first and collects what each brings."""

    def __init__(self, lm: VideoLM, root: _Branch) -> None:
        self.lm = lm
        self.embeds: list[torch.Tensor] = []
        self.positions: list[torch.Tensor] = []
        self.extras: list[tuple[int, dict[str, Any]]] = []
        self.nodes: list[Node] = []
        self.supervised: list[tuple[int, int, torch.Tensor, int]] = []
        """(source of the first target, source of the second, targets, item)."""
        self.sighted: list[Sighted] = []
        self.at = 0
        for branch in root.branches.values():
            self._place(branch, root.ids, torch.empty(0, dtype=torch.long), 0, 0, -1)

    def packed(self) -> Packed:
        """Everything collected, in one piece."""
        device = self.lm.device
        positions = torch.cat(self.positions, 1).to(device)
        sources, targets, owners = (torch.cat(t) for t in zip(*map(_sources, self.supervised), strict=True))
        return Packed(
            torch.cat(self.embeds, 1),
            positions if len(positions) == 1 else positions[:, None],
            _join(self.extras, self.at),
            Tree(self.nodes, self.sighted),
            sources.to(device),
            targets.to(device),
            owners.to(device),
        )

    def _place(
        self, branch: _Branch, before: torch.Tensor, trail: torch.Tensor, position: int, depth: int, last: int
    ) -> None:
        """Lay a branch and all behind it, from `position` on.

        `before`: ids that lead to it; `trail`: their places; `last`: that of the last of them. A chain of branches
        becomes one node.
        """
        start, own = self.at, len(self.nodes)
        while True:
            begun = self.at
            position = self._lay(branch, before, trail, position, last)
            trail = torch.cat([trail, torch.arange(begun, self.at)])
            before, last = torch.cat([before, branch.ids]), self.at - 1 if len(branch.ids) else last
            if len(branch.branches) != 1:
                break
            (branch,) = branch.branches.values()
        stop = self.at
        for child in branch.branches.values():
            self._place(child, before, trail, position, depth + 1, last)
        if stop > start:
            self.nodes.insert(own, Node(start, stop, self.at, depth))

    def _lay(self, branch: _Branch, before: torch.Tensor, trail: torch.Tensor, position: int, last: int) -> int:
        """Lay the branch's own tokens; the position behind them."""
        if branch.features is not None:
            return self._lay_video(branch, before, trail)
        self.supervised += [(last, self.at, branch.answer, n) for n in branch.owners if branch.answer is not None]
        if len(branch.ids):
            rows = torch.arange(position, position + len(branch.ids)).expand(self.lm.position_rows, -1)
            ids = branch.ids.to(self.lm.device)
            self.extras += [(self.at, extras) for extras in [self.lm.text_extras(ids)] if extras]
            self._add(self.lm.embed_tokens(ids)[None], rows)
        return position + len(branch.ids)

    def _lay_video(self, branch: _Branch, before: torch.Tensor, trail: torch.Tensor) -> int:
        assert branch.after is not None
        given, sight = embedded(self.lm, torch.cat([before, branch.ids, branch.after]), branch.features)
        own = slice(len(before), len(before) + len(branch.ids))
        if sight is not None:
            columns = torch.cat([trail, torch.arange(self.at, self.at + len(branch.ids))])
            seen = {window: rows[own, : own.stop] for window, rows in sight.items()}
            self.sighted.append(Sighted(self.at, columns, seen))
        _check_counted(given.position_ids[:, : own.start], 0)
        self.extras.append((self.at, _cut(given, own)))
        self._add(given.inputs_embeds[:, own], given.position_ids[:, own].cpu())
        return _position_after(given, own.stop)

    def _add(self, embeds: torch.Tensor, positions: torch.Tensor) -> None:
        self.embeds.append(embeds)
        self.positions.append(positions)
        self.at += embeds.shape[1]


def _sources(part: tuple[int, int, torch.Tensor, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sources, targets, owners) of one answer: its first token is predicted by the question's last."""
    question, start, answer, number = part
    own = torch.arange(start, start + len(answer) - 1)
    return torch.cat([torch.tensor([question]), own]), answer, torch.full((len(answer),), number)


def _check_counted(positions: torch.Tensor, first: int) -> None:
    """Text is numbered one by one, the same on every row, from `first` on."""
    counted = torch.arange(first, first + positions.shape[1], device=positions.device)
    if not bool((positions == counted).all()):
        raise NotPacked("this model does not number the text around a video one by one; set finetune.pack = false")


def _position_after(given: TextInputs, place: int) -> int:
    """Position of the first text token behind a video."""
    behind = given.position_ids[:, place:]
    if not behind.shape[1]:
        return given.next_position
    first = int(behind[0, 0])
    _check_counted(behind, first)
    return first


def _cut(given: TextInputs, own: slice) -> dict[str, Any]:
    """Extras of the video's tokens alone: values a token are cut, lists hold values of video tokens only."""
    tokens = given.inputs_embeds.shape[1]
    return {
        k: v[:, own] if isinstance(v, torch.Tensor) and v.shape[:2] == (1, tokens) else v
        for k, v in given.extras.items()
    }


def _join(extras: Sequence[tuple[int, dict[str, Any]]], tokens: int) -> dict[str, Any]:
    """The extras of all videos as those of one row of so many tokens; (first token, extras) of each."""
    names = {name for _, given in extras for name in given}
    return {name: _joined(name, [(at, given.get(name)) for at, given in extras], tokens) for name in sorted(names)}


def _joined(name: str, parts: Sequence[tuple[int, Any]], tokens: int) -> Any:
    first = parts[0][1]
    if isinstance(first, torch.Tensor) and first.ndim >= 2 and first.shape[0] == 1:
        whole = first.new_zeros(1, tokens, *first.shape[2:])
        for at, part in parts:
            whole[:, at : at + part.shape[1]] = part
        return whole
    if isinstance(first, (list, tuple)) and all(isinstance(t, torch.Tensor) for t in first):
        return [torch.cat(layer) for layer in zip(*(part for _, part in parts), strict=True)]
    if not isinstance(first, torch.Tensor) and all(part == first for _, part in parts):
        return first
    raise NotPacked(f"this model's text stack takes {name!r}, which cannot be packed; set finetune.pack = false")
