"""``h2osim verify``: every proved statement against the replays of one trace."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from h2osim.cli.common import (
    EngineName,
    Share,
    budgets_of,
    checked_traces,
    parse_integers,
    parse_numbers,
    parse_policies,
    progress_bar,
)
from h2osim.cli.options import (
    Budgets,
    EngineOption,
    FormatOption,
    Layers,
    PlotAxes,
    PlotSize,
    PlotTitle,
    PromptLen,
    Ratio,
    ShareOption,
    TraceNames,
    plot_option,
    policies_option,
)
from h2osim.cli.output import Format, check_files, draw, look_of, notice, show
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from h2osim.guarantees import Verdict
    from h2osim.guarantees.verify import Line
    from h2osim.traces.trace import Trace


def verify(
    context: typer.Context,
    traces: TraceNames,
    policies: Annotated[
        list[str] | None,
        policies_option(
            "Policies to verify; default: H2O in the setting of the proofs, on cached scores, "
            "and as deployed."
        ),
    ] = None,
    budgets: Budgets = "0.05,0.1,0.2",
    ratio: Ratio = None,
    prompt_len: PromptLen = None,
    share: ShareOption = Share.group,
    engine: EngineOption = EngineName.auto,
    layers: Layers = None,
    format_: FormatOption = Format.table,
    show_details: Annotated[
        bool, typer.Option("--details", help="One line for each budget, with ranges and notes.")
    ] = False,
    plot: Annotated[Path | None, plot_option("the ratio over time with its certificates")] = None,
    plot_size: PlotSize = None,
    plot_title: PlotTitle = None,
    plot_axes: PlotAxes = None,
) -> None:
    """Hold every proved statement against a trace; exit code 1 if one is violated.

    A violated line would be a wrong theorem or a bug: its unit is then saved as a trace to look at.
    The table has one line for each policy and statement, --details one for each budget too;
    ``--format json`` and ``csv`` give every unit.
    """
    from h2osim.guarantees import verify as module
    from h2osim.report import figures

    wanted = parse_numbers(budgets_of(context, budgets, ratio))
    if wanted == "all":
        raise UserError("--budgets: all is too many to verify; expected a few")
    chosen = parse_policies(policies) if policies else list(module.POLICIES)
    look = look_of(plot, plot_size, plot_title, plot_axes)
    check_files(plot)
    recorded = checked_traces(traces)
    only = parse_integers(layers, "--layers")
    if len(recorded) > 1 and plot is not None:
        raise UserError(f"--plot: found {len(recorded)} traces, expected one")
    options: dict[str, Any] = {
        "prompt_len": prompt_len, "share": share.value, "engine": engine.value,
    }  # fmt: skip
    found: list[tuple[Trace, list[Line]]] = []
    for one in recorded:
        with progress_bar() as progress:
            lines = module.verify(one, chosen, wanted, layers=only, progress=progress, **options)
        found.append((one, lines))
    several = len(found) > 1
    show(
        format_,
        lambda: [
            ({"trace": one.name} if several else {}) | line.record()
            for one, lines in found
            for line in lines
        ],
        lambda: _page(found, show_details),
    )
    if plot is not None:
        series = {
            text: module.over_time(
                recorded[0], text, wanted[-1], layer=only[0] if only else None, proved=True,
                **options,
            )
            for text in chosen
        }
        title = f"{recorded[0].name}, budget {wanted[-1]}"
        draw(plot, lambda: figures.guarantees_figure(series, title, look))
    broken = [(one, line) for one, lines in found for line in module.violations(lines)]
    for number, (one, line) in enumerate(broken):
        name = one.name.replace("/", "-")  # a trace of others must not say where we write
        folder = Path(f"counterexample-{line.result.guarantee}-{name}-{number}")
        module.write_counterexample(one, line, folder, share=share.value)
        notice(f"VIOLATED: {line.result.guarantee}, {line.policy}, {line.label}; wrote {folder}")
    if broken:
        raise typer.Exit(1)


def _page(found: list[tuple[Trace, list[Line]]], show_details: bool) -> RenderableType:
    """All that is printed as a table: what was verified, the findings, their count."""
    from rich.console import Group

    from h2osim.report.comparison import traces_named

    lines = [line for _, some in found for line in some]
    shown = ", ".join(dict.fromkeys(str(x.budget) for x in lines if x.budget is not None))
    lengths = ", ".join(dict.fromkeys(str(trace.n) for trace, _ in found))
    return Group(
        f"{traces_named([trace.name for trace, _ in found])}: {lengths} tokens, budgets {shown}",
        *(details(lines) if show_details else summary(lines)),
        closing(lines),
    )


SAYS = {
    "paper-theorem": "the paper's D.32",
    "T1": "the cache is the top k",
    "T2": "lost: only what came later",
    "T3": "T2 for cached scores",
    "T4": "drift of value and optimum",
    "T5": "error of attention outputs",
    "T6": "at most the optimum",
    "T6b": "concave in the budget",
    "T6c": "prices bound the optimum",
    "T7": "small caches within large",
    "T9": "greedy keeps 1/k",
    "M1": "threshold keeps a quarter",
    "M7": "frozen: no token leaves",
}
"""Each statement in a few words; `h2osim.guarantees.GUARANTEES` has whole sentences."""


LEGEND = """\
cases: units, budgets and traces. ratio: the least share of the best k tokens'
score that was kept (T6: of the offline optimum's attention). slack: the least
distance from what the statement promises. More: proofs/README.md; --details."""


SUMMARY = {"statement": 15, "verdict": 14, "cases": 5, "ratio": 5, "slack": 6, "": 29}
DETAILS = {"statement": 15, "budget": 6, "verdict": 16, "ratio": 11, "bound": 11, "note": 16}
"""Columns and their widths: with a blank after each, 80 together."""


def _sheet(
    lines: list[Line],
    columns: Mapping[str, int],
    key: Callable[[Line], Hashable],
    row: Callable[[list[Line]], Sequence[str | Text]],
    wrap: bool = False,
) -> Iterator[RenderableType]:
    """A table a policy, with a row for all lines of equal `key`; the columns stand in line."""
    from rich.table import Table
    from rich.text import Text

    def table() -> Table:
        made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
        for name, width in columns.items():
            number = name in ("cases", "ratio", "slack", "budget", "bound")
            made.add_column(
                name, width=width, justify="right" if number else "left", no_wrap=not wrap,
                overflow="fold" if wrap else "ellipsis",
            )  # fmt: skip
        return made

    heading = table()
    heading.add_row(*(Text(name, style="dim") for name in columns))
    yield heading
    groups: dict[str, dict[Hashable, list[Line]]] = {}
    for line in lines:
        groups.setdefault(line.policy, {}).setdefault(key(line), []).append(line)
    for policy, statements in groups.items():
        yield Text(policy, style="bold")
        shown = table()
        for group in statements.values():
            shown.add_row(f"  {group[0].result.guarantee}", *row(group))
        yield shown


def summary(lines: list[Line]) -> Iterator[RenderableType]:
    """What is printed: a table a policy, one row a statement, in 80 columns."""
    from rich.text import Text

    from h2osim.guarantees import Verdict

    def row(group: list[Line]) -> Sequence[str | Text]:
        notes = {line.result.verdict: line.result.note for line in reversed(group)}
        reason = notes.get(Verdict.VIOLATED, notes.get(Verdict.FAILS, ""))
        return (
            _verdict([line.result.verdict for line in group]),
            str(len(group)),
            _least(line.result.numbers.get("ratio") for line in group),
            _least(line.slack for line in group),
            Text(reason or SAYS.get(group[0].result.guarantee, "")),
        )

    yield from _sheet(lines, SUMMARY, lambda line: line.result.guarantee, row)
    yield Text(LEGEND, style="dim")


def _verdict(verdicts: Sequence[Verdict]) -> str:
    """The verdicts of a group in a few words: the worst one, with its count where they differ."""
    from h2osim.guarantees import Verdict

    order = (Verdict.VIOLATED, Verdict.FAILS, Verdict.VACUOUS, Verdict.HOLDS)
    found = [word for word in order if word in verdicts]
    if len(found) == 1:
        return "holds, empty" if found[0] is Verdict.VACUOUS else str(found[0])
    if Verdict.VIOLATED in found:
        return f"violated {verdicts.count(Verdict.VIOLATED)}"
    empty, fine = verdicts.count(Verdict.VACUOUS), verdicts.count(Verdict.HOLDS)
    return f"holds {fine + empty}" if Verdict.FAILS in found else f"holds, {empty} empty"


def closing(lines: list[Line]) -> str:
    """The last line: how many hold, do not apply, are violated."""
    from h2osim.guarantees.verify import counts

    return ", ".join(f"{number} {what}" for what, number in counts(lines).items())


def _least(values: Iterable[float | None]) -> str:
    from h2osim.guarantees.results import CLOSE

    known = [v for v in values if v is not None and not math.isnan(v)]
    if not known:
        return ""
    least = min(known)
    if abs(least - round(least)) < CLOSE:  # up to the rounding of products of ratios
        return str(round(least))
    if abs(least) < 5e-4:
        return f"{least:.0e}"
    return f"{least:.3f}".replace("0.", ".", 1) if abs(least) < 1 else f"{least:.3g}"


def details(lines: list[Line]) -> Iterator[RenderableType]:
    """What --details prints: a row for each statement and budget, with ranges over the units."""
    from rich.text import Text

    def row(group: list[Line]) -> Sequence[str | Text]:
        verdicts = Counter(str(line.result.verdict) for line in group)
        counted = [
            word if len(verdicts) == 1 else f"{word} ({count})" for word, count in verdicts.items()
        ]
        budget = group[0].budget
        return (
            "all" if budget is None else str(budget),
            ", ".join(counted),
            _range(line.result.numbers.get("ratio", math.nan) for line in group),
            _range(line.result.numbers.get("bound", math.nan) for line in group),
            Text(group[0].result.note),
        )

    def key(line: Line) -> Hashable:
        return line.result.guarantee, line.budget

    yield from _sheet(lines, DETAILS, key, row, wrap=True)


def _range(values: Iterable[float]) -> str:
    known = sorted(v for v in values if not math.isnan(v))
    if not known:
        return ""
    ends = dict.fromkeys(f"{v:.3g}" for v in (known[0], known[-1]))
    return "–".join(ends)
