"""Generation and label scoring for Hugging Face video-LMMs: what answers share is computed and read once.

`Engine(model, processor).generate(videos, questions, n=8)` for other projects; a run uses `Crew`, of which
each worker is a `Scheduler` (continuous batching over a paged KV cache).
"""

from vstar_fast import torchvision_compat

torchvision_compat.ensure()  # transformers, which the cache is a class of, fails to import beside CPU torch without it

from vstar_fast.engine.crew import Crew  # noqa: E402
from vstar_fast.engine.engine import Engine  # noqa: E402
from vstar_fast.engine.request import Answer, Counts, Request, Settings  # noqa: E402
from vstar_fast.engine.scheduler import Scheduler  # noqa: E402
from vstar_fast.engine.score import Scorer  # noqa: E402
from vstar_fast.engine.shared_prefix import SharedPrefixCache  # noqa: E402
from vstar_fast.engine.text_lm import TextLM  # noqa: E402

__all__ = [
    "Answer",
    "Counts",
    "Crew",
    "Engine",
    "Request",
    "Scheduler",
    "Scorer",
    "Settings",
    "SharedPrefixCache",
    "TextLM",
]
