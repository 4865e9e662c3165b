"""``h2osim compare``: the main job, policies against each other on one trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from h2osim.cli.common import (
    EngineName,
    Measure,
    Share,
    checked_trace,
    command_line,
    parse_budgets,
    parse_integers,
    progress_bar,
)
from h2osim.cli.options import (
    EngineOption,
    FormatOption,
    Layers,
    MeasureOption,
    Output,
    PromptLen,
    ShareOption,
    TraceName,
    plot_option,
    policies_option,
)
from h2osim.cli.output import Format, check_files, console, draw, notice, save, show
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import xarray
    from rich.table import Table

    from h2osim.traces.trace import Trace


def compare(
    context: typer.Context,
    trace: TraceName,
    policies: Annotated[
        str, policies_option("Policies with their parameters: h2o:recent=32,scores=full,tova")
    ] = "h2o,streaming,tova",
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets",
            "-b",
            help="Tokens (64), fractions of the trace (0.05), percent (5%), or all.  "
            "[default: 0.05,0.1,0.2]",
        ),
    ] = None,
    target_recall: Annotated[
        float | None,
        typer.Option(
            "--target-recall", help="The smallest budget at which each policy reaches this recall."
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
    format_: FormatOption = Format.table,
    plot: Annotated[Path | None, plot_option("what is ranked by, against budget")] = None,
    output: Output = None,
) -> None:
    """Replay policies on a trace and compare their recall, or what their outputs lose."""
    from h2osim.policies.text import parse, split_policies
    from h2osim.report import figures, frames, terminal

    # All that can be wrong about the request is found before the trace is read.
    wanted = parse_budgets(budgets or ("all" if target_recall else "0.05,0.1,0.2"))
    chosen = split_policies(policies)
    if not chosen:
        raise UserError("--policies: found none, expected names like h2o,streaming:sinks=4,tova")
    for text in chosen:
        parse(text)
    if target_recall is not None and not 0 < target_recall <= 1:
        raise UserError(f"--target-recall: {target_recall:g}: expected above 0 and up to 1")
    if target_recall is not None and measure is not Measure.recall:
        raise UserError("--target-recall asks for recall; leave --measure out")
    only = parse_integers(layers, "--layers")
    check_files(plot, output)

    from h2osim.replays.budgets import budget_tokens
    from h2osim.replays.curves import budget_for_recall
    from h2osim.replays.replaying import replay

    recorded = checked_trace(trace)
    with progress_bar() as progress:
        results = replay(
            recorded,
            chosen,
            wanted,
            prompt_len=prompt_len,
            share=share.value,
            engine=engine.value,
            layers=only,
            measure=measure.value,
            evictions=output is not None and output.suffix.lower() == ".nc",
            progress=progress,
        )
    asked = {budget_tokens(b, recorded.n): b for b in wanted if isinstance(b, float)}
    on_cpu = results["policy"].values[results["engine"].values != "cuda"]
    if engine is EngineName.cuda and len(on_cpu):
        notice(f"on the CPU, for want of an exact CUDA form: {', '.join(map(str, on_cpu))}")
    if wanted == "all" or target_recall is not None:
        notice(terminal.one_pass_line(results))
    title = terminal.comparison_title(recorded, results)
    if optimum:
        options = {"prompt_len": prompt_len, "share": share.value, "layers": only}
        results = _beside_optimum(recorded, results, wanted, options)
    results.attrs["command"] = command_line(context)
    save(results, output)
    first = next(name for name in frames.MEASURED if name in results)
    draw(plot, lambda: figures.recall_figure(results, title, asked, measure=first))
    if target_recall is not None:
        reached = budget_for_recall(results, target_recall)
        show(
            format_,
            lambda: frames.target_records(reached),
            lambda: terminal.target_table(reached, title),
        )
        return
    show(
        format_,
        lambda: frames.comparison_records(results),
        lambda: _fitting_table(results, title, asked, first, first),
    )
    if measure is Measure.both and format_ is Format.table:
        console().print(_fitting_table(results, None, asked, "recall", first))
    if optimum and format_ is Format.table:
        console().print(terminal.regret_table(results))


def _fitting_table(
    results: xarray.Dataset,
    title: str | None,
    asked: dict[int, float],
    measure: str,
    ranked_by: str,
) -> Table:
    """The table of a comparison, with as much of the spread as the screen is wide enough for."""
    from h2osim.report.terminal import comparison_table

    screen = console()
    unbounded = screen.options.update(max_width=10_000)
    for spread in ("beside", "below", "none"):
        table = comparison_table(results, title, asked, spread, measure, ranked_by)
        if screen.measure(table, options=unbounded).maximum <= screen.width:
            break
    return table


def _beside_optimum(
    trace: Trace, results: xarray.Dataset, budgets: Any, options: dict[str, Any]
) -> xarray.Dataset:
    from h2osim.optima.solving import optimum as solve
    from h2osim.replays.replaying import replay
    from h2osim.report.frames import with_optimum

    if "streaming" in results["policy"].values:
        streaming = results["recall"].sel(policy="streaming")
    else:
        base = replay(trace, "streaming", budgets, evictions=False, **options)
        streaming = base["recall"].isel(policy=0)
    with progress_bar() as progress:
        best = solve(trace, budgets, schedules=False, method="exact", progress=progress, **options)
    return with_optimum(results, best, streaming)
