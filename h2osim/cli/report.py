"""``h2osim report``: one page that shows what policies lose, to read and to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import (
    EngineName,
    Share,
    budgets_of,
    checked_traces,
    command_line,
    one_or_several,
    parse_budgets,
    parse_integers,
    parse_policies,
    progress_bar,
)
from h2osim.cli.options import (
    Budgets,
    EngineOption,
    Layers,
    PromptLen,
    Ratio,
    ShareOption,
    TraceNames,
    policies_option,
)
from h2osim.cli.output import notice, output_path
from h2osim.support.errors import UserError


def report(
    context: typer.Context,
    traces: TraceNames,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page: a .html file.")],
    policies: Annotated[
        list[str] | None,
        policies_option("Policies on the page.  [default: h2o,streaming,tova]"),
    ] = None,
    budgets: Budgets = "0.02,0.05,0.1,0.2,0.4",
    ratio: Ratio = None,
    prompt_len: PromptLen = None,
    share: ShareOption = Share.group,
    engine: EngineOption = EngineName.auto,
    layers: Layers = None,
    title: Annotated[str | None, typer.Option("--title", help="The page's heading.")] = None,
) -> None:
    """Write a page: which tokens policies lose, where, when, and what these were worth.

    One HTML file that opens in a browser without a network.
    """
    from h2osim.report.files import write_text
    from h2osim.report.page.render import require_libraries

    wanted = parse_budgets(budgets_of(context, budgets, ratio))
    chosen = parse_policies(policies or ["h2o,streaming,tova"])
    only = parse_integers(layers, "--layers")
    if wanted == "all":
        raise UserError("--budgets: evictions at all budgets are n² numbers; name a few budgets")
    output_path(output, "--output", (".html",))
    require_libraries()

    from h2osim.report.page.gather import gather
    from h2osim.report.page.render import render

    recorded = checked_traces(traces)
    with progress_bar() as progress:
        found = gather(
            one_or_several(recorded),
            chosen,
            wanted,
            prompt_len=prompt_len,
            share=share.value,
            engine=engine.value,
            layers=only,
            progress=progress,
        )
        page = render(found, command_line(context), title)
    notice(f"wrote {write_text(page, output)}: {len(page.encode()) / 1e6:.1f} MB")
