"""Number words and units, as every reader of numbers takes them; csrc/units.h and csrc/number_text.h have the same.

Loads nothing, so that the matching stage may import it too.
"""

ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
SMALL = (*ONES, "ten", *_TEENS)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBER_WORDS = {word: i for i, word in enumerate(SMALL)} | {word: 20 + 10 * i for i, word in enumerate(TENS)}
OFTEN = {"once": 1, "twice": 2, "thrice": 3}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1e3, "million": 1e6, "billion": 1e9}
UNITS: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), ("time", 1.0)),
    **dict.fromkeys(("ms", "msec", "millisecond", "milliseconds"), ("time", 1e-3)),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), ("time", 60.0)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), ("time", 3600.0)),
    **dict.fromkeys(("time", "times", "x", "rep", "reps", "repetition", "repetitions"), ("count", 1.0)),
    **dict.fromkeys(("%", "percent", "pct"), ("share", 0.01)),
    **dict.fromkeys(("point", "points", "pt", "pts"), ("points", 1.0)),
    **dict.fromkeys(("frame", "frames"), ("frames", 1.0)),
    **dict.fromkeys(("degree", "degrees", "deg", "\u00b0"), ("angle", 1.0)),
    "mm": ("length", 1e-3),
    "cm": ("length", 1e-2),
    "km": ("length", 1e3),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), ("length", 1.0)),
    "g": ("mass", 1e-3),
    "kg": ("mass", 1.0),
}
"""Unit as written -> (dimension, factor to the dimension's base unit)."""
