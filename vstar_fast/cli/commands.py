"""Command line: parse, build the settings, call. Everything heavy is imported inside a command."""

from __future__ import annotations

import json as jsonlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vstar_fast import __version__
from vstar_fast.cli.settings import quieten, settings_of
from vstar_fast.distributed import rank
from vstar_fast.errors import ConfigError, DataError, VstarError

if TYPE_CHECKING:
    from vstar_fast.config import CycleConfig
    from vstar_fast.profiling import Profiler
    from vstar_fast.progress import Progress

ARGS = "vstar_fast.args"
FORMATS = ("llava", "sharegpt", "swift", "hf")
INTERRUPTED = 130


class _Main(click.Group):
    """Turns errors on purpose into one line and an exit code, and tells how to go on after Ctrl-C."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VstarError as error:
            click.echo(f"vstar-fast: {error}", err=True)
            ctx.exit(2 if isinstance(error, (ConfigError, DataError)) else 1)
        except KeyboardInterrupt:
            click.echo("\nvstar-fast: interrupted", err=True)
            if ctx.invoked_subcommand in ("cycle", *STAGES):
                command = shlex.join(["vstar-fast", *ctx.meta[ARGS]])
                click.echo(f"What is done stays in the run folder. To go on: {command}", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vstar-fast")
def main() -> None:
    """Self-training of video language models: labelled videos in, a better model and a reasoning data set out."""


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def wrap(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return wrap


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)

source_options = _options(
    click.option("--config", type=FILE, help="Settings (TOML); `vstar-fast init` writes one."),
    click.option("--demo", is_flag=True, help="The built-in demo: rendered human motion and a small video-LMM."),
    click.option("--run", "run_dir", type=FOLDER, help="Run folder (default: runs/demo or runs/NAME of the config)."),
    click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable."),
    click.option("--seed", type=int, help="Random seed of everything."),
    click.option("--keep-rejected", is_flag=True, help="Draw answers that have gone wrong to their end, too."),
    click.option(
        "--propose", type=click.IntRange(1), metavar="N", help="Share candidates out to the N likeliest labels."
    ),
    click.option(
        "--score-labels",
        type=click.Choice(["sum", "mean", "pmi"]),
        help="Evaluate closed sets by label scores, too; pmi: against a blank video.",
    ),
    click.option("--strict", is_flag=True, help="Stop at the first row or file that cannot be used."),
    click.option("--profile", type=click.Choice(["off", "nvtx", "torch"]), default="off", help="Trace the stages."),
    click.option("--quiet", is_flag=True, help="Say nothing but errors."),
    click.option("--json", "as_json", is_flag=True, help="Progress and results as JSON lines on stdout."),
)


@main.command()
@source_options
@click.option("--recipe", type=click.Choice(["fast", "paper"]), help="How the cycle trains.")
@click.option("--seeds", type=click.IntRange(1), default=1, help="Repeat with so many seeds and pool the results.")
@click.option("--controls", is_flag=True, help="Also measure labels-only fine-tuning and shuffled labels.")
@click.option("--free", is_flag=True, help="Ablation: anything may stand behind `Answer:`, not only a label.")
@click.option("--no-rationalize", is_flag=True, help="Ablation: no second try with the label as a hint.")
@click.option("--no-filter", is_flag=True, help="Ablation: keep every answer, right or wrong.")
@click.option("--continue", "go_on", is_flag=True, help="Ablation: fine-tune on from the last cycle's model.")
@click.option("--rationalize-only", is_flag=True, help="Ablation: no direct answers.")
def cycle(seeds: int, controls: bool, **options: Any) -> None:
    """Run the whole cycle until dev accuracy stops rising. Run it again after a stop, and it goes on."""
    config, run_dir, progress, profiler = opened(options)
    from vstar_fast import cycle as cycles

    with progress:
        if seeds > 1:
            summary = cycles.run_seeds(config, run_dir, seeds, profiler=profiler, progress=progress, controls=controls)
        else:
            summary = cycles.run(config, run_dir, profiler=profiler, progress=progress, controls=controls)
    progress.event("summary", summary=summary)
    if not (progress.quiet or progress.json):
        from vstar_fast import console

        console.show_run(summary, run_dir)


STAGES = {
    "generate": "Sample answers to every training question.",
    "match": "Judge the answers: do they contain the labels?",
    "rationalize": "Ask once more, with the label as a hint, where no answer passed.",
    "finetune": "Train the adapter of a cycle on what was kept.",
    "evaluate": "Measure a cycle's model on dev and test.",
}


def _add_stage(name: str, text: str) -> None:
    @main.command(name, help=f"{text} Does what this stage still lacks, too, and nothing twice.")
    @source_options
    @click.option("--cycle", "number", type=click.IntRange(0), default=0, help="Cycle, counted from 0.")
    def stage(number: int, **options: Any) -> None:
        config, run_dir, progress, profiler = opened(options)
        from vstar_fast import cycle as cycles

        with progress:
            found = cycles.run_stage(name, config, run_dir, number, profiler=profiler, progress=progress)
        progress.event("result", stage=name, cycle=number, result=found)
        if not (progress.quiet or progress.json):
            from vstar_fast import console

            console.show_values(found)


for _name, _text in STAGES.items():
    _add_stage(_name, _text)


@main.command()
@click.option("--run", "run_dir", type=FOLDER, required=True, help="Run folder.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Form of the instruction data.")
@click.option("--merged", type=FOLDER, help="Write the trained model here, adapter merged in.")
@click.option("--out", type=FILE, help="File to write (default: RUN/FORMAT.json or .jsonl).")
@click.option("--cycle", "number", type=click.IntRange(0), help="Cycle (default: the last one).")
@click.option("--plain", is_flag=True, help="Questions without the instruction on the form of the answer.")
def export(
    run_dir: Path, form: str | None, merged: Path | None, out: Path | None, number: int | None, plain: bool
) -> None:
    """Hand on a run's accepted examples (--format), its model (--merged), or both."""
    from vstar_fast import export as exporting

    if form is None and merged is None:
        raise ConfigError(f"say what to export: --format {'|'.join(FORMATS)} for data, --merged DIR for the model")
    if form is not None:
        written = exporting.write_examples(run_dir, form, out, cycle=number, plain=plain)
        click.echo(f"{written.path}: {written.examples} examples")
        if written.windows:
            click.echo(f"{written.windows} of them are windows of longer files: see their start_s and end_s", err=True)
    if merged is not None:
        quieten()
        click.echo(exporting.write_merged(run_dir, merged, cycle=number))


@main.command()
@click.argument("run_dir", metavar="RUN", type=FOLDER)
@click.option("--out", type=FILE, help="HTML file to write (default: RUN/report.html).")
@click.option("--samples", type=click.IntRange(0), default=600, help="Most samples in the browser.")
@click.option("--thumbnails", type=click.IntRange(0), default=150, help="Most clips shown with pictures.")
def report(run_dir: Path, out: Path | None, samples: int, thumbnails: int) -> None:
    """Write a run as one HTML page that works offline: figures, time, and every sample with its verdict."""
    from vstar_fast import report as reporting

    click.echo(reporting.write(run_dir, out, samples=samples, thumbnails=thumbnails))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False)
@click.argument("further", nargs=-1, type=click.UNPROCESSED)
@click.option("--quick", is_flag=True, help="Small sizes: ends within a minute.")
@click.option("--json", "json_path", type=FILE, help="Write machine and rows as JSON here.")
def bench(name: str | None, further: tuple[str, ...], quick: bool, json_path: Path | None) -> None:
    """Measure NAME against its baseline, equal results proved first; without NAME list what can be measured.

    Some take options of their own: `bench generate --model Qwen2.5-VL-7B --videos 32 --prefix 2000`.
    """
    if name is None:
        click.echo("\n".join(_benches()))
        return
    from vstar_fast.bench import runner

    if name not in _benches():
        raise ConfigError(f"unknown bench {name!r}; known: {', '.join(_benches())}")
    raise SystemExit(runner.main(name, quick, json_path, further) or 0)


@main.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(model: str | None, as_json: bool) -> None:
    """Say which implementation of each op and stage will run on this machine, and why; what MODEL will be used as."""
    if model:
        quieten(Path(model))
    from vstar_fast import doctor as checking

    found = checking.examine(model)
    if as_json:
        click.echo(jsonlib.dumps(found, indent=1))
    else:
        checking.show(found)


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("model")
@click.option("--out", type=FILE, default=Path("run.toml"), help="Settings file to write.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE", help="One setting of the file; repeatable.")
def init(data: Path, model: str, out: Path, force: bool, sets: tuple[str, ...]) -> None:
    """Check DATA (a manifest, table, list or folder of videos) and MODEL (a folder or hub id); write settings for them.

    `--set data.columns.label=narration` says what a column means; `--set data.root=DIR`, where the clips lie.
    """
    from vstar_fast.cli.settings import given
    from vstar_fast.config import starter

    for line in starter.write(data, model, out, force=force, over=given(sets)):
        click.echo(line)


def opened(options: dict[str, Any]) -> tuple[CycleConfig, Path, Progress, Profiler]:
    """Settings, run folder, progress and profiler from a command's options."""
    from vstar_fast.profiling import Profiler
    from vstar_fast.progress import Progress

    progress = Progress(options["quiet"] or rank() > 0, options["as_json"] and rank() == 0)
    run_dir: Path | None = options["run_dir"]
    config = settings_of(options, run_dir, progress)
    quieten(Path(config.model.base))
    run_dir = run_dir or Path("runs") / (options["config"].stem if options["config"] else "demo")
    return config, run_dir, progress, Profiler(options["profile"], run_dir / "traces")


def _benches() -> list[str]:
    """Modules of `vstar_fast.bench` that are benches: they define `run(bench, quick)`."""
    import importlib.util

    spec = importlib.util.find_spec("vstar_fast.bench")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = (path for folder in folders for path in Path(folder).glob("*.py"))
    return sorted(path.stem for path in files if "\ndef run(bench: Bench" in path.read_text(encoding="utf-8"))
