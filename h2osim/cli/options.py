"""Arguments and options that several commands take, so that they read and mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from h2osim.cli.common import By, EngineName, Measure, Share
from h2osim.cli.output import Format

TraceName = Annotated[
    str, typer.Argument(metavar="TRACE", help="A trace folder, or the name of a bundled trace.")
]
TraceNames = Annotated[
    list[str],
    typer.Argument(
        metavar="TRACE…",
        help="Trace folders, names of bundled traces, or folders that hold trace folders.",
    ),
]
PromptLen = Annotated[
    int | None,
    typer.Option(
        "--prompt-len",
        min=1,
        help="Tokens of the prompt; default: the recorded run's own, else 1.",
    ),
]
ShareOption = Annotated[Share, typer.Option("--share", help="Which heads share one cache.")]
EngineOption = Annotated[
    EngineName, typer.Option("--engine", help="What replays; every engine evicts the same.")
]
Budgets = Annotated[
    str,
    typer.Option(
        "--budgets",
        "-b",
        help="Tokens (64), fractions of the trace (0.05), percent of it (5%) or of its prompt "
        "(50%prompt), by unit @FILE.json, or such a file scaled to another mean, @FILE.json:5%; or "
        "all.",
    ),
]
Ratio = Annotated[
    str | None,
    typer.Option(
        "--ratio", help="Instead of --budgets: shares of the prompt that are removed (0.5)."
    ),
]
MeasureOption = Annotated[
    Measure,
    typer.Option(
        "--measure",
        help="What to rank by: recall; error of the attention's output (the trace needs values), "
        "both; attention-error, which needs scores only; or residual-error (record --residual).",
    ),
]
ByOption = Annotated[
    By | None, typer.Option("--by", help="Rows for each layer (the usual), unit or trace.")
]
Layers = Annotated[str | None, typer.Option("--layers", help="Only these model layers: 0,9,16")]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How to print.")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="Where the model runs: cpu, cuda or cuda:1.")
]
BatchOption = Annotated[
    str,
    typer.Option(
        "--batch",
        metavar="auto|N",
        help="Passes of a text at once; auto: on a GPU as many as fit, on a CPU one.",
    ),
]
Outputs = Annotated[
    list[Path] | None,
    typer.Option(
        "--output", "-o", help="Save the results: .nc, .parquet, .csv or .json; may be repeated."
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="smollm2, a local Hugging Face folder, a hub id, or a .gguf file."
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask", metavar="ADDRESS", help="Work on this running Dask cluster: tcp://host:8786"
    ),
]
Sample = Annotated[
    bool, typer.Option("--sample", help="Sample the tokens instead of taking the likeliest.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", help="Temperature of the sampling.")
]
Made = Annotated[
    str | None,
    typer.Option("--made", help="How the table was made, in words; kept in it, for the page."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing trace.")]


def policies_option(help_: str) -> Any:
    """--policies, and what a command does with them; what is given several times adds up."""
    return typer.Option("--policies", "-p", help=help_)


def plot_option(what: str) -> Any:
    """--plot, and what a command draws."""
    return typer.Option("--plot", help=f"Draw {what} into this .png, .pdf or .svg.")


PlotSize = Annotated[
    str | None,
    typer.Option("--plot-size", metavar="WxH", help="Size of the plot in inches: 6.5x4."),
]
PlotTitle = Annotated[
    str | None, typer.Option("--plot-title", help="Title of the plot; '' for none.")
]
PlotAxes = Annotated[
    str | None,
    typer.Option(
        "--plot-axes",
        metavar="AXES",
        help="Scales and ends of the plot's axes: x=log,y=0.5:1 (log, linear, or FROM:TO).",
    ),
]
