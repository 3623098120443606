"""Settings for someone's own data and model, written after both have been looked at."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from vstar_fast import config as settings
from vstar_fast.errors import ConfigError, ModelError
from vstar_fast.files import write_text

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def write(data: Path, model: str, out: Path, *, force: bool = False, over: dict[str, Any] | None = None) -> list[str]:
    """Write commented settings to `out`, `over` (nested like the file) among them; returns lines on what was found.

    Raises DataError when no labelled video can be read, ModelError when the model folder lacks a file.
    """
    from vstar_fast import models, readers

    if out.exists() and not force:
        raise ConfigError(f"{out} exists; give another --out, or --force to overwrite it")
    path = data.expanduser().resolve()
    config = settings.from_dict(settings.merge({"data": {"path": str(path)}}, over or {}))
    videos, rejected, sets = readers.read(config.data, seed=config.seed)
    source = _check_model(model)
    config = replace(config, model=replace(config.model, base=source))
    write_text(out, f"# Run it: vstar-fast cycle --config {out}\n{settings.to_toml(config, comments=True)}")
    splits = Counter(v.split for v in videos)
    kinds = Counter(label.kind for v in videos for label in v.labels)
    lines = [
        f"{len(videos)} videos: " + ", ".join(f"{splits[s]} {s}" for s in ("train", "dev", "test")),
        "labels: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()),
        *(f"label set {name}: {len(values)} names" for name, values in sets.items()),
    ]
    asked = {label.set for v in videos for label in v.labels if label.kind == "class"}
    lines += [
        f"label set {name} has one name: every answer is right, and there is nothing to learn"
        for name, values in sets.items()
        if name in asked and len(values) == 1
    ]
    if not splits["train"]:
        lines.append("no train videos: a cycle has nothing to learn from; give some the split train, or none a split")
    if not splits["dev"] or not splits["test"]:
        lines.append("too few videos for dev and test: no plateau can be seen, no accuracy reported; add videos")
    if Path(source).is_dir():
        lines.append(f"model: {models.model_type(source)}, {models.adapter_name(source)} adapter")
    else:
        lines.append(f"model {source} is taken for a hub id; it is not looked up before the run")
    if rejected:
        reasons = ", ".join(f"{r} {n}" for r, n in Counter(r.reason for r in rejected).most_common(3))
        lines.append(f"{len(rejected)} rows left out: {reasons}; first: {rejected[0].detail}")
    return [*lines, f"{out} is written; next: vstar-fast cycle --config {out}"]


def _check_model(model: str) -> str:
    """The model as it goes into the settings: an absolute folder that is complete, or a hub id."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        parts = model.split("/")
        if len(parts) == 2 and all(parts) and not folder.exists() and parts[0] not in (".", "..", "~"):
            return model
        raise ModelError(f"{model} is neither a model folder nor a hub id (owner/name)")
    if not (folder / "config.json").is_file():
        raise ModelError(f"model folder {folder} has no config.json; give a folder written by `save_pretrained`")
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        raise ModelError(f"model folder {folder} has no processor; it needs one of {', '.join(PROCESSOR_FILES)}")
    return str(folder.resolve())
