"""Types of the compiled module; pointers and streams are integers."""

from collections.abc import Sequence

has_cuda: bool

def compile_labels(forms: Sequence[Sequence[int]], owners: Sequence[int], after: Sequence[int]) -> bytes: ...
def label_match_cpu(
    tables: int, text: int, offsets: int, own: int, rows: int, out: int, which: int, which_words: int, threads: int
) -> None: ...
def label_match_cuda(
    host_tables: int,
    tables: int,
    text: int,
    offsets: int,
    own: int,
    rows: int,
    out: int,
    which: int,
    which_words: int,
    stream: int,
) -> None: ...
def char_kind(code_point: int) -> int: ...
def char_fold(code_point: int) -> int: ...
def sample_cpu(
    logits: int,
    allowed: int,
    seeds: int,
    ids: int,
    logprobs: int,
    rows: int,
    columns: int,
    logits_stride: int,
    allowed_stride: int,
    step: int,
    scale: float,
    threads: int,
) -> None: ...
