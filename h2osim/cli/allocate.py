"""``h2osim allocate``: how to split cache slots over units and layers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import (
    EngineName,
    Share,
    checked_traces,
    command_line,
    one_or_several,
    parse_budget,
    parse_integers,
    progress_bar,
)
from h2osim.cli.options import (
    EngineOption,
    FormatOption,
    Layers,
    PlotSize,
    PlotTitle,
    PromptLen,
    ShareOption,
    TraceNames,
    plot_option,
)
from h2osim.cli.output import Format, check_files, console, draw, look_of, notice, save, show
from h2osim.support.errors import UserError


class Method(StrEnum):
    """How curves are split."""

    auto = "auto"
    dp = "dp"
    hull = "hull"


class By(StrEnum):
    """What the units lose."""

    recall = "recall"
    log_recall = "log-recall"
    value = "value"
    error = "error"
    error_abs = "error-abs"
    attention_error = "attention-error"
    residual_error = "residual-error"


class Rule(StrEnum):
    """A split."""

    best = "best"
    equal = "equal"
    pyramid = "pyramid"
    reverse_pyramid = "reverse-pyramid"
    adakv = "adakv"


def allocate(
    context: typer.Context,
    traces: TraceNames,
    total: Annotated[
        str,
        typer.Option(
            "--total",
            "-t",
            "--slots",
            help="Mean budgets, 5%,10%,20%; whole numbers are slots over all units.",
        ),
    ] = "5%,10%,20%",
    by: Annotated[
        By,
        typer.Option("--by", help="What is to be lost as little as possible, of all units."),
    ] = By.recall,
    policies: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            "--policies",
            "-p",
            help="Policies whose curves are split; default: the offline optimum, `optimum`.",
        ),
    ] = None,
    prompt_len: PromptLen = None,
    share: ShareOption = Share.group,
    layers: Layers = None,
    method: Annotated[
        Method, typer.Option("--method", help="Exact (dp), or by the curves' hulls.")
    ] = Method.auto,
    least: Annotated[
        float, typer.Option("--least", help="Least budget of a unit, in multiples of the mean.")
    ] = 0.0,
    most: Annotated[
        float | None, typer.Option("--most", help="Its largest budget, the same.")
    ] = None,
    points: Annotated[
        int,
        typer.Option("--points", help="Budgets to replay where there is no one pass for all."),
    ] = 64,
    write: Annotated[
        Rule, typer.Option("--split", help="Which split goes into a file of budgets.")
    ] = Rule.best,
    engine: EngineOption = EngineName.auto,
    format_: FormatOption = Format.table,
    plot: Annotated[Path | None, plot_option("slots over layer and unit")] = None,
    plot_size: PlotSize = None,
    plot_title: PlotTitle = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            help="Save budgets for `--budgets @FILE.json`; or all results: .nc, .parquet, .csv.",
        ),
    ] = None,
) -> None:
    """Split cache slots over units: the best split, against equal, PyramidKV's and Ada-KV's."""
    from h2osim.optima.allocating import OPTIMUM, budgets_of
    from h2osim.optima.allocating import allocate as split
    from h2osim.policies.text import parse, split_policies
    from h2osim.replays.budget_file import write_budgets
    from h2osim.report import comparison, figures, frames, terminal

    totals = [parse_budget(word.strip(), "--total") for word in total.split(",")]
    chosen = split_policies(",".join(policies)) if policies else [OPTIMUM]
    for text in chosen:
        if text != OPTIMUM:
            parse(text)
    look = look_of(plot, plot_size, plot_title)
    check_files(plot, output)
    files = [path for path in output or () if path.suffix.lower() == ".json"]
    if files and len(chosen) != 1:
        raise UserError(
            f"-o {files[0]}: found {len(chosen)} policies, expected one for its budgets"
        )
    recorded = checked_traces(traces)
    if len(recorded) > 1 and plot is not None:
        raise UserError(f"--plot: found {len(recorded)} traces, expected one")
    with progress_bar() as progress:
        found = split(
            one_or_several(recorded),
            totals,
            policies=chosen,
            by=by.value,
            prompt_len=prompt_len,
            share=share.value,
            layers=parse_integers(layers, "--layers"),
            method=method.value,
            least=least,
            most=most,
            points=points,
            engine=engine.value,
            progress=progress,
        )
    names = comparison.traces_named([one.name for one in recorded])
    title = f"{names}: slots over {found.layer.size * found.unit.size} units"
    found.attrs["command"] = command_line(context)
    draw(plot, lambda: figures.allocation_figure(found, title, look))
    for path in files:
        write_budgets(path, budgets_of(found, write.value))
        notice(f"wrote {path}: {write.value}, {len(totals)} totals")
    save(found, [path for path in output or () if path not in files])
    show(
        format_,
        lambda: frames.allocation_records(found),
        lambda: terminal.allocation_page(console(), found, title),
    )
