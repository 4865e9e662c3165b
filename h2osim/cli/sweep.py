"""``h2osim sweep``: grids of policies on all units of some traces, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from h2osim.cli.common import (
    EngineName,
    Measure,
    Share,
    budgets_of,
    checked_traces,
    command_line,
    parse_budgets,
    parse_integers,
    progress_bar,
)
from h2osim.cli.options import (
    Budgets,
    Dask,
    EngineOption,
    FormatOption,
    Layers,
    MeasureOption,
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
from h2osim.support.progress import Progress

if TYPE_CHECKING:
    from h2osim.replays.plan import WorkPlan


class ByTrace(StrEnum):
    """What a row may be, besides a setting."""

    trace = "trace"


def sweep(
    context: typer.Context,
    traces: TraceNames,
    policies: Annotated[
        list[str],
        policies_option(
            "Policies with ranges (ends included) and alternatives: "
            "'h2o:recent=0..128:16,scores=full|cached,tova'"
        ),
    ],
    budgets: Budgets = "all",
    ratio: Ratio = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A folder for all results (Zarr). The same command continues what was killed.",
        ),
    ] = None,
    prompt_len: PromptLen = None,
    share: ShareOption = Share.group,
    engine: EngineOption = EngineName.auto,
    layers: Layers = None,
    measure: MeasureOption = Measure.recall,
    dask: Dask = None,
    plot: Annotated[Path | None, plot_option("what is ranked by, over two parameters")] = None,
    plot_size: PlotSize = None,
    plot_title: PlotTitle = None,
    format_: FormatOption = Format.table,
    best: Annotated[
        int, typer.Option("--best", min=1, help="How many settings to print for each budget.")
    ] = 3,
    by: Annotated[
        ByTrace | None, typer.Option("--by", help="Rows for each trace of a best setting.")
    ] = None,
) -> None:
    """Replay grids of policies at many budgets, and find the best settings."""
    from h2osim.report import comparison, terminal
    from h2osim.report.best import best_records, summarise
    from h2osim.report.figures.sweep import axes_of, sweep_figure
    from h2osim.sweeps.grid import expand
    from h2osim.sweeps.sweeping import sweep as run

    # All that can be wrong about the request is found before a trace is read.
    configured = expand(",".join(policies))
    wanted = parse_budgets(budgets_of(context, budgets, ratio))
    only = parse_integers(layers, "--layers")
    look = look_of(plot, plot_size, plot_title)
    check_files(plot)
    if plot is not None:
        axes_of([(one.policy.name, one.values) for one in configured])
    opened = checked_traces(traces)
    with _telling() as (progress, planned):
        results = run(
            opened,
            configured,
            wanted,
            output,
            prompt_len=prompt_len,
            share=share.value,
            engine=engine.value,
            layers=only,
            measure=measure.value,
            dask=dask,
            command=command_line(context),
            progress=progress,
            planned=planned,
        )
    if output is not None:
        notice(f"wrote {output}")
    found = summarise(results)
    shape = results.sizes
    names = comparison.traces_named(found.traces)
    title = (
        f"{names}: {shape['policy']} settings × {shape['unit']} units × {shape['budget']} budgets"
    )
    draw(plot, lambda: sweep_figure(found, title, look))
    show(
        format_,
        lambda: best_records(found, best, by is not None),
        lambda: terminal.best_table(found, best, title, by is not None),
    )


@contextmanager
def _telling() -> Iterator[tuple[Progress | None, Callable[[WorkPlan, int], None]]]:
    """What to call with progress, and what with the plan: on a terminal a bar with the rate, in
    settings × units, which counts from where this call began; and a line.
    """
    runs = 0

    def planned(plan: WorkPlan, left: int) -> None:
        nonlocal runs
        runs = plan.shape[0] * plan.shape[1]
        settings, units, budgets = plan.shape
        once = int(plan.one_pass.all(axis=1).sum())
        ways = [f"{once} in one pass over all budgets"] * bool(once)
        ways += [f"{settings - once} budget by budget"] * (once < settings)
        notice(
            f"{settings} settings × {units} units × {budgets} budgets; settings: "
            f"{', '.join(ways)}; {left} of {plan.chunks} chunks to do"
        )

    with progress_bar("runs") as shown:

        def update(done: float, total: float, what: str) -> None:
            if shown is not None:
                shown(runs * done / total if total else 0, runs, what)

        yield None if shown is None else update, planned
