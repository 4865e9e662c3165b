"""``h2osim optimum`` and ``certify``: the best that any schedule could do, with a proof."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from h2osim.cli.common import (
    Format,
    Share,
    console,
    notice,
    output_path,
    parse_budgets,
    parse_integers,
    print_csv,
    print_json,
    progress_bar,
)
from h2osim.cli.options import FormatOption, Layers, PromptLen, ShareOption, TraceName
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import xarray


class Method(StrEnum):
    """How the optimum is found."""

    auto = "auto"
    exact = "exact"
    bracket = "bracket"


class Solver(StrEnum):
    """What solves."""

    numba = "numba"
    cuda = "cuda"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("optimum")(optimum)
    app.command("certify")(certify)


def optimum(
    trace: TraceName,
    budgets: Annotated[
        str, typer.Option("--budgets", "-b", help="As for compare.")
    ] = "0.05,0.1,0.2",
    prompt_len: PromptLen = None,
    share: ShareOption = Share.group,
    layers: Layers = None,
    method: Annotated[
        Method, typer.Option("--method", help="Exact, or a bracket that stops at --gap.")
    ] = Method.auto,
    gap: Annotated[float, typer.Option("--gap", help="Relative gap of a bracket.")] = 1e-4,
    engine: Annotated[
        Solver, typer.Option("--engine", help="cuda brackets many units at once on a GPU.")
    ] = Solver.numba,
    format_: FormatOption = Format.table,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", help="Save schedules and prices for `h2osim certify`."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the price of a cache slot over time (.png, .pdf, .svg)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save everything: .nc")
    ] = None,
) -> None:
    """Find the most attention mass that any eviction schedule could have kept."""
    from h2osim import report
    from h2osim.optima.solving import optimum as solve
    from h2osim.traces.catalogue import open_trace

    wanted = parse_budgets(budgets)
    if plot is not None:
        output_path(plot, "--plot", report.PLOT_SUFFIXES)
        report.require_matplotlib()
    if output is not None:
        output_path(output, "--output", (".nc",))
    for option, path in (("--certificate", certificate), ("--plot", plot)):
        if path is not None and wanted == "all":
            raise UserError(
                f"{option}: schedules of all budgets are n² numbers; name a few budgets"
            )
    recorded = open_trace(trace)
    recorded.verify()
    with progress_bar() as progress:
        found = solve(
            recorded,
            wanted,
            prompt_len=prompt_len,
            share=share.value,
            layers=parse_integers(layers, "--layers"),
            method=method.value,
            gap=gap,
            engine=engine.value,
            progress=progress,
        )
    if certificate is not None:
        from h2osim.optima.certificate import save_certificate

        notice(f"wrote {save_certificate(found, recorded, certificate)}")
    if plot is not None:
        report.plot_prices(found, plot, title=report.comparison_title(recorded, found))
        notice(f"wrote {plot}")
    if output is not None:
        report.save_results(found, output)
        notice(f"wrote {output}")
    records = optimum_records(found)
    if format_ is Format.table:
        print_bounds(records, report.comparison_title(recorded, found))
    elif format_ is Format.json:
        print_json(records)
    else:
        print_csv(records)


def optimum_records(found: xarray.Dataset) -> list[dict[str, Any]]:
    """Records {layer, unit, budget, recall, lower, upper, gap}; budgets in tokens."""
    records = []
    for layer in found["layer"].values:
        for unit in found["unit"].values:
            one = found.sel(layer=layer, unit=unit)
            for b, budget in enumerate(one["budget"].values):
                at = one.isel(budget=b)
                kept, bound = int(at["kept"]), int(at["bound"])
                records.append(
                    {
                        "layer": int(layer),
                        "unit": int(unit),
                        "budget": int(budget),
                        "recall": float(at["recall"]),
                        "lower": float(at["lower"]),
                        "upper": float(at["upper"]),
                        "gap": (bound - kept) / bound if bound else 0.0,
                    }
                )
    return records


def certify(
    certificate: Annotated[Path, typer.Argument(metavar="FILE", help="A saved certificate.")],
    trace: TraceName,
    format_: FormatOption = Format.table,
) -> None:
    """Check a certificate against its trace, in integers; exit code 2 at the first thing wrong."""
    from h2osim.optima.certifying import certify as check
    from h2osim.traces.catalogue import open_trace

    recorded = open_trace(trace)
    recorded.verify()
    checked = check(certificate, recorded)
    records = [
        {
            "layer": one.layer,
            "unit": one.index,
            "budget": one.budget,
            "recall": one.kept / one.mass if one.mass else None,
            "lower": one.kept / one.mass if one.mass else None,
            "upper": one.bound / one.mass if one.mass else None,
            "gap": one.gap,
        }
        for one in checked
    ]
    if format_ is Format.table:
        title = f"{certificate} holds for {recorded.name}"
        if checked:
            title += f", decoding from token {checked[0].prompt_len}, share {checked[0].share}"
        print_bounds(records, title)
    elif format_ is Format.json:
        print_json(records)
    else:
        print_csv(records)


def print_bounds(records: list[dict[str, Any]], title: str) -> None:
    """A row a unit, a column a budget: the recall, and the gap where there is one."""
    from rich.table import Table

    caption = "recall of the best schedule found; +: how much higher the proved bound lies"
    if all(record["gap"] == 0 for record in records):
        caption = "recall of the best schedule there is (gap 0)"
    budgets = sorted({record["budget"] for record in records})
    if len(budgets) > 10:
        budgets = budgets[:: -(-len(budgets) // 10)]
        caption += f"; {len(budgets)} budgets shown"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in ("layer", "unit", *map(str, budgets)):
        table.add_column(column, justify="right", no_wrap=True)
    rows: dict[tuple[int, int], dict[int, str]] = {}
    for record in records:
        text = "–" if record["recall"] is None else f"{record['recall']:.4f}"
        if record["gap"]:
            text += f" +{record['upper'] - record['lower']:.1e}"
        rows.setdefault((record["layer"], record["unit"]), {})[record["budget"]] = text
    for (layer, unit), cells in rows.items():
        table.add_row(str(layer), str(unit), *(cells[budget] for budget in budgets))
    console().print(table)
