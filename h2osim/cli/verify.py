"""``h2osim verify``: every proved statement against the replays of one trace."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from h2osim.cli.common import (
    Engine,
    Format,
    Share,
    console,
    notice,
    output_path,
    parse_budgets,
    parse_integers,
    print_csv,
    print_json,
    progress_bar,
)
from h2osim.cli.options import EngineOption, FormatOption, Layers, PromptLen, ShareOption, TraceName
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from h2osim.guarantees.verify import Line


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
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the ratio over time with its certificates (.png, …)."),
    ] = None,
) -> None:
    """Hold every proved statement against a trace; exit code 1 if one is violated.

    A violated line would be a wrong theorem or a bug: its unit is then saved as a trace to look at.
    The table sums up the units; ``--format json`` and ``csv`` give every line.
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
    if plot is not None:
        output_path(plot, "--plot", report.PLOT_SUFFIXES)
        report.require_matplotlib()
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
    if format_ is Format.table:
        console().print(table(lines, recorded.name))
    elif format_ is Format.json:
        print_json([line.record() for line in lines])
    else:
        records = [line.record() for line in lines]
        columns = dict.fromkeys(name for record in records for name in record)
        print_csv([{name: record.get(name) for name in columns} for record in records])
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
            )
            for text in chosen
        }
        report.plot_guarantees(series, plot, title=f"{recorded.name}, budget {wanted[-1]}")
        notice(f"wrote {plot}")
    broken = module.violations(lines)
    for number, line in enumerate(broken):
        folder = Path(f"counterexample-{line.result.guarantee}-{recorded.name}-{number}")
        module.write_counterexample(recorded, line, folder, share=share.value)
        notice(f"VIOLATED: {line.result.guarantee}, {line.policy}, {line.label}; wrote {folder}")
    if broken:
        raise typer.Exit(1)


def table(lines: list[Line], name: str) -> Table:
    """One row a policy, statement and budget: verdicts over the units, and the numbers' range."""
    from rich.table import Table

    caption = (
        "ratio: value kept over the best set's, least over the run (T6: attention kept over the "
        "offline optimum's; T6c: schedule over dual bound); bound: what the statement promises for "
        "it. Ranges are over the units; notes are of the first unit."
    )
    shown = Table(title=name, caption=caption, title_justify="left", caption_justify="left")
    for column in ("policy", "statement", "budget", "verdict", "ratio", "bound", "note"):
        right = column in ("budget", "ratio", "bound")
        shown.add_column(column, justify="right" if right else "left", overflow="fold")
    groups: dict[tuple[str, str, int | None], list[Line]] = {}
    for line in sorted(lines, key=lambda line: (line.policy, line.result.guarantee)):
        groups.setdefault((line.policy, line.result.guarantee, line.budget), []).append(line)
    last = ""
    for (policy, guarantee, budget), group in groups.items():
        verdicts = [str(line.result.verdict) for line in group]
        counted = [
            word if len(set(verdicts)) == 1 else f"{word} ({verdicts.count(word)})"
            for word in dict.fromkeys(verdicts)
        ]
        if policy != last and last:
            shown.add_section()
        shown.add_row(
            policy if policy != last else "",
            guarantee,
            "all" if budget is None else str(budget),
            ", ".join(counted),
            _range(line.result.numbers.get("ratio", math.nan) for line in group),
            _range(line.result.numbers.get("bound", math.nan) for line in group),
            group[0].result.note,
        )
        last = policy
    return shown


def _range(values: Iterable[float]) -> str:
    known = sorted(v for v in values if not math.isnan(v))
    if not known:
        return ""
    ends = dict.fromkeys(f"{v:.3g}" for v in (known[0], known[-1]))
    return "–".join(ends)
