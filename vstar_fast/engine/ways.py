"""Which way a model's answers are drawn: packed, or by its own forward where its layers cannot be packed."""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch

from vstar_fast.backends import Choice
from vstar_fast.engine.cache import refusal
from vstar_fast.engine.plain import PlainScheduler
from vstar_fast.engine.request import Request
from vstar_fast.engine.scheduler import Scheduler
from vstar_fast.errors import ConfigError, ModelError
from vstar_fast.models import FAMILIES
from vstar_fast.models.bidirectional import embedded
from vstar_fast.models.model_lock import alone, on_host
from vstar_fast.models.modules import evaluating, rounding, unmixed
from vstar_fast.models.preprocessing import probe_clip
from vstar_fast.records import FrameBatch

WAYS = {"packed": Scheduler, "plain": PlainScheduler}
ENGINES = ("auto", *WAYS)
_said: set[Choice] = set()
_seen: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""What `obstacle` found out about a model on a random clip."""


def obstacle(lm: Any) -> str:
    """Why a model's prompts cannot be packed, in words; empty where they can. Seen on a random clip, once a model.

    Of a family that is not among those tested, packed label scores must be those of its own forward, too.
    """
    why = refusal(lm.text_model)
    if why or not hasattr(lm, "encode") or lm.device.type == "meta":
        return why
    if lm not in _seen:
        _seen[lm] = ""  # what is tried below asks for it
        _seen[lm] = _tried(lm)
    return _seen[lm]


def _tried(lm: Any) -> str:
    data, times_s = probe_clip()
    with alone(lm.text_model), evaluating(lm.model), unmixed(lm), torch.inference_mode():
        (features,) = lm.encode(FrameBatch([data], [times_s], []))
        head, tail = lm.split("a b")
        asked = Request(head, tail, features, [0])
        try:
            embedded(lm, torch.cat([asked.head, features.ids, asked.tail]), features)
            return "" if lm.model.config.model_type in FAMILIES else differs(lm, asked)
        except ModelError as error:
            return str(error)


def differs(lm: Any, asked: Request) -> str:
    """How far label scores behind a prompt, packed, are from the model's own, in words; empty where it is rounding."""
    from vstar_fast.engine.score import Scorer

    labels = [[asked.tail[:n].tolist()] for n in (1, 2, 3)]
    packed, own = (Scorer(lm, engine=name).score([asked, asked], labels) for name in WAYS)
    error = float(((packed - own).abs() / own.abs().clamp(min=1)).max())
    if error <= rounding(lm):
        return ""
    return f"{type(lm.model).__name__} scores labels otherwise when it is packed, {error:.2g} of their score"


def choose(lm: Any, engine: str = "auto") -> Choice:
    """`packed` or `plain`, and why. `auto`: packed where the text stack can be.

    Raises ModelError for `packed` where it cannot be, ConfigError for an engine that there is not.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}; use one of {', '.join(ENGINES)}")
    why = obstacle(lm)
    if engine == "packed" and why:
        raise ModelError(f"{why}; use generate.engine = auto or plain, which take the model's own forward")
    if engine == "auto":
        return Choice("plain", why) if why else Choice("packed", "all its layers can be")
    return Choice(engine, "asked for by name")


@on_host()
def chosen(lm: Any, engine: str = "auto") -> Choice:
    """As `choose`; where that makes a run slower without having been asked for, a warning says so, once."""
    found = choose(lm, engine)
    if found.name == "plain" and engine == "auto" and found not in _said:
        _said.add(found)
        logging.getLogger(__name__).warning("answers and label scores go the plain way, slower: %s", found.reason)
    return found
