"""From which length on a prefix is worth a part of its own: below it, rows keep a copy in front of their own tokens.

`vstar-fast bench prefix_attention` finds the crossing on a card ("plain below"); what it found goes into MEASURED.
"""

from __future__ import annotations

import functools
import os

import torch

from vstar_fast.errors import ConfigError

MEASURED: dict[str, int] = {}
"""Part of a card's name -> positions, as measured there; none yet."""
UNMEASURED = {"cpu": 16, "cuda": 192}
"""On a CPU sharing won at 90 tokens already (16 prompts x 4: 0.6 ms a layer against 1.5); for GPUs others measured a
loss at 128 and a gain at 256."""
VARIABLE = "VSTAR_PLAIN_BELOW"


def plain_below(device: torch.device) -> int:
    """Prefixes of at most so many positions are copied to their rows on `device`.

    The environment's VSTAR_PLAIN_BELOW comes first, then what was measured on the card, then a guess. Raises
    ConfigError for a variable that is no count.
    """
    asked = os.environ.get(VARIABLE)
    if asked is not None:
        if not asked.isdecimal():
            raise ConfigError(f"{VARIABLE} is {asked!r}; it is a number of positions, 0 to share every prefix")
        return int(asked)
    return _of_card(device)


@functools.cache
def _of_card(device: torch.device) -> int:
    if device.type != "cuda":
        return UNMEASURED[device.type]
    name = torch.cuda.get_device_name(device)
    return next((count for part, count in MEASURED.items() if part in name), UNMEASURED["cuda"])
