"""The typer application: every command, in the order in which ``--help`` shows them.

The command modules import nothing heavy at their top, so that ``h2osim --help`` stays fast; a
command loads what it needs when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

import h2osim
from h2osim.cli import (
    allocate,
    bench,
    compare,
    evaluate,
    exchange,
    optimum,
    policies,
    record,
    report,
    search,
    study,
    sweep,
    synth,
    traces,
    verify,
)

app = typer.Typer(
    name="h2osim",
    help="Replays KV-cache eviction policies on recorded attention and measures them exactly.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"h2osim {h2osim.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command in (
    record.record, exchange.import_, exchange.export, synth.synth, traces.traces, traces.info,
    policies.policies, compare.compare, evaluate.evaluate, optimum.optimum, optimum.certify,
    allocate.allocate, verify.verify, report.report, sweep.sweep,
    search.search,
):  # fmt: skip
    app.command(_command.__name__.rstrip("_"))(_command)
app.add_typer(study.study, name="study")
app.add_typer(bench.bench, name="bench")
