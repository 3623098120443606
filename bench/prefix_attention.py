"""`prefix_attention`: answers behind shared prefixes, against the same attention with a copy of the prefix a row.

On a GPU: the share of the measured copy bandwidth at which keys and values are read, every backend, the length from
which on sharing pays (`threshold.MEASURED`), and other tiles of the kernel. On a CPU: its own backend, small shapes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from vstar_fast.bench import cost
from vstar_fast.kernels.prefix_attention import Groups, Segment, flash_attn, prefix_attention, tiles

from vstar_fast import backends

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

OWN = 96
"""Tokens of an answer so far."""
SHARE = 0.8
"""Of the copy bandwidth, wanted from 2000 positions on."""
LENGTHS = (16, 32, 64, 128, 192, 256, 512, 1024)

Found = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """`videos` prefixes of `positions`, `k` answers behind each, one layer of a model."""

    model: str
    heads: int
    key_heads: int
    width: int
    videos: int = 32
    k: int = 8
    positions: int = 2000

    def __str__(self) -> str:
        return f"{self.model} heads {self.heads}/{self.key_heads}, {self.videos} x {self.k}, P={self.positions}"

    @property
    def itemsize(self) -> int:
        """Bytes of a number on a GPU."""
        return 2


MHA, GQA = Shape("Video-LLaVA 7B", 32, 32, 128), Shape("Qwen2.5-VL 7B", 28, 4, 128)
SMALL = Shape("SmolLM2 135M", 9, 3, 64, 4, 8, 512)


def model_cost(shape: Shape, card: cost.Card) -> cost.Cost:
    """Keys, values and queries once, the parts once out and in again; as `triton_kernel.run` cuts them."""
    rows, each = shape.videos * shape.k, shape.heads // shape.key_heads
    cut = tiles.tile(shape.k * each, shape.width, shape.itemsize)
    programs = shape.videos * shape.key_heads * -(-shape.k * each // cut.rows)
    count = tiles.splits(programs, shape.positions, card.processors * cut.resident)
    token = 2 * shape.key_heads * shape.width * shape.itemsize
    stored = (shape.videos * shape.positions + rows * OWN) * token
    ends = 2 * rows * shape.heads * shape.width * shape.itemsize
    parts = 2 * (count + 1) * rows * shape.heads * (shape.width + 1) * 4
    flops = 4 * rows * shape.heads * shape.width * (shape.positions + OWN)
    return cost.Cost(stored + ends + parts, flops, programs * count, cut.resident)


@dataclass
class Data:
    """Inputs of one case: shared, and the same with a copy of the prefix in front of each row's own tokens."""

    query: torch.Tensor
    shared: list[list[Segment]]
    plain: list[list[Segment]]

    @property
    def read(self) -> int:
        """Bytes of keys and values that the shared form must read."""
        return sum(s.keys.nbytes + s.values.nbytes for level in self.shared for s in level)


def data(shape: Shape, device: str) -> Data:
    """Random queries, prefixes and own tokens."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    made = torch.Generator(device).manual_seed(shape.positions)
    rows = shape.videos * shape.k

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=made, device=device).to(dtype)

    prefix = [random(shape.videos, shape.key_heads, shape.positions, shape.width) for _ in range(2)]
    own = [random(rows, shape.key_heads, OWN, shape.width) for _ in range(2)]
    tokens = torch.arange(rows, device=device)
    each = Groups(tokens[:, None])
    shared = [[Segment(prefix[0], prefix[1], Groups(tokens.view(shape.videos, shape.k)))]]
    shared.append([Segment(own[0], own[1], each)])
    copies = [torch.cat([p.repeat_interleave(shape.k, 0), o], 2) for p, o in zip(prefix, own, strict=True)]
    return Data(random(rows, shape.heads, shape.width), shared, [[Segment(copies[0], copies[1], each)]])


def same(ours: Found, theirs: Found) -> bool:
    """Equal to the rounding of the dtype."""
    loose = 1e-4 if ours[0].dtype == torch.float32 else 2e-2
    return torch.allclose(ours[0].float(), theirs[0].float(), atol=loose, rtol=loose) and torch.allclose(
        ours[1], theirs[1], atol=1e-3, rtol=1e-3
    )


def run(bench: Bench, quick: bool) -> None:
    """Shared against copied prefixes; on a GPU all that stands at the head of this file."""
    card = cost.card_here() or cost.CARDS["H200"]
    for shape in (MHA, GQA):
        predicted(bench, shape, card)
    if bench.device == "cuda":
        on_gpu(bench, quick, card)
        return
    choice = backends.choose("prefix_attention", "cpu").name
    for positions in (64,) if quick else (64, 512, 2000):
        shape = Shape(SMALL.model, SMALL.heads, SMALL.key_heads, SMALL.width, SMALL.videos, SMALL.k, positions)
        against_plain(bench, shape, choice)


def predicted(bench: Bench, shape: Shape, card: cost.Card) -> None:
    """A row with what the cost model says, and its line."""
    expected = model_cost(shape, card)
    if bench.echo:
        print(expected.line(card))
    bench.add(
        case=str(shape), subject="cost model", baseline="none", metric=f"predicted on {card.name}",
        value=expected.seconds(card) * 1e6, unit="us/layer", ratio=None, equal=True, backend="none",
    )  # fmt: skip


def against_plain(bench: Bench, shape: Shape, backend: str, target: float | None = None) -> float | None:
    """Rows of one backend; the device's seconds a call."""
    d = data(shape, bench.device)

    def ours() -> Found:
        return prefix_attention(d.query, d.shared, backend=backend)

    def theirs() -> Found:
        return prefix_attention(d.query, d.plain, backend=backend)

    bench.compare(
        str(shape), ours, theirs, equal=same, names=("shared", "a copy a row"), work=(1, "layer"), target=target,
        backend=backend, graph="both",
    )  # fmt: skip
    value = bench.latest().value
    return None if value is None else value / 1e6


def on_gpu(bench: Bench, quick: bool, card: cost.Card) -> None:
    """Bandwidth, backends, threshold and tiles."""
    copied = cost.copy_bytes_s()
    bench.add(
        case="copy of 1 GiB", subject="torch copy_", baseline=f"{card.name} data sheet", metric="bandwidth",
        value=copied / 1e9, unit="GB/s", ratio=copied / card.bytes_s, equal=True, backend="torch",
    )  # fmt: skip
    for shape in (MHA, GQA):
        for backend in ("triton", "flash", "gemm"):
            taken = against_plain(bench, shape, backend)
            if taken is not None:
                share(bench, shape, backend, taken, copied)
        if not quick:
            other_tiles(bench, shape)
    for shape in (MHA, GQA):
        prompts(bench, shape, card)
    crossing(bench, LENGTHS[::3] if quick else LENGTHS)


def share(bench: Bench, shape: Shape, backend: str, seconds: float, copied: float) -> None:
    """How fast keys and values were read, as a share of the copy's rate."""
    token = 2 * shape.key_heads * shape.width * shape.itemsize
    read = (shape.videos * shape.positions + shape.videos * shape.k * OWN) * token
    rate = read / seconds
    bench.add(
        case=str(shape), subject="shared", baseline=f"{SHARE:g} of the copy's", metric="bandwidth", value=rate / 1e9,
        unit="GB/s", ratio=rate / copied / SHARE, equal=True, target=1.0 if backend == "triton" else None,
        backend=backend,
    )  # fmt: skip


def prompts(bench: Bench, shape: Shape, card: cost.Card, count: int = 4, tokens: int = 2048) -> None:
    """Prompts over their own tokens: each fused attention that is here against the Triton kernel."""
    moved = 2 * count * tokens * (shape.heads + shape.key_heads) * shape.width * shape.itemsize
    flops = 2 * count * tokens**2 * shape.heads * shape.width
    if bench.echo:
        print(cost.Cost(moved, flops, count * shape.heads * -(-tokens // 128), 1).line(card))
    made, device = torch.Generator(bench.device).manual_seed(0), bench.device

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=made, device=device).to(torch.bfloat16)

    keys, values = (random(count, shape.key_heads, tokens, shape.width) for _ in range(2))
    groups = Groups(torch.arange(count * tokens, device=device).view(count, tokens), causal=True)
    query, levels = random(count * tokens, shape.heads, shape.width), [[Segment(keys, values, groups)]]
    case = f"{shape.model} heads {shape.heads}/{shape.key_heads}, {count} prompts of {tokens}"
    for backend in (*flash_attn.FUNCTIONS, "flash"):
        probe = backends.available(backend)
        if not probe.ok:
            bench.absent(case, backend, probe.why)
            continue
        bench.compare(
            case, partial(prefix_attention, query, levels, backend=backend),
            partial(prefix_attention, query, levels, backend="triton"), equal=same, names=(backend, "triton"),
            work=(1, "layer"), backend=backend, graph="both",
        )  # fmt: skip


def crossing(bench: Bench, lengths: tuple[int, ...]) -> None:
    """The longest prefix that is no faster shared: `threshold.MEASURED` of this card."""
    slower = 0
    for positions in lengths:
        shape = Shape("Qwen2.5-VL 7B", 28, 4, 128, positions=positions)
        against_plain(bench, shape, "triton")
        ratio = bench.latest().ratio
        if ratio is not None and ratio < 1.0:
            slower = positions
    bench.add(
        case="plain below", subject="shared", baseline="a copy a row", metric="positions", value=slower or 1,
        unit="positions", ratio=None, equal=True, backend="triton",
    )  # fmt: skip


def other_tiles(bench: Bench, shape: Shape) -> None:
    """The kernel with other columns, warps and stages; the first row is the tile that is taken."""
    from vstar_fast.kernels.prefix_attention import triton_kernel

    d = data(shape, "cuda")
    taken = tiles.tile(shape.k * shape.heads // shape.key_heads, shape.width, shape.itemsize)
    tried = [
        taken._replace(columns=columns, warps=warps, stages=stages)
        for columns in (32, 64, 128)
        for warps in (4, 8)
        for stages in (2, 3)
    ]
    for cut in [taken, *(t for t in tried if t != taken)]:
        with using(triton_kernel, cut):
            try:
                run_it = partial(triton_kernel.run, d.query, d.shared, shape.width**-0.5)
                seconds = cost.gpu_seconds(cost.replayed(run_it))
            except Exception as error:  # a tile that does not fit is no result
                print(f"  {cut}: {type(error).__name__}: {error}")
                continue
        bench.add(
            case=f"{shape}, {cut.rows} x {cut.columns}, {cut.warps} warps, {cut.stages} stages", subject="shared",
            baseline="none", metric="gpu", value=seconds * 1e6, unit="us/layer", ratio=None, equal=True,
            backend="triton",
        )  # fmt: skip


@contextlib.contextmanager
def using(module: Any, cut: tiles.Tile) -> Iterator[None]:
    """Inside, the launcher takes this tile."""
    own: Callable[..., tiles.Tile] = module.tile
    module.tile = lambda *_: cut
    try:
        yield
    finally:
        module.tile = own
