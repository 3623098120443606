"""`vstar-fast cache`: look into the caches of frames and encodings, empty them, or fill them before a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vstar_fast.cli.commands import FOLDER, main, opened, source_options
from vstar_fast.errors import ConfigError

if TYPE_CHECKING:
    from vstar_fast.cache import Cache

NAMES = ("index", "frames", "embeddings")


@main.group()
def cache() -> None:
    """Frames and encodings that are kept so that no video is decoded or encoded twice."""


def _where(command: Any) -> Any:
    command = click.option("--folder", type=FOLDER, help="Cache folder (`cache.folder` of the settings).")(command)
    return click.option("--run", "run_dir", type=FOLDER, help="Run folder, whose settings name the cache.")(command)


def _caches(run_dir: Path | None, folder: Path | None) -> dict[str, Cache]:
    from vstar_fast import config
    from vstar_fast.run import features

    if folder is not None:
        return features.caches(config.CacheConfig(folder=str(folder)), folder)
    # A run of several seeds has its settings in their folders.
    kept = sorted(p for at in ("config.toml", "seed-*/config.toml") for p in run_dir.glob(at)) if run_dir else []
    if not kept:
        raise ConfigError("say which cache: --run of a run that has begun, or --folder")
    return features.caches(config.load(kept[0]).cache, kept[0].parent)


@cache.command()
@_where
def info(run_dir: Path | None, folder: Path | None) -> None:
    """Entries and bytes of each cache."""
    for name, kept in _caches(run_dir, folder).items():
        found = kept.info()
        of = f"{found['bytes'] / (1 << 20):.1f} of {found['budget_bytes'] / (1 << 20):.0f} MiB"
        click.echo(f"{name}: {found['entries']} entries, {of}, {found['folder']}")


@cache.command()
@_where
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
def clear(run_dir: Path | None, folder: Path | None, names: tuple[str, ...]) -> None:
    """Empty the caches NAMES (default: all). What is cleared is made again when it is needed."""
    for name, kept in _caches(run_dir, folder).items():
        if not names or name in names:
            click.echo(f"{name}: {_freed(kept) / (1 << 20):.1f} MiB freed")


def _freed(kept: Cache) -> int:
    try:
        return kept.clear()
    except OSError as error:
        raise ConfigError(
            f"cannot clear {kept.folder}: {error}; see to the rights on it, or remove it by hand"
        ) from None


@cache.command()
@source_options
def warm(**options: Any) -> None:
    """Decode and encode all videos of a run now."""
    config, run_dir, progress, profiler = opened(options)
    from vstar_fast import readers
    from vstar_fast.run.runtime import Runtime

    with progress:
        videos, _, _ = readers.read(config.data, seed=config.seed)
        runtime = Runtime(config, run_dir, profiler, progress)
        try:
            for path in dict.fromkeys((config.model.base, runtime.init_path)):
                bar = progress.task("warm", len(videos))
                runtime.expect(path, videos)
                for start in range(0, len(videos), 8):
                    part = videos[start : start + 8]
                    runtime.features(path, part)
                    bar.advance(len(part))
                bar.close()
            found = runtime.frame_counts()
        finally:
            runtime.close()
    progress.event("result", stage="warm", result=found)
    if not (progress.quiet or progress.json):
        from vstar_fast import console

        console.show_values(found)
