"""``h2osim synth``: traces made up with a seed, among them the adversaries of the theory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import command_line, parse_assignments
from h2osim.cli.options import Overwrite
from h2osim.cli.output import console, notice
from h2osim.support.errors import UserError


def synth(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The generator; without one, all are listed."),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Tokens.")] = None,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="The trace's folder, made here.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed.")] = 0,
    heads: Annotated[
        int | None, typer.Option("--heads", min=1, help="Query heads a layer; default: 1.")
    ] = None,
    layers: Annotated[int, typer.Option("--layers", min=1, help="Layers.")] = 1,
    group_size: Annotated[
        int | None,
        typer.Option("--group-size", min=1, help="Query heads that share a cache; default: 1."),
    ] = None,
    params: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="A parameter; may be repeated."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a synthetic trace, or list the generators and their parameters."""
    from h2osim.support.parameters import split_call
    from h2osim.traces.generators import GENERATORS
    from h2osim.traces.synthetic import find
    from h2osim.traces.synthetic import synth as make

    if name is None:
        if n is not None or out is not None or params:
            raise UserError("synth: found no generator's name; h2osim synth alone lists them")
        from h2osim.report.pages import generators_table

        console().print(generators_table(list(GENERATORS.values())))
        return
    find(split_call(name, "generator")[0])
    if n is None or out is None:
        missing = "--n" if n is None else "--output (-o)"
        raise UserError(f"synth {name}: {missing} is missing")
    trace = make(
        name,
        n,
        seed=seed,
        heads=heads,
        layers=layers,
        group_size=group_size,
        **parse_assignments(params or [], "--param"),
    )
    trace.manifest["command"] = command_line(context)
    path = trace.save(out, overwrite=overwrite)
    notice(f"wrote {path}")
