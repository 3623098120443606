"""`constrain` against xgrammar (two rules), llguidance and outlines-core (regex), and a trie of ids in Hugging Face.

SmolLM2's vocabulary; "Answer: " and one of N labels. Rivals that are not installed are left out. Every case first
proves that the masks are equal: with xgrammar all of them over random walks; with llguidance, which allows only
canonical tokens where the text is forced, and with the trie of canonical ids, that what they allow is allowed.
One thread; warm: every row follows the same grammar; cold: rows take turns over four.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from vstar_fast.bench.constrain_gpu import on_gpu
from vstar_fast.bench.constrain_rivals import PREFIX, ROWS, Xgrammar, rivals, trie_of, vocabulary

from vstar_fast import ops

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

VERBS = (
    "walking running jumping kicking punching crawling rolling spinning diving throwing catching lifting pushing "
    "pulling climbing swimming rowing paddling skating surfing juggling stretching waving clapping pointing carrying"
)
OBJECTS = (
    "ball rope box cart door table guitar bicycle ladder bottle plate candle basket window curtain pillow barrel "
    "hammer bucket kite drum flag horse canoe sword shovel wheel tyre fence net racket piano trumpet broom"
)


def make_labels(count: int, seed: int = 0) -> list[str]:
    """`count` names of a verb and one or more objects: 15 bytes on average for 700, 22 for 10,000."""
    rng, out = random.Random(seed), dict[str, None]()
    things = OBJECTS.split()
    while len(out) < count:
        name = f"{rng.choice(VERBS.split())} {rng.choice(things)}"
        out[name if count <= 800 else f"{name} {rng.choice(things)}"] = None
    return list(out)


def compile_ours(names: list[str]) -> ops.Grammar:
    """Checks of the labels, template and compiling."""
    return ops.compile(ops.template(PREFIX + "{label}", label=ops.choice(names)), vocabulary()[1])


@functools.cache
def answers(count: int) -> torch.Tensor:
    """[T, ROWS] canonical ids of labels, padded with the end token."""
    tokenizer, vocab = vocabulary()
    names = random.Random(1).choices(make_labels(count), k=ROWS)
    ids = [tokenizer.encode(PREFIX + name, add_special_tokens=False) + [vocab.eos_ids[0]] for name in names]
    longest = max(map(len, ids))
    return torch.tensor([row + [vocab.eos_ids[0]] * (longest - len(row)) for row in ids]).t().contiguous()


def walk_ours(grammars: list[ops.Grammar], tokens: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Bits and moves of whole answers; the calls from Python are inside."""
    state = ops.DecodeState([grammars[i % len(grammars)] for i in range(ROWS)])
    steps = list(tokens)

    def run() -> torch.Tensor:
        state.reset()
        bits = state.fill_bitmask()
        for ids in steps:
            state.fill_bitmask()
            state.advance_(ids)
        return bits

    return run


def legal_sets(bits: torch.Tensor) -> list[int]:
    """Set bits of one row."""
    return [32 * w + b for w, word in enumerate(bits.tolist()) for b in range(32) if word >> b & 1]


def agrees(grammar: ops.Grammar, theirs: Any, rival: Any, walks: int = 4) -> bool:
    """Whether masks are equal (or part of ours, for a rival that wants canonical tokens) along random walks."""
    rng, words = random.Random(0), (grammar.vocab.logits_size + 31) // 32
    for _ in range(walks):
        state, matcher = ops.DecodeState(grammar, 1), rival.start(theirs)
        while not state.done[0]:
            bits = torch.zeros(1, words, dtype=torch.int32)
            rival.mask(matcher, bits)
            ours, other = legal_sets(state.fill_bitmask()[0]), legal_sets(bits[0])
            same = set(other) <= set(ours) and len(other) > 0 if rival.canonical else other == ours
            if not same:
                return False
            token = rng.choice(other)
            state.advance_(torch.tensor([token]))
            if not rival.take(matcher, token) and not state.done[0]:
                return False
    return True


TARGETS = {
    ("compile", "xgrammar"): (15.0, 110.0), ("compile", "llguidance"): (4.0, 4.0),
    ("step", "xgrammar"): (18.0, 400.0), ("step", "llguidance"): (150.0, 150.0),
}  # fmt: skip


def target_of(what: str, rival: Any, place: int) -> float | None:
    """The ratio that is wanted, if one is."""
    return TARGETS[what, rival.name][place] if (what, rival.name) in TARGETS else None


def _compiling(bench: Bench, names: list[str], rival: Any, place: int) -> None:
    bench.compare(
        f"compile {len(names)} labels, cold", lambda: compile_ours(names), lambda: rival.compile(names),
        equal=lambda ours, theirs: agrees(ours, theirs, rival),
        names=("vstar-fast", rival.name), target=target_of("compile", rival, place), backend="cpp", threads=1,
    )  # fmt: skip


def _stepping(bench: Bench, count: int, rival: Any, place: int, *, cold: bool) -> None:
    sets = [make_labels(count, seed) for seed in range(4 if cold else 1)]
    tokens = answers(count)
    if cold:  # every set knows the answers that are walked
        said = list(dict.fromkeys(random.Random(1).choices(make_labels(count), k=ROWS)))
        sets = [list(dict.fromkeys(said + names))[:count] for names in sets]
    ours, theirs = [compile_ours(names) for names in sets], [rival.compile(names) for names in sets]
    same = agrees(ours[0], theirs[0], rival)
    bench.compare(
        f"step, {count} labels, B={ROWS}, {'cold' if cold else 'warm'}",
        walk_ours(ours, tokens), rival.walk(theirs, tokens),
        equal=lambda *_: same, names=("vstar-fast", rival.name),
        work=(ROWS * len(tokens), "row"), target=None if cold else target_of("step", rival, place),
        backend="cpp", threads=1,
    )  # fmt: skip


def _against_goals(bench: Bench, names: list[str], grammar: ops.Grammar, place: int) -> None:
    """Memory, and CPU times of compiling and of a step, as ratios of the goals to them."""
    tokens = answers(len(names))
    step = cpu_seconds(walk_ours([grammar], tokens)) / tokens.numel()
    measured = (
        (f"memory of {len(names)} labels", "MB", grammar.sizes.bytes / 1e6, 1.1),
        (f"compile {len(names)} labels", "ms", 1e3 * cpu_seconds(lambda: compile_ours(names)), (2.0, 25.0)[place]),
        (f"step, {len(names)} labels, B={ROWS}", "us/row", 1e6 * step, 0.15),
    )
    for case, unit, value, goal in measured:
        bench.add(
            case=f"{case}, against the goal", subject="vstar-fast", baseline=f"{goal:g} {unit}",
            metric="size" if unit == "MB" else "cpu", value=value, unit=unit, ratio=goal / value, equal=True,
            target=1.0, backend="cpp", threads=1,
        )  # fmt: skip


def cpu_seconds(function: Callable[[], Any], calls: int = 15) -> float:
    """Median CPU seconds of a call."""
    taken = []
    for _ in range(calls):
        began = time.process_time()
        function()
        taken.append(time.process_time() - began)
    return sorted(taken)[calls // 2]


def _trie_step(bench: Bench, names: list[str], rows: int = 32) -> None:
    """One masked step of 32 rows behind the prefix, logits included, against the processor of prefix functions."""
    from transformers import PrefixConstrainedLogitsProcessor

    tokenizer, vocab = vocabulary()
    trie, start = trie_of(names), tokenizer.encode(PREFIX.strip(), add_special_tokens=False)
    ids = torch.tensor([start] * rows)

    def allowed(_: int, sent: torch.Tensor) -> list[int]:
        at = trie
        for token in sent.tolist():
            at = at[token]
        return list(at)

    grammar = ops.compile(ops.template(PREFIX + "{x}", x=ops.choice(names)), vocab, "canonical")
    state, logits = ops.DecodeState(grammar, rows), torch.randn(rows, vocab.logits_size)
    for token in start:
        state.advance_(torch.full((rows,), token))
    processor = PrefixConstrainedLogitsProcessor(allowed, num_beams=1)
    buffer = logits.clone()
    bench.compare(
        f"mask fp32 logits, {len(names)} labels, canonical, B={rows}",
        lambda: state.mask_(buffer), lambda: processor(ids, logits),
        equal=lambda ours, theirs: torch.equal(ours, theirs), names=("vstar-fast", "transformers prefix function"),
        work=(rows, "row"), backend="cpp", threads=1,
    )  # fmt: skip


def _applying(bench: Bench, grammar: ops.Grammar, rival: Xgrammar) -> None:
    state, logits = ops.DecodeState(grammar, ROWS), torch.randn(ROWS, grammar.vocab.logits_size)
    bits = state.fill_bitmask(torch.zeros(ROWS, state.words, dtype=torch.int32))
    ours, theirs = logits.clone(), logits.clone()

    def apply() -> torch.Tensor:
        rival.xgr.apply_token_bitmask_inplace(theirs, bits)
        return theirs

    bench.compare(
        f"apply to fp32 logits, B={ROWS}", lambda: state.mask_(ours), apply, equal=torch.equal,
        names=("vstar-fast", "xgrammar"), work=(ROWS, "row"), target=10.0, backend="cpp", threads=1,
    )  # fmt: skip


def run(bench: Bench, quick: bool) -> None:
    """Compile, step and apply with 700 and 10,000 labels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [] if quick and bench.device == "cuda" else rivals()
        for place, count in enumerate((700,) if quick else (700, 10_000)):
            names = make_labels(count)
            grammar = compile_ours(names)
            if bench.device == "cuda":
                on_gpu(bench, names, PREFIX, vocabulary()[1], next((x for x in found if isinstance(x, Xgrammar)), None))
                continue
            _against_goals(bench, names, grammar, place)
            _trie_step(bench, names)
            for rival in found:
                if count > rival.most or (quick and rival.name == "outlines_core"):
                    continue
                _compiling(bench, names, rival, place)
                _stepping(bench, count, rival, place, cold=False)
                if not quick and count == 700:
                    _stepping(bench, count, rival, place, cold=True)
                if isinstance(rival, Xgrammar) and place == 0:
                    _applying(bench, grammar, rival)
    finally:
        torch.set_num_threads(threads)
