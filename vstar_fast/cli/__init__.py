"""The command `vstar-fast`."""

from vstar_fast.cli import cache, replay  # their commands join `main`
from vstar_fast.cli.commands import main

__all__ = ["cache", "main", "replay"]
