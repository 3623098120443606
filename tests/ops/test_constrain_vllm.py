"""constrain behind a small model of vLLM's side: its base class, its batch that condenses, ids that come late."""

import random
from abc import ABC, abstractmethod
from enum import Enum, auto
from types import SimpleNamespace

import pytest
import torch

from constrain_tools import small_vocab
from vstar_fast import ops
from vstar_fast.errors import ConstrainError

VOCAB = small_vocab("byte_level")
NAMES = {"moves": ["walk the dog", "walk", "snow", "snowboard"], "kicks": ["back flip", "kick"]}
GRAMMARS = {key: ops.compile(ops.template("Answer: {x}", x=ops.choice(names)), VOCAB) for key, names in NAMES.items()}


class LogitsProcessor(ABC):
    """What vLLM insists on: subclasses only, these methods, and defaults that a release may add."""

    @classmethod
    def validate_params(cls, sampling_params):
        return None

    @abstractmethod
    def __init__(self, vllm_config, device, is_pin_memory): ...

    @abstractmethod
    def apply(self, logits): ...

    @abstractmethod
    def is_argmax_invariant(self): ...

    def needs_output_token_ids(self):
        return False

    @abstractmethod
    def update_state(self, batch_update): ...


class Direction(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


class Processor(ops.VllmLogitsProcessor, LogitsProcessor):
    grammars = GRAMMARS


def params(grammar: str | None, max_tokens: int | None = 60) -> SimpleNamespace:
    return SimpleNamespace(extra_args=grammar and {"vstar_grammar": grammar}, max_tokens=max_tokens)


class Batch:
    """A persistent batch: those that come take the lowest free place, the last move down into what is left."""

    def __init__(self, late: bool) -> None:
        self.processor = Processor(None, torch.device("cpu"), False)
        self.rows: list[tuple[str | None, list[int]]] = []
        self.late = late
        self.waiting: list[tuple[list[int], int]] = []

    def step(self, leaving: set[int], coming: list, rng: random.Random) -> None:
        removed, added, moved = sorted(leaving, reverse=True), [], []
        for row in coming:
            place = removed.pop() if removed else len(self.rows)
            self.rows[place : place + 1] = [row]
            added.append((place, params(row[0]), [1, 2], row[1]))
        for place in reversed(removed):
            while len(self.rows) - 1 in removed and len(self.rows) - 1 > place:
                self.rows.pop()
            last = self.rows.pop()
            if len(self.rows) > place:
                self.rows[place] = last
                moved.append((len(self.rows), place, Direction.UNIDIRECTIONAL))
        if len(self.rows) > 1 and rng.random() < 0.5:
            one, two = rng.sample(range(len(self.rows)), 2)
            self.rows[one], self.rows[two] = self.rows[two], self.rows[one]
            moved.append((one, two, Direction.SWAP))
        update = SimpleNamespace(batch_size=len(self.rows), removed=removed, added=added, moved=moved)
        self.processor.update_state(update if removed or added or moved else None)
        if self.processor.needs_output_token_ids():
            for output, token in self.waiting:
                output[-1] = token

    def sample(self, rng: random.Random) -> None:
        logits = self.processor.apply(torch.zeros(len(self.rows), 330))
        self.waiting = []
        for (name, output), row in zip(self.rows, logits, strict=True):
            legal = (row == 0).nonzero()[:, 0].tolist()
            assert name is not None or len(legal) == 330
            token = rng.choice(legal)
            output.append(-1 if self.late else token)
            self.waiting.append((output, token))

    def ended(self) -> set[int]:
        """Places of answers that have ended; a late batch learns of it a step later, and takes one token too many."""
        return {at for at, (_, ids) in enumerate(self.rows) if len(ids) > 40 or VOCAB.eos_ids[0] in ids}


@pytest.mark.parametrize("late", [False, True], ids=["ids at once", "asynchronous scheduling"])
def test_every_request_gets_an_answer_of_its_own_grammar(late):
    rng, batch, done = random.Random(5), Batch(late), []
    for _ in range(150):
        coming = [(rng.choice([None, *NAMES]), []) for _ in range(rng.choice([0, 0, 1, 2])) if len(batch.rows) < 7]
        leaving = batch.ended()
        done += [batch.rows[at] for at in leaving if batch.rows[at][0] is not None]
        batch.step(leaving, coming, rng)
        batch.sample(rng)
    assert len(done) > 15
    for name, ids in done:
        ids = ids[: ids.index(VOCAB.eos_ids[0])]
        assert GRAMMARS[name].value(ids)["x"] in NAMES[name]
    assert len(batch.processor.requests) == sum(name is not None for name, _ in batch.rows)


def test_the_class_is_one_that_vllm_takes():
    assert issubclass(Processor, LogitsProcessor)
    processor = Processor(None, torch.device("cpu"), False)
    assert not processor.is_argmax_invariant() and processor.needs_output_token_ids()


def test_tokens_that_vllm_takes_back_are_forgotten():
    processor, output = Processor(None, torch.device("cpu"), False), []
    update = SimpleNamespace(batch_size=1, removed=[], added=[(0, params("kicks"), None, output)], moved=[])
    processor.update_state(update)
    first = processor.apply(torch.zeros(1, 330))
    output.append(int(first.argmax()))
    second = processor.apply(torch.zeros(1, 330))
    assert not torch.equal(first, second)
    output.clear()
    assert torch.equal(processor.apply(torch.zeros(1, 330)), first)
    output += [-1]
    with pytest.raises(ConstrainError, match="--no-async-scheduling"):
        processor.apply(torch.zeros(1, 330))


def test_requests_that_cannot_be_met_are_refused_in_front():
    Processor.validate_params(params("kicks", None))
    Processor.validate_params(params(None, 1))
    for name in ("other", ["kicks"]):
        with pytest.raises(ConstrainError, match="no grammar named .*; there are: moves, kicks"):
            Processor.validate_params(params(name))
    with pytest.raises(ConstrainError, match="max_tokens is 1, below the .* that .kicks. needs"):
        Processor.validate_params(params("kicks", 1))
