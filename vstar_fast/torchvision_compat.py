"""torchvision beside a CPU-only torch.

The index has CUDA-linked torchvision wheels only. Beside CPU torch their C++ ops do not load, and
`import torchvision` then fails because it registers fake kernels for ops that do not exist. transformers'
video processors need only its transforms, which work: so import it once with those registrations skipped.
Never active where torch has CUDA or the plain import works.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any


@functools.cache
def ensure() -> str:
    """Make `import torchvision` work; returns `plain` or `compat`. Raises ImportError when it is not installed."""
    import torch

    try:
        import torchvision  # noqa: F401
    except (RuntimeError, AttributeError) as error:
        if torch.version.cuda is not None or "torchvision::" not in str(error):
            raise
    else:
        return "plain"
    _import_without_fakes(torch.library)
    return "compat"


def _import_without_fakes(library: Any) -> None:
    """Import torchvision with `register_fake` skipping the ops that its missing C++ library would define."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    original = library.register_fake

    def register_fake(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return _keep
        return original(op, *args, **kwargs)

    library.register_fake = register_fake
    try:
        import torchvision  # noqa: F401
    finally:
        library.register_fake = original


def _keep(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
