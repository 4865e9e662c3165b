"""Arguments and options that several commands take, so that they read and mean the same."""

from __future__ import annotations

from typing import Annotated

import typer

from h2osim.cli.common import Engine, Share
from h2osim.cli.output import Format

TraceName = Annotated[
    str, typer.Argument(metavar="TRACE", help="A trace folder, or the name of a bundled trace.")
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
    Engine, typer.Option("--engine", help="What replays; every engine evicts the same.")
]
Layers = Annotated[str | None, typer.Option("--layers", help="Only these model layers: 0,9,16")]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How to print.")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="Where the model runs: cpu, cuda or cuda:1.")
]
