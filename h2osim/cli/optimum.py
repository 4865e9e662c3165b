"""``h2osim optimum`` and ``certify``: the best that any schedule could do, with a proof."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import (
    Share,
    Weights,
    budgets_of,
    by_of,
    checked_trace,
    checked_traces,
    command_line,
    one_or_several,
    parse_budgets,
    parse_integers,
    progress_bar,
)
from h2osim.cli.options import (
    Budgets,
    ByOption,
    FormatOption,
    Layers,
    Outputs,
    PlotAxes,
    PlotSize,
    PlotTitle,
    PromptLen,
    Ratio,
    ShareOption,
    TraceName,
    TraceNames,
    plot_option,
)
from h2osim.cli.output import Format, check_files, draw, look_of, notice, output_path, save, show
from h2osim.support.errors import UserError


class Method(StrEnum):
    """How the optimum is found."""

    auto = "auto"
    exact = "exact"
    bracket = "bracket"


class Solver(StrEnum):
    """What solves."""

    numba = "numba"
    cuda = "cuda"


def optimum(
    context: typer.Context,
    traces: TraceNames,
    budgets: Budgets = "0.05,0.1,0.2",
    ratio: Ratio = None,
    prompt_len: PromptLen = None,
    share: ShareOption = Share.group,
    layers: Layers = None,
    method: Annotated[
        Method, typer.Option("--method", help="Exact, or a bracket that stops at --gap.")
    ] = Method.auto,
    gap: Annotated[float, typer.Option("--gap", help="Relative gap of a bracket.")] = 1e-4,
    engine: Annotated[
        Solver, typer.Option("--engine", help="cuda brackets many units at once on a GPU.")
    ] = Solver.numba,
    weights: Annotated[
        Weights,
        typer.Option(
            "--weights", help="mass: attention; value: attention times |v - o|, needs values."
        ),
    ] = Weights.mass,
    output_error: Annotated[
        bool, typer.Option("--output-error", help="Measure that of the schedules found too.")
    ] = False,
    by: ByOption = None,
    format_: FormatOption = Format.table,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", help="Save schedules and prices for `h2osim certify`."),
    ] = None,
    plot: Annotated[Path | None, plot_option("the price of a cache slot over time")] = None,
    plot_size: PlotSize = None,
    plot_title: PlotTitle = None,
    plot_axes: PlotAxes = None,
    output: Outputs = None,
) -> None:
    """Find the most attention mass that any eviction schedule could have kept."""
    from h2osim.optima.solving import optimum as solve
    from h2osim.report import comparison, figures, frames, terminal

    wanted = parse_budgets(budgets_of(context, budgets, ratio))
    look = look_of(plot, plot_size, plot_title, plot_axes)
    check_files(plot, output)
    if certificate is not None:
        output_path(certificate, "--certificate")
    for option, path in (("--certificate", certificate), ("--plot", plot)):
        if path is not None and wanted == "all":
            raise UserError(
                f"{option}: schedules of all budgets are n² numbers; name a few budgets"
            )
    recorded = checked_traces(traces)
    if len(recorded) > 1 and certificate is not None:
        raise UserError(f"--certificate: found {len(recorded)} traces, expected one")
    if len(recorded) > 1 and plot is not None:
        raise UserError(f"--plot: found {len(recorded)} traces, expected one: prices are of a text")
    with progress_bar() as progress:
        found = solve(
            one_or_several(recorded),
            wanted,
            prompt_len=prompt_len,
            share=share.value,
            layers=parse_integers(layers, "--layers"),
            method=method.value,
            gap=gap,
            engine=engine.value,
            weights=weights.value,
            output_error=output_error,
            progress=progress,
        )
    found.attrs["command"] = command_line(context)
    title = comparison.comparison_title(found)
    if certificate is not None:
        from h2osim.optima.certificate import save_certificate

        notice(f"wrote {save_certificate(found, recorded[0], certificate)}")
    draw(plot, lambda: figures.prices_figure(found, title, look))
    save(found, output)
    records = frames.optimum_records(found)
    show(
        format_,
        lambda: records,
        lambda: terminal.bounds_table(records, title, weights.value, by_of(by, recorded)),
    )


def certify(
    certificate: Annotated[Path, typer.Argument(metavar="FILE", help="A saved certificate.")],
    trace: TraceName,
    format_: FormatOption = Format.table,
) -> None:
    """Check a certificate against its trace, in integers; exit code 2 at the first thing wrong."""
    from h2osim.optima.certifying import certify as check
    from h2osim.report import terminal

    recorded = checked_trace(trace)
    checked = check(certificate, recorded)
    records = [
        {
            "layer": one.layer,
            "unit": one.index,
            "budget": one.budget,
            "recall": one.kept / one.mass if one.mass else None,
            "lower": one.kept / one.mass if one.mass else None,
            "upper": one.bound / one.mass if one.mass else None,
            "gap": one.gap,
        }
        for one in checked
    ]
    title = f"{certificate} holds for {recorded.name}"
    if checked:
        title += f", decoding from token {checked[0].prompt_len}, share {checked[0].share}"
    weights = checked[0].weights if checked else "mass"
    show(format_, lambda: records, lambda: terminal.bounds_table(records, title, weights))
