"""Questions and answers of a row: free ones, and choices whose answer is a text, a letter or a number."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vstar_fast.readers.rows import Bad, question_words

_OPTION_COLUMN = re.compile(r"(?:a|option|choice|candidate|answer)[ _]?(\d+)", re.IGNORECASE)
_LETTER = re.compile(r"^\s*\(?([A-Za-z])[.):]\s*")
_LISTED = re.compile(r"^\s*\(?[A-H][.):]\s*(\S.*?)\s*$", re.MULTILINE)
MOST_WORDS = 20
"""Of an answer that is looked for, word by word, in others."""
ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant", "model")


def option_columns(header: Iterable[Any]) -> list[str]:
    """Columns that hold one option each, in order: `a0`..`a4`, `option 1`.., or `A`..`D`."""
    named = [x for x in header if isinstance(x, str)]
    numbered = {int(found[1]): x for x in named if (found := _OPTION_COLUMN.fullmatch(x.strip()))}
    first = min(numbered, default=0)
    if first in (0, 1) and len(numbered) > 1 and sorted(numbered) == list(range(first, first + len(numbered))):
        return [numbered[n] for n in sorted(numbered)]
    letters = [x for i, x in enumerate("ABCDEFGH") if set("ABCDEFGH"[: i + 1]) <= set(named)]
    return letters if len(letters) > 1 else []


def counted_from(asked: Sequence[tuple[Any, Any]], from_0: bool = False) -> int | None:
    """What the answers of a file count its options from: 0 or 1; None where they are no numbers; -1 if untold.

    `asked`: answer and options of every row that has options; `from_0`: columns are called `a0`, `a1`, ... One row
    alone cannot tell: 2 may be a number of an option or its text.
    """
    pairs = []
    for answer, given in asked:
        try:
            pairs.append((str(answer).strip(), options(given)))
        except Bad:
            continue
    if not pairs or not all(re.fullmatch(r"\d{1,2}", answer) for answer, _ in pairs):
        return None
    if not from_0 and all(answer in listed for answer, listed in pairs):
        return None
    if from_0 or any(answer == "0" for answer, _ in pairs):
        return 0
    return 1 if any(int(answer) == len(listed) for answer, listed in pairs) else -1


def label_of(got: Mapping[str, Any], first: int | None) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The row's question as a label, `answer` or `choice`, and the set of its options.

    `first`: number of the first option where answers are numbers, as `counted_from` has it.
    """
    listed = options(got["options"]) if "options" in got else []
    question, answer = question_words(got["question"]), got["answer"]
    if isinstance(answer, str):
        answer = re.sub(r"^\s*<answer>(.*)</answer>\s*$", r"\1", answer, flags=re.S).strip()
    optional = {k: got[k] for k in ("unit", "event", "aliases") if k in got}
    label = {"kind": got.get("kind", "answer"), "name": got.get("name", "answer"), "question": question, **optional}
    if not listed:
        if isinstance(answer, str) and len(answer.split()) > MOST_WORDS and label["kind"] == "answer":
            what = f"the answer has {len(answer.split())} words: it is a description, which no other answer can hold"
            raise Bad("bad_label", f"{what}; ask for a name, a number or at most {MOST_WORDS} words")
        plain = isinstance(answer, int) and not isinstance(answer, bool) and label["kind"] == "answer"
        return {**label, "value": str(answer) if plain else answer}, {}
    chosen = _chosen(answer, listed) if first is None else _numbered(answer, listed, first)
    digest = hashlib.blake2b("\0".join(listed).encode(errors="replace"), digest_size=4).hexdigest()
    asked = f"{question} Options: {', '.join(listed)}."
    name = f"options-{digest}"
    return {**label, "kind": "choice", "value": chosen, "set": name, "question": asked}, {name: listed}


def talk(turns: Any) -> list[dict[str, Any]]:
    """Question and answer of every exchange of a conversation (LLaVA, ShareGPT), options from the question's lines."""
    said = [_turn(x) for x in turns] if isinstance(turns, list) else []
    asked = []
    for (who, question), (whose, answer) in zip(said, said[1:], strict=False):
        if who in ASKS and whose in ANSWERS:
            found = list(_LISTED.finditer(question))
            if len(found) > 1:
                head = question[: found[0].start()].strip()
                asked.append({"question": head, "answer": answer, "options": [x[1] for x in found]})
            else:
                asked.append({"question": question, "answer": answer})
    if not asked:
        raise Bad("wrong_type", f"conversations hold no question with its answer: {str(turns)[:60]!r}")
    return asked


def _turn(turn: Any) -> tuple[str, str]:
    who = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
    words = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
    if not isinstance(who, str) or not isinstance(words, str):
        raise Bad("wrong_type", f"a turn of a conversation needs `from` and `value`, got {str(turn)[:60]!r}")
    return who, words


def options(given: Any) -> list[str]:
    """Option texts without their letters, from strings or from objects with a `choice`."""
    given = list(given.values()) if isinstance(given, dict) else given
    listed = [x.get("choice") if isinstance(x, dict) else x for x in given] if isinstance(given, (list, tuple)) else []
    items = [str(x) for x in listed if isinstance(x, (str, int, float)) and not isinstance(x, bool)]
    if not items or len(items) < len(listed):
        raise Bad("wrong_type", f"options must be a list of strings, got {str(given)[:60]!r}")
    lettered = all((found := _LETTER.match(x)) and found[1].upper() == chr(ord("A") + i) for i, x in enumerate(items))
    return [(_LETTER.sub("", x) if lettered else x).strip() for x in items]


def listed(cell: str, mark: str) -> list[Any]:
    """The items of a cell: `a|b`, or a list as Python or JSON writes it."""
    if cell.startswith("[") and cell.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                found = parse(cell)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list):
                return found
    return [x.strip() for x in cell.split(mark)]


def _numbered(answer: Any, listed: list[str], first: int) -> str:
    text = str(answer).strip()
    if first < 0:
        raise Bad(
            "not_in_label_set",
            f"answer {text!r} is the number of an option, and no answer of the file tells whether they are counted "
            "from 0 or 1; write the option's letter or text",
        )
    if not re.fullmatch(r"\d+", text) or not first <= int(text) < first + len(listed):
        raise Bad("not_in_label_set", f"answer {text[:60]!r} is none of {len(listed)} options, counted from {first}")
    return listed[int(text) - first]


def _chosen(answer: Any, listed: list[str]) -> str:
    """The option an answer names: by its letter, its text, or both."""
    text = str(answer).strip()
    letter = re.fullmatch(r"\(?([A-Za-z])[.):]?(\s.*)?", text, flags=re.S)
    by_text = {x.casefold(): x for x in listed}
    bare = re.sub(r"^\(?[A-Za-z][.):]\s*", "", text)
    for words in (text, bare):
        if words.casefold() in by_text:
            return by_text[words.casefold()]
    index = ord(letter[1].upper()) - ord("A") if letter and not letter[2] else -1
    if 0 <= index < len(listed):
        return listed[index]
    raise Bad("not_in_label_set", f"answer {text[:60]!r} is none of the options {', '.join(listed)[:120]!r}")
