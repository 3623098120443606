"""Where the package keeps what it downloads or renders for one user."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """User cache folder: `$VSTAR_FAST_CACHE`, `$XDG_CACHE_HOME/vstar_fast` or `~/.cache/vstar_fast`.

    The folder is not created here.
    """
    own = os.environ.get("VSTAR_FAST_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "vstar_fast"
