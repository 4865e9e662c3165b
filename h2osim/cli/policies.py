"""``h2osim policies``: the eviction policies, one line each, or one in full."""

from __future__ import annotations

from typing import Annotated

import typer

from h2osim.cli.options import FormatOption
from h2osim.cli.output import Format, show
from h2osim.support.errors import UserError


def policies(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One policy to show in full.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Try its rules on drawn traces in two engines.")
    ] = False,
    format_: FormatOption = Format.table,
) -> None:
    """List the eviction policies, or show one: its rule, parameters, source and facts."""
    from h2osim.policies.registry import all_policies, find, plugins
    from h2osim.report import pages

    if check:
        _check(name)
        return
    every = [*all_policies().values(), *map(find, plugins())]
    chosen = every if name is None else [find(name)]
    records = [pages.policy_record(policy) for policy in chosen]
    show(
        format_,
        lambda: records,
        lambda: pages.policies_table(chosen) if name is None else pages.policy_page(chosen[0]),
        rows=lambda: [{**r, "params": "; ".join(p["name"] for p in r["params"])} for r in records],
    )


def _check(name: str | None) -> None:
    from h2osim.policies.text import parse
    from h2osim.replays.rule_check import check

    if name is None:
        raise UserError("--check: name a policy or the path of a file")
    wrong, known = check(parse(name))
    for line in wrong:
        typer.echo(f"wrong: {line}")
    for line in known:
        typer.echo(line)
    if wrong:
        raise typer.Exit(1)
    typer.echo("naive and numba evict the same tokens in every case tried")
