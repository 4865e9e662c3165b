"""``h2osim evaluate``: run a model with policies in force and say what it loses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import (
    Share,
    command_line,
    parse_budgets,
    parse_integers,
    progress_bar,
    read_text,
)
from h2osim.cli.options import FormatOption, Layers, Model, ShareOption
from h2osim.cli.output import Format, check_files, draw, save, show
from h2osim.support.errors import UserError


def evaluate(
    context: typer.Context,
    model: Model,
    text: Annotated[
        list[Path], typer.Option("--text", help="UTF-8 texts: --text A B C, or several --text.")
    ],
    more: Annotated[list[Path] | None, typer.Argument(metavar="", hidden=True)] = None,
    policies: Annotated[
        str, typer.Option("--policies", "-p", help="Online policies with their parameters.")
    ] = "h2o,streaming,tova",
    budgets: Annotated[
        str, typer.Option("--budgets", "-b", help="Tokens (64), fractions (0.05) or percent (5%).")
    ] = "5%,10%,20%",
    prompt_len: Annotated[
        str,
        typer.Option("--prompt-len", help="Tokens of the prompt; auto: a third of each text."),
    ] = "auto",
    tokens: Annotated[
        int | None, typer.Option("--tokens", "-n", min=3, help="Tokens of each text; default: all.")
    ] = None,
    share: ShareOption = Share.group,
    layers: Layers = None,
    format_: FormatOption = Format.table,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw KL against budget: .png, .pdf or .svg.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the results as NetCDF: .nc")
    ] = None,
) -> None:
    """Run a model with policies in force and say what it loses (needs the extra `record`)."""
    from h2osim.policies.text import split_policies
    from h2osim.report.evaluation import evaluation_figure, evaluation_records, evaluation_table

    wanted = parse_budgets(budgets)
    if isinstance(wanted, str):
        raise UserError("--budgets: all: expected a list, every budget is a pass of the model")
    if prompt_len != "auto" and not (prompt_len.isascii() and prompt_len.isdecimal()):
        raise UserError(f"--prompt-len: found {prompt_len!r}, expected a number of tokens or auto")
    only = parse_integers(layers, "--layers")
    check_files(plot, output, (".nc",))
    texts: dict[str, str] = {}
    for path in [*text, *(more or [])]:
        name = path.name if path.name not in texts else str(path)
        texts[name] = read_text(path, "--text")

    from h2osim.closed_loop.evaluating import evaluate as run

    with progress_bar() as progress:
        results = run(
            model,
            texts,
            split_policies(policies),
            wanted,
            prompt_len=None if prompt_len == "auto" else int(prompt_len),
            share=share.value,
            n_tokens=tokens,
            layers=only,
            progress=progress,
        )
    results.attrs["command"] = command_line(context)
    save(results, output)
    draw(plot, lambda: evaluation_figure(results))
    show(format_, lambda: evaluation_records(results), lambda: evaluation_table(results))
