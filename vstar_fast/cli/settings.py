"""From a command's options to the settings of a run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vstar_fast.errors import ConfigError

if TYPE_CHECKING:
    from vstar_fast.config import CycleConfig
    from vstar_fast.progress import Progress


def settings_of(options: dict[str, Any], run_dir: Path | None, progress: Progress) -> CycleConfig:
    """The settings that `--config`, `--demo` or an earlier run has, and what else is given on top of them."""
    from vstar_fast import config as settings

    path: Path | None = options["config"]
    if path is not None and options["demo"]:
        raise ConfigError("--config and --demo exclude each other")
    over = _overrides(options)
    if path is not None:
        return settings.load(path, over)
    # The demo and a run folder name every setting; what the user did not write must not outdo the recipe asked for.
    recipe = settings.PAPER if over.get("recipe") == "paper" else {}
    if options["demo"]:
        from vstar_fast import demo

        quieten()
        with progress, progress.task("demo clips") as bar:
            base = settings.to_dict(demo.config(seed=options["seed"] or 0, progress=bar.update))
        return settings.from_dict(settings.merge(settings.merge(base, recipe), over))
    if run_dir is not None and (run_dir / "config.toml").is_file():
        return settings.load(run_dir / "config.toml", settings.merge(recipe, over))
    raise ConfigError("say what to run: --config run.toml (see `vstar-fast init`), --demo, or --run of an earlier run")


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Settings given on the command line, nested like the file."""
    from vstar_fast.config import merge

    flags: dict[str, dict[str, Any]] = {
        "strict": {"data": {"strict": True}},
        "free": {"generate": {"constrain": False}},
        "no_rationalize": {"rationalize": {"enabled": False}},
        "no_filter": {"loop": {"filter": False}},
        "keep_rejected": {"generate": {"keep_rejected": True}},
        "go_on": {"loop": {"restart": "continue"}},
        "rationalize_only": {"loop": {"direct": False}},
    }
    over: dict[str, Any] = {k: options[k] for k in ("recipe", "seed") if options.get(k) is not None}
    for name, values in flags.items():
        over = merge(over, values) if options.get(name) else over
    if options.get("propose"):
        over = merge(over, {"generate": {"propose": options["propose"]}})
    if options.get("score_labels"):
        over = merge(over, {"evaluate": {"score_labels": True, "score_norm": options["score_labels"]}})
    return merge(over, given(options["sets"]))


def given(sets: Iterable[str]) -> dict[str, Any]:
    """Settings of `--set`, nested like the file."""
    from vstar_fast.config import merge

    over: dict[str, Any] = {}
    for text in sets:
        over = merge(over, _setting(text))
    return over


def _setting(text: str) -> dict[str, Any]:
    """`section.key=value` as nested tables; a value that is no TOML is taken as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {text!r} must look like section.key=value, e.g. generate.samples=8")
    try:
        nested: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        nested = value
    for part in reversed(name.strip().split(".")):
        nested = {part: nested}
    return dict(nested)


def quieten(model: Path | None = None) -> None:
    """Keep other libraries' bars and advice off the terminal; downloads from the hub still show theirs.

    To be called before tqdm is imported, which reads its variable then.
    """
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if model is None or model.is_dir():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")
