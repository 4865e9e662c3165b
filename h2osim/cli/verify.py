"""``h2osim verify``: every proved statement against the replays of one trace."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from h2osim.cli.common import Engine, Share, parse_budgets, parse_integers, progress_bar
from h2osim.cli.options import EngineOption, FormatOption, Layers, PromptLen, ShareOption, TraceName
from h2osim.cli.output import Format, check_files, draw, notice, show
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from h2osim.guarantees import Verdict
    from h2osim.guarantees.verify import Line
    from h2osim.traces.trace import Trace


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("verify")(verify)


def verify(
    trace: TraceName,
    policies: Annotated[
        str | None,
        typer.Option(
            "--policies",
            "-p",
            help="Policies to verify; default: H2O in the setting of the proofs, on cached scores, "
            "and as deployed.",
        ),
    ] = None,
    budgets: Annotated[
        str, typer.Option("--budgets", "-b", help="As for compare.")
    ] = "0.05,0.1,0.2",
    prompt_len: PromptLen = None,
    share: ShareOption = Share.group,
    engine: EngineOption = Engine.auto,
    layers: Layers = None,
    format_: FormatOption = Format.table,
    show_details: Annotated[
        bool, typer.Option("--details", help="One line for each budget, with ranges and notes.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the ratio over time with its certificates (.png, …)."),
    ] = None,
) -> None:
    """Hold every proved statement against a trace; exit code 1 if one is violated.

    A violated line would be a wrong theorem or a bug: its unit is then saved as a trace to look at.
    The table has one line for each policy and statement, --details one for each budget too;
    ``--format json`` and ``csv`` give every unit.
    """
    from h2osim import report
    from h2osim.guarantees import verify as module
    from h2osim.policies.text import parse, split_policies
    from h2osim.traces.catalogue import open_trace

    wanted = parse_budgets(budgets)
    if wanted == "all":
        raise UserError("--budgets: all is too many to verify; expected a few")
    chosen = split_policies(policies) if policies else list(module.POLICIES)
    for text in chosen:
        parse(text)
    check_files(plot)
    recorded = open_trace(trace)
    recorded.verify()
    only = parse_integers(layers, "--layers")
    with progress_bar() as progress:
        lines = module.verify(
            recorded,
            chosen,
            wanted,
            prompt_len=prompt_len,
            share=share.value,
            engine=engine.value,
            layers=only,
            progress=progress,
        )
    records = [line.record() for line in lines]
    show(format_, lambda: records, lambda: _page(recorded, lines, show_details))
    if plot is not None:
        series = {
            text: module.over_time(
                recorded,
                text,
                wanted[-1],
                prompt_len=prompt_len,
                share=share.value,
                engine=engine.value,
                layer=only[0] if only else None,
                proved=True,
            )
            for text in chosen
        }
        title = f"{recorded.name}, budget {wanted[-1]}"
        draw(plot, lambda: report.guarantees_figure(series, title))
    broken = module.violations(lines)
    for number, line in enumerate(broken):
        folder = Path(f"counterexample-{line.result.guarantee}-{recorded.name}-{number}")
        module.write_counterexample(recorded, line, folder, share=share.value)
        notice(f"VIOLATED: {line.result.guarantee}, {line.policy}, {line.label}; wrote {folder}")
    if broken:
        raise typer.Exit(1)


def _page(trace: Trace, lines: list[Line], show_details: bool) -> RenderableType:
    """All that is printed as a table: what was verified, the findings, their count."""
    from rich.console import Group

    shown = ", ".join(dict.fromkeys(str(x.budget) for x in lines if x.budget is not None))
    return Group(
        f"{trace.name}: {trace.n} tokens, budgets {shown}",
        *(details(lines) if show_details else summary(lines)),
        closing(lines),
    )


WIDTHS = (15, 14, 5, 5, 6, 29)
"""Of the columns of the summary: with a blank after each, 80 together."""

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
    "M7": "frozen: nobody leaves",
}
"""What a statement says, in a few words; `h2osim.guarantees.GUARANTEES` has the sentences."""


LEGEND = """\
cases: units and budgets. ratio: the least share of the best k tokens' score
that was kept (T6: of the offline optimum's attention). slack: the least
distance from what the statement promises. More: proofs/README.md; --details."""


def _columns(widths: Sequence[int], names: Sequence[str], right: Sequence[str]) -> Table:
    """An empty table of fixed widths, so that those of several policies stand below each other."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for name, width in zip(names, widths, strict=True):
        side: Literal["left", "right"] = "right" if name in right else "left"
        shown.add_column(name, width=width, justify=side, no_wrap=True, overflow="ellipsis")
    return shown


def summary(lines: list[Line]) -> Iterator[RenderableType]:
    """What is printed: a table a policy, one row a statement, in 80 columns."""
    from rich.text import Text

    from h2osim.guarantees import Verdict

    names = ("statement", "verdict", "cases", "ratio", "slack", "")
    heading = _columns(WIDTHS, names, names[2:5])
    heading.add_row(*(Text(name, style="dim") for name in names))
    yield heading
    groups: dict[str, dict[str, list[Line]]] = {}
    for line in lines:
        groups.setdefault(line.policy, {}).setdefault(line.result.guarantee, []).append(line)
    for policy, statements in groups.items():
        yield Text(policy, style="bold")
        shown = _columns(WIDTHS, names, names[2:5])
        for name, group in statements.items():
            outside = [line for line in group if line.result.verdict == Verdict.FAILS]
            worst = next((x for x in group if x.result.verdict == Verdict.VIOLATED), None)
            reason = worst.result.note if worst else outside[0].result.note if outside else ""
            shown.add_row(
                f"  {name}",
                _verdict([line.result.verdict for line in group]),
                str(len(group)),
                _least(line.result.numbers.get("ratio") for line in group),
                _least(line.slack for line in group),
                Text(reason or SAYS.get(name, "")),
            )
        yield shown
    yield Text(LEGEND, style="dim")


def _verdict(verdicts: Sequence[Verdict]) -> str:
    """One word for many: the worst first, with its number where they differ."""
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

    names = ("statement", "budget", "verdict", "ratio", "bound", "note")
    widths = (15, 6, 16, 11, 11, 16)
    heading = _columns(widths, names, ("budget", "ratio", "bound"))
    heading.add_row(*(Text(name, style="dim") for name in names))
    yield heading
    groups: dict[str, dict[tuple[str, int | None], list[Line]]] = {}
    for line in lines:
        at = (line.result.guarantee, line.budget)
        groups.setdefault(line.policy, {}).setdefault(at, []).append(line)
    for policy, statements in groups.items():
        yield Text(policy, style="bold")
        shown = _columns(widths, names, ("budget", "ratio", "bound"))
        for column in shown.columns:
            column.no_wrap, column.overflow = False, "fold"
        for (name, budget), group in statements.items():
            verdicts = [str(line.result.verdict) for line in group]
            counted = [
                word if len(set(verdicts)) == 1 else f"{word} ({verdicts.count(word)})"
                for word in dict.fromkeys(verdicts)
            ]
            shown.add_row(
                f"  {name}",
                "all" if budget is None else str(budget),
                ", ".join(counted),
                _range(line.result.numbers.get("ratio", math.nan) for line in group),
                _range(line.result.numbers.get("bound", math.nan) for line in group),
                Text(group[0].result.note),
            )
        yield shown


def _range(values: Iterable[float]) -> str:
    known = sorted(v for v in values if not math.isnan(v))
    if not known:
        return ""
    ends = dict.fromkeys(f"{v:.3g}" for v in (known[0], known[-1]))
    return "–".join(ends)
