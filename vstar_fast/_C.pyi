"""Types of the compiled module; pointers and streams are integers."""

from collections.abc import Sequence

has_cuda: bool

# (own, out, which, rows, which words, negation) and (ids, offsets, lengths, stride, columns, ids are int64)
_Out = tuple[int, int, int, int, int, bool]
_Ids = tuple[int, int, int, int, int, bool]

def compile_labels(forms: Sequence[str], owners: Sequence[int], after: str) -> bytes: ...
def compile_tokens(pieces: Sequence[bytes | None]) -> bytes: ...
def label_match_texts_cpu(tables: int, texts: Sequence[str | bytes], out: _Out, threads: int) -> None: ...
def label_match_cpu(tables: int, text: int, offsets: int, out: _Out, threads: int) -> None: ...
def label_match_ids_cpu(tables: int, tokens: int, ids: _Ids, out: _Out, threads: int) -> int: ...
def label_match_cuda(host_tables: int, tables: int, text: int, offsets: int, out: _Out, stream: int) -> None: ...
def label_match_ids_cuda(
    host_tables: int,
    tables: int,
    host_tokens: int,
    tokens: int,
    ids: _Ids,
    out: _Out,
    scratch: int,
    scratch_bytes: int,
    warps: int,
    stream: int,
) -> None: ...

# ([gold, absolute, relative, units, offsets, out, values, score], rows, pick, whether they are intervals)
_Values = tuple[list[int], int, int, bool]

def find_unit(name: str) -> int: ...
def match_values_cpu(tables: int, texts: Sequence[bytes], arguments: _Values) -> None: ...
def match_values_ids_cpu(tables: int, tokens: int, ids: _Ids, arguments: _Values) -> tuple[int, int]: ...
def match_values_cuda(
    host_tables: int, tables: int, text: int, offsets: int, arguments: _Values, stream: int
) -> None: ...
def word_mask_names() -> list[str]: ...
def word_masks(name: str, text: bytes) -> tuple[list[int], list[int]]: ...
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
