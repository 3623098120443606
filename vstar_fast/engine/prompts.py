"""Prompts in the store: the head once, a video once for all its questions, a question once for all its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vstar_fast.engine.chunked_prefill import Prompt, by_token, whole
from vstar_fast.engine.request import Request
from vstar_fast.engine.stack import Stack
from vstar_fast.engine.store import Node
from vstar_fast.models.bidirectional import embedded


@dataclass(slots=True, eq=False)
class _Video:
    """A video's tokens (behind the head) in the store. `features` is held so that its id stays its own."""

    node: Node
    next_position: int
    features: Any
    rows: int
    """Rows of its position ids."""
    users: int = 0


@dataclass(slots=True, eq=False)
class Prefix:
    """What the answers to one request see; `hidden` [H] of its last token."""

    nodes: list[Node]
    next_position: int
    """Of the first token of an answer."""
    rows: int
    """Rows of its position ids."""
    hidden: torch.Tensor
    own: Node
    video: _Video | None

    @property
    def length(self) -> int:
        """Tokens of the whole prompt."""
        return sum(node.length for node in self.nodes)


class Prompts:
    """Puts requests' prompts into the store and lets go of them."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.lm = stack.lm
        self.tokens = 0
        """Prompt tokens that went through the text stack."""
        self._heads: dict[tuple[int, ...], Node] = {}
        self._videos: dict[int, _Video] = {}

    def clear(self) -> None:
        """Forget every prompt; the store is emptied by the caller."""
        self._heads.clear()
        self._videos.clear()

    def put(self, requests: Sequence[Request], later: Iterable[Request] = ()) -> list[Prefix]:
        """Prefill requests together; `later` ones tell which videos will be asked about again."""
        return whole(self.arriving(requests, later))

    def arriving(
        self, requests: Sequence[Request], later: Iterable[Request] = ()
    ) -> Generator[int, None, list[Prefix]]:
        """As `put`; stops between two calls of the text stack and says how many tokens the first one took."""
        asked = Counter(id(r.features) for r in (*requests, *later) if r.features is not None)
        shared = [
            r.features is not None and (asked[id(r.features)] > 1 or id(r.features) in self._videos) for r in requests
        ]
        yield from self._encode([r for r, both in zip(requests, shared, strict=True) if both])
        made = [self._question(r) if both else self._whole(r) for r, both in zip(requests, shared, strict=True)]
        hidden = yield from self._run([prompt for prompt, _, _ in made])
        found = []
        for i, (prompt, position, video) in enumerate(made):
            if video is not None:
                video.users += 1
            nodes = [prompt.node] if video is None else [video.node, prompt.node]
            rows = prompt.position_ids.shape[0]
            found.append(Prefix(nodes, position, rows, hidden[i], prompt.node, video))
        return found

    def let_go(self, prefix: Prefix, wanted: Iterable[Request] = ()) -> None:
        """No answer sees this prefix any more; its video stays while others use it or `wanted` ones will."""
        self.stack.store.give_back(prefix.own)
        video = prefix.video
        if video is not None:
            video.users -= 1
        ids = {id(r.features) for r in wanted}
        for key, kept in list(self._videos.items()):
            if kept.users == 0 and key not in ids:
                self.stack.store.give_back(kept.node)
                del self._videos[key]

    def _run(self, prompts: list[Prompt]) -> Generator[int, None, torch.Tensor]:
        self.tokens += sum(p.inputs_embeds.shape[1] for p in prompts)
        return (yield from self.stack.prefilling(prompts))

    def _head(self, ids: torch.Tensor) -> list[Node]:
        """The node of the tokens before the video, prefilled at the first call."""
        key = tuple(ids.tolist())
        if not key:
            return []
        if key not in self._heads:
            text = self.lm.embed(ids, None)
            node = self.stack.store.take(len(key))
            whole(self._run([Prompt(node, 0, [], text.inputs_embeds, text.position_ids, text.extras)]))
            self._heads[key] = node
        return [self._heads[key]]

    def _behind(self, head: torch.Tensor, rest: torch.Tensor, features: Any) -> tuple[Prompt, Any]:
        """(`rest` behind the head in one node, the inputs of the whole row)."""
        nodes, start = self._head(head), len(head)
        text, sight = embedded(self.lm, torch.cat([head, rest]), features)
        tokens = start + len(rest)
        extras = {name: x[:, start:] if by_token(x, tokens) else x for name, x in text.extras.items()}
        node = self.stack.store.take(start + len(rest))
        prompt = Prompt(node, start, nodes, text.inputs_embeds[:, start:], text.position_ids[:, start:], extras)
        prompt.sight = sight and {window: seen[start:] for window, seen in sight.items()}
        return prompt, text

    def _encode(self, requests: Sequence[Request]) -> Generator[int, None, None]:
        """Videos that several requests ask about, each behind its head, once."""
        new: dict[int, tuple[Prompt, Any, Any]] = {}
        for r in requests:
            key = id(r.features)
            if r.features is not None and key not in self._videos and key not in new:
                new[key] = (*self._behind(r.head, r.features.ids, r.features), r.features)
        if new:
            yield from self._run([prompt for prompt, _, _ in new.values()])
        for key, (prompt, text, features) in new.items():
            rows, state = prompt.position_ids.shape[0], prompt.node.state
            prompt.node.state = state and state.alone()
            self._videos[key] = _Video(prompt.node, text.next_position, features, rows)

    def _question(self, request: Request) -> tuple[Prompt, int, _Video]:
        """A question behind its video's node."""
        video = self._videos[id(request.features)]
        count = len(request.tail)
        self.lm.check_ids(request.tail)
        embeds = self.lm.embed_tokens(request.tail.to(self.lm.device))[None]
        positions = torch.arange(video.next_position, video.next_position + count, device=self.lm.device)
        node = self.stack.store.take(count)
        extras = self.lm.text_extras(request.tail)
        prompt = Prompt(node, 0, [video.node], embeds, positions.expand(video.rows, count), extras)
        return prompt, video.next_position + count, video

    def _whole(self, request: Request) -> tuple[Prompt, int, None]:
        """Video and question in one node."""
        ids = [] if request.features is None else [request.features.ids]
        prompt, text = self._behind(request.head, torch.cat([*ids, request.tail]), request.features)
        return prompt, text.next_position, None
