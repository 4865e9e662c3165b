"""``h2osim study``: many texts, policies and budgets, and the page that says what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import progress_bar
from h2osim.cli.output import notice, output_path
from h2osim.support.errors import UserError

study = typer.Typer(help="Run a study over many texts and write its page.", no_args_is_help=True)


@study.command("texts")
def texts(folder: Annotated[Path, typer.Argument(help="Where the excerpts go.")]) -> None:
    """Collect the texts of the studies from the packages they are in (apt-get and pip)."""
    from h2osim.studies.texts import collect, listed

    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: found a file, expected a folder")
    collect(folder)
    notice(f"wrote {len(listed())} texts to {folder}")


@study.command("fidelity")
def fidelity(
    model: Annotated[str, typer.Argument(help="As for h2osim record.")] = "smollm2",
    texts_: Annotated[
        Path | None, typer.Option("--texts", help="Folder that h2osim study texts has filled.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Names of texts, for a part of the study.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes, one core each.")] = 1,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Folder for what is done; the same command goes on there."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the table: .csv.gz or .csv")
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="A saved table, instead of running.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="Write the page: .md; figures go beside it.")
    ] = None,
) -> None:
    """Which measure of the uncompressed run predicts the KL of the closed loop."""
    from h2osim.report.files import require_matplotlib
    from h2osim.studies import running, texts

    if page is not None:
        output_path(page, "--page", (".md",))
        require_matplotlib()
    if output is not None:
        output_path(output, "--output", (".csv", ".gz"))
    if output is None and page is None:
        raise UserError("study fidelity: expected --output, --page or both")
    if from_ is not None:
        table = running.read_table(from_)
    elif texts_ is None or store is None:
        raise UserError("study fidelity: expected --texts and --store, or --from")
    else:
        found = texts.read(texts_)
        if only is not None:
            if unknown := set(only.split(",")) - set(found):
                known = ", ".join(found)
                raise UserError(f"--only: {min(unknown)!r} is no text; expected some of {known}")
            found = {name: found[name] for name in found if name in only.split(",")}
        from h2osim.models.loading import require

        require()
        with progress_bar() as bar:
            table = running.study(
                running.Setting(model), found, store, jobs,
                bar or (lambda done, total, what: notice(what)),
            )  # fmt: skip
    if output is not None:
        running.write_table(table, output)
        notice(f"wrote {output}")
    if page is not None:
        from h2osim.studies.page import write

        write(table, page)
        notice(f"wrote {page}")
