"""Where a model's video features are cut in two: the frozen part runs once a video, the rest at every use.

What the frozen part gives is kept; the projector and all that follows run on it later, so that a trained projector
changes nothing that is kept. A cut fits a model if the features made from what is kept are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree
from transformers.modeling_outputs import ModelOutput

from vstar_fast.errors import out_of_memory
from vstar_fast.models.text_inputs import forward_of

PROJECTORS = ("multi_modal_projector", "connector", "merger", "aligner", "mm_projector", "projector")
"""What families call the module between tower and text stack."""
DEEP = "deepstack_merger_list"
"""What Qwen3-VL and its kin call the mergers of their deep stack, beside the one merger."""

Own = Callable[[torch.Tensor], Any]
"""The model's own features of these pixels; all else it is called with is bound."""


@dataclass
class Source:
    """Pixels of a video, and a model that makes features `own` of them.

    `twice`: its features of two such videos; None for a model that takes one at a time.
    """

    own: Own
    pixels: torch.Tensor
    twice: Callable[[], Any] | None = None

    def features(self) -> Any:
        """The model's own."""
        return self.own(self.pixels)


@dataclass
class Projected(ModelOutput):
    """Features in the form of a model's own."""

    pooler_output: Any = None
    deepstack_features: Any = None


def projectors_in(body: Any) -> list[str]:
    """Full names of the outermost modules of a body that are called as families call their projectors."""
    names = [n for n, _ in body.named_modules() if n.rsplit(".", 1)[-1] in PROJECTORS]
    return [n for n in names if not any(n.startswith(f"{outer}.") for outer in names)]


def same(own: Any, made: Any) -> bool:
    """Whether two sets of features are the same tensors in the same lists, to the accuracy of their kind.

    One list entry a video or several are the same: bodies take such lists as one row of tokens.
    """
    names = ("pooler_output", "deepstack_features")
    ours, theirs = ([t for n in names for t in _tensors(getattr(f, n, None))] for f in (made, own))
    if not theirs or [(depth, t.shape) for depth, t in ours] != [(depth, t.shape) for depth, t in theirs]:
        return False
    loose = 1e-4 if theirs[0][1].dtype == torch.float32 else 2e-2
    return all(torch.allclose(a, b, rtol=loose, atol=loose) for (_, a), (_, b) in zip(ours, theirs, strict=True))


def _tensors(value: Any, depth: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
    """The tensors in nested lists, each with how deep it lies; those of one list `[tokens, width]` in a row."""
    if isinstance(value, torch.Tensor):
        yield depth, value
    parts = list(value) if isinstance(value, (list, tuple)) else []
    if parts and all(isinstance(p, torch.Tensor) and p.ndim == 2 for p in parts) and depth == 0:
        parts = [torch.cat(parts)]
    for part in parts:
        yield from _tensors(part, depth + 1)


class Cut:
    """One way to cut. `names`: modules of the body behind the cut, which may be trained; some show in `fits`."""

    def __init__(self, body: Any) -> None:
        self.body = body
        self.names: list[str] = []

    def module(self, name: str) -> Any:
        """The module of this name as it is now: an adapter may have put its trained copy there."""
        return self.body.get_submodule(name)

    def keep(self, video: Source) -> tuple[torch.Tensor, Any]:
        """What is kept of one video, and the model's own features of it if they came along."""
        raise NotImplementedError

    def features(self, kept: torch.Tensor, blank: Source) -> Any:
        """What is kept of one or more videos -> features in the form of the model's own; differentiable.

        `blank`: pixels of their shape, without content.
        """
        raise NotImplementedError

    def forms(self) -> Iterator[None]:
        """Sets up, one after the other, the ways in which features may follow from what is kept."""
        yield

    def fits(self, video: Source) -> bool:
        """Whether features from what is kept are the model's own; leaves the cut ready for use if so.

        Raises ValueError, saying why, where it cannot be tried.
        """
        kept, own = self.keep(video)
        own = video.features() if own is None else own
        self.listed = isinstance(own.pooler_output, (list, tuple))
        self.ndim = next(_tensors(own.pooler_output))[1].ndim
        return any(same(own, self.features(kept, video)) for _ in self.forms())


class BeforeProjector(Cut):
    """Kept is the one tensor that the one projector is given; the features are its output, maybe without a batch."""

    def __init__(self, body: Any) -> None:
        super().__init__(body)
        found = projectors_in(body)
        self.names = [n for n in found if "." not in n] or found
        self.joined = False

    def keep(self, video: Source) -> tuple[torch.Tensor, Any]:
        """The projector's input. Raises ValueError where the projector is not given one tensor once."""
        given: list[torch.Tensor] = []
        if len(self.names) != 1:
            raise ValueError(f"{len(self.names)} modules look like its projector; one is needed")

        def see(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.extend(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))

        handle = self.module(self.names[0]).register_forward_pre_hook(see, with_kwargs=True)
        try:
            own = video.features()
        finally:
            handle.remove()
        if len(given) != 1:
            raise ValueError(f"its projector is given {len(given)} tensors for a video; one is needed")
        return given[0], own

    def forms(self) -> Iterator[None]:
        """As the projector gives it, or all tokens in a row."""
        for self.joined in (False, True):
            yield

    def features(self, kept: torch.Tensor, _blank: Source) -> Projected:
        """The projector's output, listed and with as many dimensions as the model's own features."""
        tokens = self.module(self.names[0])(kept)
        if tokens.ndim != self.ndim or self.joined:
            tokens = tokens.reshape((1,) * (self.ndim - 2) + (-1, tokens.shape[-1]))
        return Projected(pooler_output=[tokens] if self.listed else tokens)


class BeforeMergers(Cut):
    """The projector is inside the tower, maybe with others of a deep stack (Qwen's models and their kin).

    Kept is what each merger is given, 2 x 2 patches side by side in one row a token: `[tokens, M * 4C]` for M mergers.
    The mergers are taken out while the tower runs, so that its own code restores the order of the patches.
    """

    def __init__(self, body: Any) -> None:
        super().__init__(body)
        found = projectors_in(body)
        self.nested, self.patches = False, 0
        if len(found) == 1 and "." in found[0]:
            name = found[0].rsplit(".", 1)[0]
            tower = self.module(name)
            self.names = [*found, *(f"{name}.{DEEP}.{i}" for i in range(len(getattr(tower, DEEP, ()))))]
            self.patches = int(getattr(tower, "spatial_merge_size", 0)) ** 2

    def keep(self, video: Source) -> tuple[torch.Tensor, Any]:
        """What the mergers are given, side by side. Raises ValueError where there are none inside a tower."""
        if not self.patches:
            raise ValueError("no merger of patches is inside its tower")
        mergers = [self.module(name) for name in self.names]
        with forward_of(mergers, lambda x: x.reshape(-1, self.patches * x.shape[-1])):
            features = video.features()
        parts = (features.pooler_output, *(getattr(features, "deepstack_features", None) or ()))
        kept = [part if isinstance(part, torch.Tensor) else torch.cat(list(part)) for part in parts]
        return torch.cat(kept, -1), None

    def forms(self) -> Iterator[None]:
        """Deep-stack features as one tensor a layer, or (transformers 5.24) as a list of them a layer."""
        for self.nested in (False, True):
            yield

    def features(self, kept: torch.Tensor, _blank: Source) -> Projected:
        """Merged tokens of all videos in one list entry, and those of the deep stack."""
        mergers = [self.module(name) for name in self.names]
        width = kept.shape[-1] // (len(mergers) * self.patches)
        parts = kept.chunk(len(mergers), -1)
        first, *deep = [m(part.reshape(-1, width)) for m, part in zip(mergers, parts, strict=True)]
        listed = [[layer] for layer in deep] if self.nested else deep or None
        return Projected(pooler_output=[first] if self.listed else first, deepstack_features=listed)


class BehindTower(Cut):
    """Kept is what the tower returns, as far as it is used; all that follows is the model's own code.

    The tower is the first of the body's modules to be called; its forward gives what was kept while the model's own
    features are made again. Where it does all the work, its output is the features, and no module may be trained.
    """

    def keep(self, video: Source) -> tuple[torch.Tensor, Any]:
        """Tensors of the tower's output side by side, that dimension in front along which videos are joined."""
        leaves, _, own = self._seen(video.features)
        return torch.cat([leaves[i] for i in self.used], -1).movedim(self.along, 0), own

    def features(self, kept: torch.Tensor, blank: Source) -> Any:
        """The model's own code behind the tower."""
        return self._again(kept.movedim(0, self.along).chunk(len(self.used), -1), blank)

    def _again(self, tensors: Any, blank: Source) -> Any:
        leaves = list(self.constant)
        for i, tensor in zip(self.used, tensors, strict=True):
            leaves[i] = tensor
        out = pytree.tree_unflatten(leaves, self.spec)
        with forward_of([self.module(self.tower)], lambda *_, **__: out):
            return blank.features()

    def _seen(self, run: Callable[[], Any]) -> tuple[list[Any], pytree.TreeSpec, Any]:
        """The tower's output, its form, and the model's own features; notes which modules of the body ran, in order.

        The output is taken apart as it comes: some models write into it later.
        """
        calls: list[tuple[str, tuple[list[Any], pytree.TreeSpec]]] = []
        with ExitStack() as stack:
            for name, module in self.body.named_children():
                note = partial(_note, calls, name)
                stack.callback(module.register_forward_hook(note).remove)
            own = run()
        if not calls:
            raise ValueError("no module of its body is called for a video's features")
        self.tower = calls[0][0]
        behind = dict.fromkeys(name for name, _ in calls[1:])
        self.names = [n for n in behind if n != self.tower and any(True for _ in self.module(n).parameters())]
        return *calls[0][1], own

    def fits(self, video: Source) -> bool:
        """Finds out which of the tower's tensors are used, and along which dimension videos are joined."""
        leaves, self.spec, own = self._seen(video.features)
        self.constant = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        self.used = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        if not self._remakes(own, leaves, video):
            return False
        for i in list(self.used):
            self.used.remove(i)
            if not self._remakes(own, leaves, video):
                self.used = sorted([*self.used, i])
        if len({leaves[i].shape for i in self.used}) != 1:
            raise ValueError(f"what follows its tower takes {len(self.used)} tensors of unlike shapes")
        self.along = 0 if video.twice is None else self._joined_along(leaves[self.used[0]], video.twice)
        return same(own, self.features(self.keep(video)[0], video))

    def _remakes(self, own: Any, leaves: list[Any], video: Source) -> bool:
        try:
            return same(own, self._again([leaves[i] for i in self.used], video))
        except Exception as error:  # whatever the model's code does without a tensor that it needs
            if out_of_memory(error):
                raise
            return False

    def _joined_along(self, one: torch.Tensor, twice: Callable[[], Any]) -> int:
        """The dimension of the tower's output that two videos make twice as long."""
        two = self._seen(twice)[0][self.used[0]]
        found = [d for d in range(one.ndim) if two.ndim == one.ndim and two.shape[d] == 2 * one.shape[d]]
        if len(found) != 1:
            raise ValueError(f"its tower gives {tuple(two.shape)} for two videos and {tuple(one.shape)} for one")
        return found[0]


def _note(calls: list[Any], name: str, _module: Any, _args: Any, out: Any) -> None:
    calls.append((name, pytree.tree_flatten(out)))


CUTS = (BeforeMergers, BeforeProjector, BehindTower)
"""The first that fits is taken."""
