"""`vstar-fast replay`: a training batch that gave no finite loss or gradient, once more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vstar_fast.cli.commands import FOLDER, main
from vstar_fast.cli.settings import quieten

MOST = 20
"""Broken weights that are listed."""


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--device", default="auto", help="Where to compute: auto, cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def replay(folder: Path, device: str, as_json: bool) -> None:
    """Repeat the batch that a training stopped at: loss and gradient of each example, and which weights break."""
    quieten()
    from vstar_fast import torchvision_compat

    torchvision_compat.ensure()
    from vstar_fast.finetune import replay as again

    found = again(folder, device)
    click.echo(json.dumps(found) if as_json else "\n".join(_lines(found)))


def _lines(found: dict[str, Any]) -> list[str]:
    rows = [("all of step " + str(found["step"]), found), *((e["question_id"], e) for e in found["examples"])]
    broken = found["broken"]
    rest = [f"and {len(broken) - MOST} more"] if len(broken) > MOST else []
    return [
        *(f"{name}: loss {row['loss']:.6g}, gradient norm {row['grad_norm']:.6g}" for name, row in rows),
        *([f"not finite: {', '.join([*broken[:MOST], *rest])}"] if broken else ["every weight and gradient is finite"]),
    ]
