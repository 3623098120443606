"""`label_match` against Python's `re` and other engines, over texts and over rows of generated ids on the host."""

from __future__ import annotations

import functools
import random
import re
from typing import TYPE_CHECKING

import torch
from vstar_fast.bench import label_rivals, token_rows

from vstar_fast import backends
from vstar_fast.ops import LabelMatch, LabelSet, label_match

if TYPE_CHECKING:
    from vstar_fast.bench.runner import Bench

STEMS = (
    "walk run jump backflip cartwheel kick punch crawl roll spin dive throw catch lift push pull climb swim row paddle "
    "skate surf ski juggle stretch wave clap nod point sit stand kneel crouch lean turn bend reach carry drag drop"
)
WAYS = "forward backward left right slow fast high low double single wide narrow front back side long short up"
FILLER = (
    "the person in the video keeps both feet on the floor then moves the arms and hips while the body rises and "
    "turns before landing so what we see is most likely this action"
)

Found = list[tuple[int, int] | None]


def make_labels(count: int) -> list[str]:
    """`count` names of two words, no name the beginning of another."""
    return [f"{stem} {way}" for way in WAYS.split() for stem in STEMS.split()][:count]


def make_texts(names: list[str], rows: int) -> tuple[list[str], list[int]]:
    """Answers in ASCII, about 60 words, and the row's own label; two in three name it, in some spelling."""
    rng = random.Random(0)
    texts, own = [], []
    for _ in range(rows):
        label = rng.randrange(len(names))
        said = label if rng.random() < 0.66 else rng.randrange(len(names))
        written = rng.choice((str.upper, str.title, str))(names[said]).replace(" ", rng.choice((" ", "_", "-", "  ")))
        words = rng.choices(FILLER.split(), k=rng.randint(40, 80))
        texts.append(f"{' '.join(words)}. Answer: {written}.")
        own.append(label)
    return texts, own


@functools.cache
def pattern_of(name: str) -> re.Pattern[str]:
    """One label: case, separators and boundaries as `label_match` has them, for ASCII."""
    return re.compile(rf"(?<![^\W_]){spelt(name)}(?![^\W_])", re.IGNORECASE)


@functools.cache
def alternation(names: tuple[str, ...]) -> re.Pattern[str]:
    """All labels as one pattern with a group each, nested in a lookahead so that matches may overlap."""
    groups = "|".join(f"({spelt(name)})(?![^\\W_])" for name in names)
    return re.compile(rf"(?<![^\W_])(?={groups})", re.IGNORECASE)


def spelt(name: str) -> str:
    """The label with any run of separators between its words."""
    return r"[\s_-]+".join(map(re.escape, name.split()))


def re_own(texts: list[str], own: list[int], names: list[str]) -> Found:
    """First span of each row's own label."""
    found = (pattern_of(names[label]).search(text) for text, label in zip(texts, own, strict=True))
    return [match and match.span() for match in found]


def re_which(texts: list[str], names: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Labels that occur in each row."""
    every = alternation(names)
    return [tuple(sorted({m.lastindex - 1 for m in every.finditer(text) if m.lastindex})) for text in texts]


def spans(match: LabelMatch) -> Found:
    """First spans of a result, None where there is none."""
    return [(first, last) if first >= 0 else None for first, last in match.first.tolist()]


def plain_rows(names: list[str], rows: int) -> list[bytes]:
    """Answers of about 600 bytes with four labels, written as in `names` but for case."""
    rng = random.Random(1)
    texts = []
    for _ in range(rows):
        words = rng.choices(FILLER.split(), k=100) + [rng.choice((str.upper, str))(x) for x in rng.choices(names, k=4)]
        rng.shuffle(words)
        texts.append(". ".join((" ".join(words[:70]), " ".join(words[70:]))).encode())
    return texts


def against_rivals(bench: Bench, quick: bool) -> None:
    """Every label from text, one thread: the rivals that are installed; targets are those of hyperscan."""
    for count, goal in ((700, 4.0), (10_000, 1.0)):
        if quick and count > 700:
            continue
        names = [f"{name} {i}" if i >= 700 else name for i, name in enumerate(make_labels(700) * (count // 700 + 1))]
        names = list(dict.fromkeys(names))[:count]
        labels, texts = LabelSet(names), plain_rows(names, 500 if quick else 3000)
        own = torch.full((len(texts),), -1)
        for rival in label_rivals.installed():
            if rival == "re2.Set" and count > 700:
                continue
            theirs = label_rivals.RIVALS[rival][1](names)
            bench.compare(
                f"all of {count} labels from text",
                functools.partial(label_match, texts, labels, own, which=True, threads=1),
                functools.partial(theirs, texts),
                equal=lambda m, f: [m.labels_in(i) for i in range(len(f))] == f,
                names=("vstar-fast", rival),
                work=(len(texts), "row"),
                target=goal if rival == "hyperscan" else None,
                backend="cpp",
                threads=1,
            )


IDS_GOAL_US = 1.2
"""Microseconds a row of 182 ids, all of 700 labels."""


def decode_and_search(engine: label_rivals.Rival, ids: torch.Tensor) -> label_rivals.Labels:
    """Labels in rows of ids, by an engine for text."""
    return engine([text.encode() for text in token_rows.decoded(ids)])


def decode_and_re(names: tuple[str, ...], ids: torch.Tensor) -> label_rivals.Labels:
    """The same by `re`."""
    return re_which(token_rows.decoded(ids), names)


def from_ids(bench: Bench, quick: bool) -> None:
    """All of 700 labels in rows of ids, one thread, against decoding them and searching the text."""
    names, (_, tokens) = make_labels(700), token_rows.vocabulary()
    labels = LabelSet(names)
    engines = {x: label_rivals.RIVALS[x][1](names) for x in label_rivals.installed() if x == "hyperscan"}
    for columns in (64, 182):
        texts = [" ".join([row.decode()] * 2) for row in plain_rows(names, 500 if quick else 3000)]
        ids = token_rows.id_rows(texts, columns)
        own, case = torch.full((len(ids),), -1), f"all of 700 labels from {columns} ids"
        few = ids[: max(20, len(ids) // 50)]

        def ours(ids: torch.Tensor, own: torch.Tensor = own) -> LabelMatch:
            return label_match(ids, labels, own[: len(ids)], tokens=tokens, which=True, threads=1)

        for rival, engine in engines.items():
            bench.compare(
                case, functools.partial(ours, ids),
                functools.partial(decode_and_search, engine, ids),
                equal=lambda m, f: [m.labels_in(i) for i in range(len(f))] == f,
                names=("vstar-fast", f"batch_decode and {rival}"), work=(len(ids), "row"),
                target=50.0 if columns == 182 else None, backend="cpp", threads=1,
            )  # fmt: skip
        bench.compare(
            f"{case}, {len(few)} rows", functools.partial(ours, few),
            functools.partial(decode_and_re, tuple(names), few),
            equal=lambda m, f: [m.labels_in(i) for i in range(len(f))] == f,
            names=("vstar-fast", "batch_decode and re"), work=(len(few), "row"), backend="cpp", threads=1,
        )  # fmt: skip
        bench.compare(
            f"{case}, decoding alone", functools.partial(ours, ids), functools.partial(token_rows.decoded, ids),
            equal=lambda m, texts: m.length.tolist() == [len(text) for text in texts],
            names=("vstar-fast", "batch_decode"), work=(len(ids), "row"), backend="cpp", threads=1,
        )  # fmt: skip
    value = next(row.value for row in reversed(bench.rows) if row.metric == "cpu")
    bench.add(
        case=f"{case} against the goal", subject="vstar-fast", baseline=f"{IDS_GOAL_US} us a row",
        metric="cpu", value=value, unit="us/row", ratio=None if value is None else IDS_GOAL_US / value,
        equal=value is not None, target=1.0, backend="cpp", threads=1,
    )  # fmt: skip


OWN_GOAL_US = 100.0
"""Microseconds for the own labels of 100,000 rows of ids on a GPU; three times as long for all labels."""


def ids_on_gpu(bench: Bench, quick: bool) -> None:
    """700 labels in 100,000 rows of 182 ids that lie on the GPU, beside a sum over the same ids: what reading costs.

    The result is compared with the CPU's in full.
    """
    names, (_, tokens) = make_labels(700), token_rows.vocabulary()
    labels, rows = LabelSet(names), 10_000 if quick else 100_000
    texts = [" ".join([row.decode()] * 2) for row in plain_rows(names, 2000)]
    host = token_rows.id_rows(texts, 182).repeat(rows // 2000, 1)
    own = torch.arange(rows, dtype=torch.int32) % 700
    ids, theirs = host.cuda(), own.cuda()
    expected = label_match(host, labels, own, tokens=tokens)
    for what, which, goal in (("own", False, OWN_GOAL_US), ("all", True, 3 * OWN_GOAL_US)):
        case = f"{what} of 700 labels from 182 ids, {rows} rows on the GPU"
        bench.compare(
            case, functools.partial(label_match, ids, labels, theirs, tokens=tokens, which=which),
            functools.partial(torch.sum, ids),
            equal=lambda m, _: torch.equal(m.table.cpu(), expected.table),
            names=("vstar-fast", "sum of the ids"), work=(1, "call"), backend="cuda",
        )  # fmt: skip
        value = bench.latest().value
        bench.add(
            case=f"{case}, against the goal", subject="vstar-fast", baseline=f"{goal:g} us for 100,000 rows",
            metric="gpu", value=value, unit="us/call", equal=value is not None, target=1.0, backend="cuda",
            ratio=None if value is None else goal * rows / 1e5 / value,
        )  # fmt: skip


def run(bench: Bench, quick: bool) -> None:
    """15 and 700 labels against `re`; the own label, and every label. On the CPU also against other engines."""
    if bench.device == "cpu":
        against_rivals(bench, quick)
        from_ids(bench, quick)
    else:
        ids_on_gpu(bench, quick)
    rows = 500 if quick else 5000
    backend = backends.choose("label_match", bench.device).name
    for count in (15, 700):
        names = make_labels(count)
        labels = LabelSet(names)
        texts, own = make_texts(names, rows)
        ids = torch.tensor(own, dtype=torch.int32)

        def ours(texts: list[str] = texts, ids: torch.Tensor = ids, labels: LabelSet = labels) -> LabelMatch:
            return label_match(texts, labels, ids, device=bench.device)

        def with_re(texts: list[str] = texts, own: list[int] = own, names: list[str] = names) -> Found:
            return re_own(texts, own, names)

        few = texts[: max(20, rows // 50)] if count > 100 else texts

        def re_all(few: list[str] = few, names: list[str] = names) -> list[tuple[int, ...]]:
            return re_which(few, tuple(names))

        def ours_few(few: list[str] = few, ids: torch.Tensor = ids, labels: LabelSet = labels) -> LabelMatch:
            return label_match(few, labels, ids[: len(few)], which=True, device=bench.device)

        work = (rows, "row")
        bench.compare(
            f"own of {count} labels", ours, with_re, equal=lambda m, f: spans(m) == f,
            names=("vstar-fast", "re, one pattern a label"), work=work, backend=backend,
        )  # fmt: skip
        bench.compare(
            f"all of {count} labels, {len(few)} rows", ours_few, re_all,
            equal=lambda m, f: [m.labels_in(i) for i in range(len(f))] == f,
            names=("vstar-fast", "re, one alternation"), work=(len(few), "row"), backend=backend,
        )  # fmt: skip
