"""``h2osim policies``: the eviction policies, one line each, or one in full."""

from __future__ import annotations

from typing import Annotated

import typer

from h2osim.cli.options import FormatOption
from h2osim.cli.output import Format, show


def policies(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One policy to show in full.")
    ] = None,
    format_: FormatOption = Format.table,
) -> None:
    """List the eviction policies, or show one: its rule, parameters, source and facts."""
    from h2osim.policies.registry import all_policies, find
    from h2osim.report import pages

    chosen = list(all_policies().values()) if name is None else [find(name)]
    records = [pages.policy_record(policy) for policy in chosen]
    show(
        format_,
        lambda: records,
        lambda: pages.policies_table(chosen) if name is None else pages.policy_page(chosen[0]),
        rows=lambda: [
            {**r, "params": "; ".join(p["name"] for p in r["params"])} for r in records
        ],
    )
