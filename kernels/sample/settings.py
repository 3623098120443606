"""Which temperature, top-p and top-k a draw takes, for `sample` and for `constrain`."""

from __future__ import annotations

from vstar_fast.errors import VstarError

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e4


def check_settings(temperature: float, top_p: float, top_k: int, error: type[VstarError]) -> None:
    """Raise `error` for a setting that no draw takes."""
    if temperature is None or top_p is None or top_k is None or isinstance(top_k, float):
        raise error(f"temperature={temperature}, top_p={top_p}, top_k={top_k}: give two numbers, and a whole one")
    if temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise error(f"temperature is {temperature}; use 0 for greedy, or {MIN_TEMPERATURE} to {MAX_TEMPERATURE:.0f}")
    if not 0 < top_p <= 1:
        raise error(f"top_p is {top_p}; it must be above 0 and at most 1")
    if top_k < 0:
        raise error(f"top_k is {top_k}; use 0 to keep every token")
