"""Prompts with an answer: from a file of JSON lines, or retrieval tasks that are made here.

A task hides something in a prompt of a given length and asks for it at the end, so that the loss of
the one token that matters shows. Its words are drawn with a seed from the lists below; the same
seed gives the same needle at every depth and length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from h2osim.support.errors import UserError
from h2osim.support.reading import json_lines

TASKS = ("needle", "pairs", "facts")
REPEATS = 3  # how often a fact is stated

_NAMES = (
    "Adela Bruno Celia Dario Elsa Felix Greta Henrik Irene Jonas Karin Leon Marta Nils Olga Pavel "
    "Rosa Stefan Tilda Ugo Vera Walter Xenia Yannis Zora"
)
_CITIES = (
    "Lisbon Oslo Vienna Athens Dublin Prague Warsaw Berlin Madrid Rome Paris London Moscow Cairo "
    "Tokyo Delhi Lima Boston Denver Chicago"
)
_THINGS = (
    "river bridge garden market harbour tower mill orchard library station meadow bakery lantern "
    "chapel forest valley castle workshop road fountain"
)
_KINDS = "old quiet narrow bright empty busy small distant green stone wooden grey"
_VERBS = "passes faces hides serves follows crosses joins overlooks reaches shelters"


@dataclass(frozen=True)
class Question:
    """A prompt and the answer to it: context and question are read, the answer is scored.

    Without a question the context is all of the prompt. The answer should begin with the space that
    stands before it.
    """

    context: str
    answer: str
    question: str = ""


@dataclass(frozen=True)
class Task:
    """A retrieval prompt of at most ``length`` tokens, answer included.

    kind: ``needle``, a number in prose; ``pairs``, one of a list of keys and values; ``facts``, who
    lives where, stated three times among the same said of others and prose. depth: where in the
    prompt the needle or the pair, or the last statement of the fact, stands: 0 first, 1 last.
    """

    kind: str
    length: int = 512
    depth: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in TASKS:
            raise UserError(f"task {self.kind!r}: expected one of {', '.join(TASKS)}")
        if not 0 <= self.depth <= 1:
            raise UserError(f"task {self.kind}: depth {self.depth:g}, expected 0 to 1")

    @property
    def name(self) -> str:
        """What results call it."""
        return f"{self.kind}, {self.length} tokens, depth {self.depth:g}, seed {self.seed}"

    def question(self, tokens: Callable[[str], int]) -> Question:
        """The prompt, as long as it may be; ``tokens`` says how many tokens a text has.

        UserError where not even the shortest fits.
        """

        def size(hay: int) -> int:
            made = self.made(hay)
            return tokens(made.context + made.question) + tokens(made.answer)

        low, high = 0, 2
        while size(high) <= self.length:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(middle) <= self.length else (low, middle)
        if not low:
            raise UserError(
                f"task {self.kind}: length {self.length}, expected at least {size(1)} tokens"
            )
        return self.made(low)

    def made(self, hay: int) -> Question:
        """The prompt with so many sentences or pairs around what is asked for."""
        own, rest = (np.random.default_rng([self.seed, stream]) for stream in range(2))
        if self.kind == "pairs":
            return self._pairs(own, rest, hay)
        if self.kind == "needle":
            where, number = _one(own, _CITIES), int(own.integers(10000, 100000))
            lines = [_sentence(rest) for _ in range(hay)]
            lines.insert(round(self.depth * hay), f"The secret number of {where} is {number}.")
            asked = f"\nQuestion: What is the secret number of {where}?\nAnswer: The secret number"
            return Question(" ".join(lines), f" {number}", f"{asked} of {where} is")
        who, where = _one(own, _NAMES), _one(own, _CITIES)
        lines = []
        for i in range(hay):
            told = f"{_one(rest, _NAMES, who)} lives in {_one(rest, _CITIES)}."
            lines.append(told if i % 6 == 0 else _sentence(rest))
        for i in range(REPEATS, 0, -1):  # from the last, so that the places of the others stay
            lines.insert(round(self.depth * hay * i / REPEATS), f"{who} lives in {where}.")
        asked = f"\nQuestion: Where does {who} live?\nAnswer: {who} lives in"
        return Question(" ".join(lines), f" {where}", asked)

    def _pairs(self, own: np.random.Generator, rest: np.random.Generator, hay: int) -> Question:
        key, value = f"{_one(own, _THINGS)}-{own.integers(100, 1000)}", own.integers(1000, 10000)
        lines: dict[str, int] = {}
        while len(lines) < hay:
            other = f"{_one(rest, _THINGS)}-{rest.integers(100, 1000)}"
            if other != key:
                lines[other] = int(rest.integers(1000, 10000))
        listed = [f"{other}: {number}" for other, number in lines.items()]
        listed.insert(round(self.depth * hay), f"{key}: {value}")
        return Question("\n".join(listed), f" {value}", f"\n\nAgain, one of them:\n{key}:")


def _one(rng: np.random.Generator, words: str, but: str = "") -> str:
    some = [word for word in words.split() if word != but]
    return some[int(rng.integers(len(some)))]


def _sentence(rng: np.random.Generator) -> str:
    first, second = (f"{_one(rng, _KINDS)} {_one(rng, _THINGS)}" for _ in range(2))
    return f"The {first} {_one(rng, _VERBS)} the {second}."


_Text = Annotated[str, Meta(min_length=1)]


class _Line(Struct, forbid_unknown_fields=True):
    prompt: _Text
    answer: _Text
    question: _Text = " "
    name: _Text = " "


def read_questions(path: Path) -> dict[str, Question]:
    """Prompts of a JSON-lines file, by name (the line's number unless it says ``name``).

    A line is ``{"prompt": "…", "answer": "…"}``; ``"question"``, which is read after the prompt,
    and ``"name"`` may be there. UserError in one line that names the line.
    """
    found: dict[str, Question] = {}
    for number, where, one in json_lines(path, _Line, "--prompts"):
        parts = {"question": "", "name": f"line {number}", **one}
        if parts["name"] in found:
            raise UserError(f"{where}: the name {parts['name']!r} is taken")
        found[parts["name"]] = Question(parts["prompt"], parts["answer"], parts["question"])
    if not found:
        raise UserError(f"--prompts {path}: no prompt in it")
    return found
