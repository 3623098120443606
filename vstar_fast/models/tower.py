"""The frozen vision tower: its output is kept before any trained projector, and stands in for pixels later.

`get_video_features` (or `get_image_features`, where a family takes frames as images) of the model's body is the
surface that all families share. It is wrapped on the instance: given what `Tower.encode` kept instead of pixels,
it projects that. So the model's own code does all the rest, from merging to positions, in `generate` as well.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial, update_wrapper
from itertools import product
from typing import Any

import torch
from transformers.modeling_outputs import ModelOutput

from vstar_fast import attention
from vstar_fast.models.modules import evaluating

PROJECTORS = ("multi_modal_projector", "connector", "merger", "aligner", "mm_projector", "projector")
"""What families call the module between tower and text stack."""
PIXELS = {"pixel_values_videos": "get_video_features", "pixel_values": "get_image_features"}
"""Input -> method of the body that takes it."""
OTHER = "its features are not the projector's output"
KEPT = "tower_features"
"""Name of the tower's output among a video's inputs."""


class TowerOutput(torch.Tensor):
    """Marks a tensor that stands where pixels stand but has been through the tower."""


@dataclass
class Projected(ModelOutput):
    """Features in the form of a model's own."""

    pooler_output: Any = None
    deepstack_features: Any = None


class Tower:
    """Runs the tower of a model body and projects what it gave. Families override what their projector needs."""

    keeps = "what the projector is given, if the model's features are its output; else pixels"

    def __init__(self, body: Any) -> None:
        self.body = body
        self._own: dict[str, Any] = {}
        for method in PIXELS.values():
            if hasattr(body, method):
                self._own[method] = getattr(body, method)
                setattr(body, method, self._wrapped(self._own[method]))
        self.why_pixels = ""
        """Why pixels are kept in place of the tower's output; empty where they are not."""
        self._listed, self._ndim, self._joined = False, 0, False

    @property
    def methods(self) -> list[str]:
        """Which of the two methods the body has."""
        return list(self._own)

    @cached_property
    def projector_names(self) -> list[str]:
        """Full names, within the body, of the modules between tower and text stack."""
        names = [n for n, _ in self.body.named_modules() if n.rsplit(".", 1)[-1] in PROJECTORS]
        return [n for n in names if not any(n.startswith(f"{outer}.") for outer in names)]

    def projector(self, name: str) -> Any:
        """The module of this name as it is now: an adapter may have put its trained copy there."""
        return self.body.get_submodule(name)

    def prepare(self, inputs: dict[str, torch.Tensor]) -> None:
        """Find out, on the inputs of any video, how this model's own features follow from what is kept."""
        why = self._obstacle(inputs)
        if why:
            self._keep_pixels(why)

    def _keep_pixels(self, why: str) -> None:
        self.why_pixels = why
        name = type(self.body).__name__
        logging.getLogger(__name__).warning("%s: the tower runs again for every use of a video: %s", name, why)

    @torch.no_grad()
    def _obstacle(self, inputs: dict[str, torch.Tensor]) -> str:
        try:
            kept, own = self.keep(inputs)
        except ValueError as error:
            return str(error)
        own = self.run(inputs) if own is None else own
        tokens = getattr(own, "pooler_output", None)
        if tokens is None:
            return "its features have no pooler_output"
        self._listed = isinstance(tokens, (list, tuple))
        self._ndim = (tokens[0] if self._listed else tokens).ndim
        for tail, joined in product(self.tails(), (False, True)):
            self._tail, self._joined = tail, joined
            if _same(own, self.project(kept)):
                return ""
        return OTHER

    def run(self, inputs: dict[str, torch.Tensor]) -> Any:
        """The model's own features of pixel inputs, without dropout."""
        name = next(name for name in PIXELS if name in inputs)
        own = self._own[PIXELS[name]]
        taken = inspect.signature(own).parameters
        attention.ran_in_tower(self.body)
        with evaluating(self.body):
            return own(inputs[name], **{k: v for k, v in inputs.items() if k in taken and k != name})

    @torch.no_grad()
    def encode(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pixel inputs of one video -> its inputs with the tower's output in place of pixels; see `prepare`."""
        if self.why_pixels:
            return inputs
        kept, own = self.keep(inputs)
        if own is not None and not _same(own, self.project(kept)):
            self._keep_pixels(OTHER)
            return inputs
        rest = {k: v for k, v in inputs.items() if not k.startswith("pixel_")}
        return {KEPT: kept, **rest}

    def keep(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """What the projector is given for one video, and the model's own features of it if they came along.

        Raises ValueError where the projector is not given one tensor once.
        """
        given: list[torch.Tensor] = []
        if len(self.projector_names) != 1:
            raise ValueError(f"{len(self.projector_names)} modules look like its projector; one is needed")

        def see(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.extend(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))

        handle = self.projector(self.projector_names[0]).register_forward_pre_hook(see, with_kwargs=True)
        try:
            own = self.run(inputs)
        finally:
            handle.remove()
        if len(given) != 1:
            raise ValueError(f"its projector is given {len(given)} tensors for a video; one is needed")
        return given[0], own

    def stand_in(self, kept: torch.Tensor) -> torch.Tensor:
        """What is kept, marked so that it may go in where pixels do."""
        return kept.as_subclass(TowerOutput)

    def tails(self) -> Iterator[Any]:
        """Ways in which the model's features may follow from the projector's output; the first that fits is taken."""
        yield lambda tokens: tokens

    def project(self, kept: torch.Tensor) -> Projected:
        """What is kept of one or more videos -> features in the form of the model's own; differentiable."""
        return Projected(pooler_output=self._formed(self._tail(self.projector(self.projector_names[0])(kept))))

    def _formed(self, tokens: torch.Tensor) -> Any:
        """Tokens `[..., H]` of all videos in a row, listed and with as many dimensions as the model's own features."""
        if tokens.ndim != self._ndim or self._joined:
            tokens = tokens.reshape((1,) * (self._ndim - 2) + (-1, tokens.shape[-1]))
        return [tokens] if self._listed else tokens

    def _wrapped(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """The body's features method: its own for pixels, the projection for what is kept of a tower."""
        features = update_wrapper(partial(self._features, own), own)  # not a closure: a copied model has its own tower
        features.tower = self  # type: ignore[attr-defined]
        return features

    def _features(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kept = next((v for v in (*args, *kwargs.values()) if isinstance(v, TowerOutput)), None)
        return own(*args, **kwargs) if kept is None else self.project(kept.as_subclass(torch.Tensor))


def tower_of(body: Any, kind: type[Tower]) -> Tower:
    """The tower that is in `body` already, or a new one: adapters over one model share it."""
    known = [getattr(getattr(body, method, None), "tower", None) for method in PIXELS.values()]
    return next((tower for tower in known if type(tower) is kind), None) or kind(body)


def _same(own: Any, made: Any) -> bool:
    """Whether two sets of features are the same tensors in the same lists, to the accuracy of their kind."""
    names = ("pooler_output", "deepstack_features")
    ours, theirs = ([t for n in names for t in _tensors(getattr(f, n, None))] for f in (made, own))
    if [(depth, t.shape) for depth, t in ours] != [(depth, t.shape) for depth, t in theirs]:
        return False
    loose = 1e-4 if theirs[0][1].dtype == torch.float32 else 2e-2
    return all(torch.allclose(a, b, rtol=loose, atol=loose) for (_, a), (_, b) in zip(ours, theirs, strict=True))


def _tensors(value: Any, depth: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
    """The tensors in nested lists, each with how deep it lies."""
    if isinstance(value, torch.Tensor):
        yield depth, value
    for part in value if isinstance(value, (list, tuple)) else ():
        yield from _tensors(part, depth + 1)
