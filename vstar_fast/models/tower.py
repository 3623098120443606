"""The frozen vision tower: its output is kept before any trained projector, and stands in for pixels later.

`get_video_features` (or `get_image_features`, where a family takes frames as images) of the model's body is the
surface that all families share. It is wrapped on the instance: given what `Tower.encode` kept instead of pixels,
it makes the features from that. So the model's own code does all the rest, from merging to positions, in `generate` as
well.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from typing import Any

import torch

from vstar_fast.errors import ModelError, out_of_memory
from vstar_fast.models import attention
from vstar_fast.models.cuts import CUTS, Cut, Source, same
from vstar_fast.models.modules import evaluating

PIXELS = ("pixel_values_videos", "pixel_values")
"""Inputs that take a video's pixels."""
METHODS = ("get_video_features", "get_image_features")
"""Methods of a body that take them; the second is for families that take frames as images."""
OTHER = "its features are not the projector's output"
KEPT = "tower_features"
"""Name of the tower's output among a video's inputs."""
SHAPE = "tower_input_shape"
"""Name of the shape of the pixels that it was made from, int64 `[1, dimensions]`."""


class TowerOutput(torch.Tensor):
    """Stands where pixels stand, with their shape and no content, but has been through the tower."""

    kept: torch.Tensor
    """What the tower gave for these pixels."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As any tensor; what is made of one stands for the same."""
        made = super().__torch_function__(func, types, args, kwargs or {})
        source = next((a for a in args if isinstance(a, TowerOutput)), None)
        if isinstance(made, TowerOutput) and source is not None:
            made.kept = source.kept
        return made


class Tower:
    """Runs the tower of a model body and makes the model's features from what it gave."""

    keeps = "what its projector is given, where that can be told apart; else pixels"

    def __init__(self, body: Any) -> None:
        self.body = body
        self._own: dict[str, Any] = {}
        for method in METHODS:
            if hasattr(body, method):
                self._own[method] = getattr(body, method)
                setattr(body, method, self._wrapped(self._own[method]))
        self.cut: Cut | None = None
        """How features are made from what is kept; None before `prepare`, and where pixels are kept."""
        self.why_pixels = ""
        """Why pixels are kept in place of the tower's output; empty where they are not."""

    @property
    def methods(self) -> list[str]:
        """Which of the two methods the body has."""
        return list(self._own)

    @property
    def projector_names(self) -> list[str]:
        """Full names, within the body, of the modules between tower and text stack; by their names before `prepare`."""
        cut = self.cut or next((c for c in (kind(self.body) for kind in CUTS) if c.names), None)
        return [] if cut is None else list(cut.names)

    def prepare(self, inputs: dict[str, torch.Tensor], double: dict[str, torch.Tensor] | None = None) -> None:
        """Find out, on the inputs of any video, how this model's own features follow from what is kept.

        `double`: the inputs of two such videos; None for a model that takes one at a time.
        """
        self.cut = None
        self._check(inputs)
        why = ""
        for kind in CUTS:
            cut = kind(self.body)
            why = self._obstacle(cut, inputs, double)
            if not why:
                self.cut = cut
                return
        self._keep_pixels(why)

    @torch.no_grad()
    def _check(self, inputs: dict[str, torch.Tensor]) -> None:
        try:
            self.run(inputs)
        except Exception as error:  # whatever a model's code stumbles over
            if out_of_memory(error):
                raise
            import transformers

            raise ModelError(
                f"{type(self.body).__name__} of transformers {transformers.__version__} cannot take a clip made by its "
                f"processor: {error}; do weights and processor belong together? else try another transformers"
            ) from error

    def _keep_pixels(self, why: str) -> None:
        self.why_pixels = why
        name = type(self.body).__name__
        logging.getLogger(__name__).warning("%s: the tower runs again for every use of a video: %s", name, why)

    @torch.no_grad()
    def _obstacle(self, cut: Cut, inputs: dict[str, torch.Tensor], double: dict[str, torch.Tensor] | None) -> str:
        """Why a cut does not fit; empty where it does."""
        twice = None if double is None else partial(self.run, double)
        try:
            fits = cut.fits(self._source(inputs, twice))
        except Exception as error:  # whatever a model's code does with its modules replaced
            if out_of_memory(error):
                raise
            return str(error) or type(error).__name__
        return "" if fits else OTHER

    def run(self, inputs: dict[str, torch.Tensor]) -> Any:
        """The model's own features of pixel inputs, without dropout."""
        name = pixels_of(inputs)
        own = self._method(name)
        taken = inspect.signature(own).parameters
        attention.ran_in_tower(self.body)
        with evaluating(self.body):
            return own(inputs[name], **{k: v for k, v in inputs.items() if k in taken and k not in PIXELS})

    def _method(self, pixels: str) -> Callable[..., Any]:
        """The body's own method for a kind of pixels: of a body without one for videos, that for images."""
        wanted = METHODS[PIXELS.index(pixels)]
        return self._own.get(wanted) or next(iter(self._own.values()))

    def _source(self, inputs: dict[str, torch.Tensor], twice: Callable[[], Any] | None = None) -> Source:
        name = pixels_of(inputs)
        return Source(lambda pixels: self.run({**inputs, name: pixels}), inputs[name], twice)

    @torch.no_grad()
    def encode(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pixel inputs of one video -> its inputs with the tower's output in place of pixels; see `prepare`."""
        if self.why_pixels or self.cut is None:
            return inputs
        video = self._source(inputs)
        blank = Source(video.own, _blank(video.pixels.shape, video.pixels))
        kept, own = self.cut.keep(video)
        if own is not None and not same(own, self.cut.features(kept, blank)):
            self._keep_pixels(OTHER)
            return inputs
        rest = {k: v for k, v in inputs.items() if not k.startswith("pixel_")}
        return {KEPT: kept, SHAPE: torch.tensor([video.pixels.shape]), **rest}

    def stand_in(self, kept: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """What is kept, in the guise of the pixels of this shape that it was made from; it takes no more memory."""
        marked = _blank(shape, kept).as_subclass(TowerOutput)
        marked.kept = kept
        return marked

    def _wrapped(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """The body's features method: its own for pixels, made from what is kept of a tower."""
        features = update_wrapper(partial(self._features, own), own)  # not a closure: a copied model has its own tower
        features.tower = self  # type: ignore[attr-defined]
        return features

    def _features(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        marked = next((v for v in (*args, *kwargs.values()) if isinstance(v, TowerOutput)), None)
        if marked is None or self.cut is None:
            return own(*args, **kwargs)

        def again(pixels: torch.Tensor) -> Any:
            given = [pixels if v is marked else v for v in args]
            return own(*given, **{k: pixels if v is marked else v for k, v in kwargs.items()})

        return self.cut.features(marked.kept, Source(again, _blank(marked.shape, marked.kept)))


def pixels_of(inputs: dict[str, torch.Tensor]) -> str:
    """Name of the input that takes a video's pixels."""
    return next(name for name in PIXELS if name in inputs)


def _blank(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Pixels that nothing looks at; they take no memory. Not zero: SmolVLM drops pictures of zeros, its padding."""
    return torch.ones((), dtype=like.dtype, device=like.device).expand(*shape)


def tower_of(body: Any, kind: type[Tower] = Tower) -> Tower:
    """The tower that is in `body` already, or a new one: adapters over one model share it."""
    known = [getattr(getattr(body, method, None), "tower", None) for method in METHODS]
    return next((tower for tower in known if type(tower) is kind), None) or kind(body)
