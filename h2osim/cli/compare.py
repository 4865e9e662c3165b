"""``h2osim compare``: the main job, policies against each other on one trace or several."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from h2osim.cli.common import (
    EngineName,
    Measure,
    Share,
    budgets_of,
    checked_traces,
    command_line,
    given,
    one_or_several,
    parse_budgets,
    parse_integers,
    parse_policies,
    progress_bar,
)
from h2osim.cli.options import (
    Budgets,
    EngineOption,
    FormatOption,
    Layers,
    MeasureOption,
    Outputs,
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
from h2osim.cli.output import Format, check_files, console, draw, look_of, notice, save, show
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import xarray
    from rich.console import RenderableType

    from h2osim.report.comparison import Noted, Spread
    from h2osim.traces.trace import Trace


class ByStep(StrEnum):
    """What a row of the table is, besides a policy."""

    layer = "layer"
    unit = "unit"
    trace = "trace"
    step = "step"


def compare(
    context: typer.Context,
    traces: TraceNames,
    policies: Annotated[
        list[str] | None,
        policies_option(
            "Policies with their parameters: h2o:recent=32,scores=full,tova.  "
            "[default: h2o,streaming,tova]"
        ),
    ] = None,
    budgets: Budgets = "0.05,0.1,0.2",
    ratio: Ratio = None,
    target_recall: Annotated[
        float | None,
        typer.Option(
            "--target-recall",
            help="The smallest budget at which each policy reaches this recall; of all budgets, "
            "unless --budgets names some.",
        ),
    ] = None,
    prompt_len: PromptLen = None,
    share: ShareOption = Share.group,
    engine: EngineOption = EngineName.auto,
    layers: Layers = None,
    optimum: Annotated[
        bool,
        typer.Option(
            "--optimum", help="Compare with the exact offline optimum: regret and gap closed."
        ),
    ] = False,
    measure: MeasureOption = Measure.recall,
    by: Annotated[
        ByStep | None, typer.Option("--by", help="Rows a layer, unit, trace or span of steps.")
    ] = None,
    format_: FormatOption = Format.table,
    plot: Annotated[Path | None, plot_option("what is ranked by, against budget")] = None,
    plot_size: PlotSize = None,
    plot_title: PlotTitle = None,
    plot_axes: PlotAxes = None,
    output: Outputs = None,
) -> None:
    """Replay policies on traces and compare their recall, or what their outputs lose."""
    from h2osim.report import comparison, figures, frames, goals
    from h2osim.report.by_place import by_tables
    from h2osim.report.layouts import first_that_fits

    # All that can be wrong about the request is found before a trace is read.
    every = target_recall is not None and ratio is None and not given(context, "budgets")
    wanted = parse_budgets("all" if every else budgets_of(context, budgets, ratio))
    chosen = parse_policies(policies or ["h2o,streaming,tova"])
    if target_recall is not None and not 0 < target_recall <= 1:
        raise UserError(f"--target-recall: {target_recall:g}: expected above 0 and up to 1")
    if target_recall is not None and measure is not Measure.recall:
        raise UserError("--target-recall asks for recall; leave --measure out")
    if by is ByStep.step and (wanted == "all" or target_recall is not None):
        raise UserError("--by step: every step of every budget is n² numbers; name a few budgets")
    only = parse_integers(layers, "--layers")
    look = look_of(plot, plot_size, plot_title, plot_axes)
    check_files(plot, output)

    from h2osim.replays.budgets import budget_tokens
    from h2osim.replays.curves import budget_for_recall
    from h2osim.replays.replaying import replay

    recorded = checked_traces(traces)
    if by is ByStep.trace and len(recorded) == 1:
        raise UserError(f"--by trace: found one trace, {recorded[0].name}, expected several")
    measured = _measure(recorded, measure)
    with progress_bar() as progress:
        results = replay(
            one_or_several(recorded),
            chosen,
            wanted,
            prompt_len=prompt_len,
            share=share.value,
            engine=engine.value,
            layers=only,
            measure=measured.value,
            step_recall=by is ByStep.step,
            step_errors=by is ByStep.step,
            evictions=any(path.suffix.lower() == ".nc" for path in output or ()),
            progress=progress,
        )
    lengths = {one.n for one in recorded}
    asked = (
        {budget_tokens(b, n, n): b for b in wanted for n in lengths if isinstance(b, float)}
        if len(lengths) == 1
        else {}
    )
    on_cpu = results["policy"].values[results["engine"].values != "cuda"]
    if engine is EngineName.cuda and len(on_cpu):
        notice(f"on the CPU, for want of an exact CUDA form: {', '.join(map(str, on_cpu))}")
    if wanted == "all" or target_recall is not None:
        notice(comparison.one_pass_line(results))
    title = comparison.comparison_title(results)
    if optimum:
        options = {"prompt_len": prompt_len, "share": share.value, "layers": only}
        results = _beside_optimum(recorded, results, wanted, options)
    results.attrs["command"] = command_line(context)
    save(results, output)
    first = next(name for name in frames.MEASURED if name in results)
    draw(plot, lambda: figures.recall_figure(results, title, asked, first, look))
    rows = None if by is None else by.value
    if target_recall is not None:
        reached = budget_for_recall(results, target_recall)
        show(
            format_,
            lambda: frames.target_records(reached),
            lambda: goals.target_table(reached, title, rows, results),
        )
        return
    show(
        format_,
        lambda: (
            comparison.by_records(results, rows, first)
            if rows
            else frames.comparison_records(results)
        ),
        lambda: (
            by_tables(console(), results, rows, first, title, asked)
            if rows
            else _fitting_table(results, title, asked, first, first)
        ),
    )
    if measure is Measure.both and format_ is Format.table:
        console().print(
            by_tables(console(), results, rows, "recall", None, asked)
            if rows
            else _fitting_table(results, None, asked, "recall", first)
        )
    if optimum and format_ is Format.table:
        both = (goals.regret_table(results, first, narrow) for narrow in (False, True))
        console().print(first_that_fits(console(), both))


def _measure(traces: Sequence[Trace], measure: Measure) -> Measure:
    """What is measured: where output error would need values, --measure both does without."""
    bare = [one.name for one in traces if not all(unit.has_values for unit in one.units("layer"))]
    if measure is Measure.both and bare:
        notice(
            f"{', '.join(bare)}: no values recorded, which output error needs; attention error "
            "stands in its place (h2osim record … --values keeps them)"
        )
        return Measure.attention_error
    return measure


def _fitting_table(
    results: xarray.Dataset,
    title: str | None,
    asked: dict[int, float],
    measure: str,
    ranked_by: str,
) -> RenderableType:
    """The table of a comparison, with as much of the spread as the screen is wide enough for."""
    from h2osim.report.comparison import comparison_table
    from h2osim.report.layouts import first_that_fits

    forms: list[tuple[Spread, Noted]] = [
        ("beside", "beside"), ("below", "beside"), ("below", "below"), ("none", "below"),
    ]  # fmt: skip
    return first_that_fits(
        console(),
        (
            comparison_table(results, title, asked, spread, measure, ranked_by, noted)
            for spread, noted in forms
        ),
    )


def _beside_optimum(
    traces: Sequence[Trace], results: xarray.Dataset, budgets: Any, options: dict[str, Any]
) -> xarray.Dataset:
    from h2osim.optima.solving import optimum as solve
    from h2osim.replays.replaying import replay
    from h2osim.report.frames import with_optimum

    given = one_or_several(traces)
    if "streaming" in results["policy"].values:
        streaming = results["recall"].sel(policy="streaming")
    else:
        base = replay(given, "streaming", budgets, evictions=False, **options)
        streaming = base["recall"].isel(policy=0)
    with progress_bar() as progress:
        best = solve(given, budgets, schedules=False, method="exact", progress=progress, **options)
    return with_optimum(results, best, streaming)
