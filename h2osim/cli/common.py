"""What the commands share: parsing of lists, the command line as text, the progress bar."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from h2osim.cli.output import console, notice
from h2osim.support.bars import bar
from h2osim.support.errors import UserError
from h2osim.support.given import decode, printable
from h2osim.support.progress import Progress

if TYPE_CHECKING:
    import typer

    from h2osim.replays.budgets import Budget
    from h2osim.replays.unit_budgets import UnitBudgets
    from h2osim.traces.trace import Trace


class Share(StrEnum):
    """Which heads share one cache."""

    head = "head"
    group = "group"
    layer = "layer"


class EngineName(StrEnum):
    """Which engine replays."""

    auto = "auto"
    naive = "naive"
    numba = "numba"
    cuda = "cuda"


class Weights(StrEnum):
    """What the offline optimum keeps as much as possible of."""

    mass = "mass"
    value = "value"


class By(StrEnum):
    """What a row of a table is."""

    layer = "layer"
    unit = "unit"
    trace = "trace"


class Measure(StrEnum):
    """What policies are compared by."""

    recall = "recall"
    error = "error"
    both = "both"
    attention_error = "attention-error"
    residual_error = "residual-error"


def given(context: typer.Context, option: str) -> bool:
    """Whether the user gave this option, and it has not its default value."""
    return getattr(context.get_parameter_source(option), "name", "") not in ("DEFAULT", "")


def parse_budgets(text: str) -> list[Budget | UnitBudgets] | Literal["all"]:
    """Read ``64,0.05,5%,50%prompt,@split.json``; or ``all``.

    Tokens, fractions of the trace's length, of its prompt, or budgets by unit: every split of a
    file, or, with ``@split.json:10%``, those of this mean.
    """
    if text.strip() == "all":
        return "all"
    found: list[Budget | UnitBudgets] = []
    for word in map(str.strip, text.split(",")):
        found += _by_unit(word[1:]) if word.startswith("@") else [parse_budget(word)]
    return found


def parse_numbers(text: str) -> list[Budget] | Literal["all"]:
    """The same of a command that takes one budget for all units."""
    if text.strip() == "all":
        return "all"
    return [parse_budget(word.strip()) for word in text.split(",")]


def _by_unit(word: str) -> list[UnitBudgets]:
    """Read ``split.json`` or ``split.json:10%``."""
    from h2osim.optima.prompt_budgets import RULES, PromptBudgets
    from h2osim.replays.budget_file import at_mean, read_budgets

    name, colon, mean = word.rpartition(":")
    if name in RULES:
        return [PromptBudgets.of(name, _number(mean, word))]
    if not colon or Path(word).exists():
        return read_budgets(Path(word))
    return [at_mean(read_budgets(Path(name)), _number(mean, word))]


def _number(text: str, word: str) -> float:
    wanted = parse_budget(text)
    if isinstance(wanted, str):
        raise UserError(f"--budgets: @{word}: expected tokens or a share of the text behind the :")
    return wanted


def budgets_of(context: typer.Context, budgets: str, ratio: str | None) -> str:
    """What --budgets says, or --ratio in its place: shares of the prompt that are removed."""
    if ratio is None:
        return budgets
    if given(context, "budgets"):
        raise UserError("--ratio: found --budgets too, expected one of them")
    return ",".join(_left(word.strip()) for word in ratio.split(","))


def _left(word: str) -> str:
    """The budget that is left of a prompt of which this share is removed."""
    try:
        share = 100 * (1 - Decimal(word))
        fits = 0 < share <= 100
    except ArithmeticError:
        fits = False
    if not fits:
        raise UserError(
            f"--ratio: found {word!r}, expected the removed share of the prompt, from 0 to below 1"
        )
    return f"{share.normalize():f}%prompt"


def parse_budget(word: str, option: str = "--budgets") -> Budget:
    """Read one of ``64``, ``0.05``, ``5%`` and ``50%prompt``."""
    try:
        if word.endswith("%prompt"):
            value: int | float = float(word.removesuffix("%prompt")) / 100
        elif word.endswith("%"):
            value = float(word[:-1]) / 100
        elif (whole := whole_of(word)) is not None:
            value = whole
        else:
            value = float(word)
    except ValueError:
        value = -1
    # A float is a share of the trace; written so that NaN is refused too.
    if value > 0 and (isinstance(value, int) or value <= 1):
        return word if word.endswith("%prompt") else value
    raise UserError(
        f"{option}: {word!r} is no budget; expected tokens (64), a fraction of the trace from "
        "above 0 to 1.0 (0.05), a percentage of it (5%) or of its prompt (50%prompt), separated by "
        "commas; or all"
    )


def whole_of(word: str) -> int | None:
    """A whole number written in up to 18 of the digits 0 to 9; None for any other text."""
    return int(word) if re.fullmatch("[0-9]{1,18}", word) else None


def parse_integers(text: str | None, option: str) -> list[int] | None:
    """Read ``0,9,16``; None stays None. ``option`` is named in the error."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if whole_of(word) is None:
            raise UserError(f"{option}: {word!r} is no index; expected whole numbers like 0,9,16")
    return [int(word) for word in words]


def parse_batch(text: str) -> int | None:
    """Read ``auto`` (None) or a number of passes."""
    if text == "auto":
        return None
    if not whole_of(text):
        raise UserError(f"--batch: found {text!r}, expected auto or a number from 1 on")
    return int(text)


def parse_assignments(words: Sequence[str], option: str) -> dict[str, str]:
    """Read ``x=1`` words into a dictionary; the values stay text."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UserError(f"{option}: found {word!r}, expected NAME=VALUE")
        if name in pairs:
            raise UserError(f"{option}: {name!r} is given twice")
        pairs[name] = value
    return pairs


def checked_trace(name: str) -> Trace:
    """A trace by its folder or name, of which every file is as it was written."""
    from h2osim.traces.catalogue import open_trace

    opened = open_trace(name)
    opened.verify()
    return opened


def checked_traces(names: Sequence[str]) -> list[Trace]:
    """Traces by their folders or names, or by folders that hold them; every file as written."""
    from h2osim.traces.catalogue import open_traces

    opened = open_traces(names)
    for one in opened:
        one.verify()
    return opened


def one_or_several(traces: Sequence[Trace]) -> Trace | Sequence[Trace]:
    """What the library is given: one trace as it is, so that results have no dimension for it."""
    return traces[0] if len(traces) == 1 else traces


def by_of(by: By | None, traces: Sequence[Trace], usual: str = "layer") -> str:
    """What --by says, else the usual; UserError where rows for each of one trace are wanted."""
    if by is By.trace and len(traces) == 1:
        raise UserError(f"--by trace: found one trace, {traces[0].name}, expected several")
    return usual if by is None else by.value


def parse_policies(words: Sequence[str]) -> list[str]:
    """Read --policies, which may be given several times, and check every policy in it."""
    from h2osim.policies.text import parse, split_policies

    chosen = split_policies(",".join(words))
    if not chosen:
        raise UserError("--policies: found none, expected names like h2o,streaming:sinks=4,tova")
    for text in chosen:
        parse(text)
    return chosen


def read_text(path: Path, option: str) -> str:
    """The UTF-8 text of a file, line ends as they are."""
    return decode(read_bytes(path, option), f"{option} {path}")[0]


def read_bytes(path: Path, option: str) -> bytes:
    """A UTF-8 text's bytes, from a file or, for ``-``, from standard input.

    Says on standard error when the text begins with a byte-order mark, which no model should read.
    """
    from h2osim.support.reading import text_of

    data = text_of(path, f"{option} {path}")
    if decode(data, f"{option} {path}")[1]:
        notice(f"{option} {path}: a byte-order mark at its start is left out")
    return data


def command_line(context: typer.Context) -> str:
    """The command as it could be typed again, for the provenance in a manifest."""
    return printable(shlex.join(["h2osim", *context.obj]))


@contextmanager
def progress_bar(rate: str = "") -> Iterator[Progress | None]:
    """Show a bar with an estimate on standard error while the body runs; None off a terminal.

    rate: the unit of the work, to show how fast it is done.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with bar(console(stderr=True), rate) as update:
        yield update
