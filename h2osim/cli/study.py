"""``h2osim study``: many texts, policies and budgets, and the page that says what was found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from h2osim.cli.common import progress_bar
from h2osim.cli.options import DeviceOption, Made, Model
from h2osim.cli.output import notice, output_path
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import pandas

    from h2osim.closed_loop.prompts import Task
    from h2osim.studies.tasks import Study

study = typer.Typer(help="Run a study over many texts and write its page.", no_args_is_help=True)

Texts = Annotated[
    Path | None, typer.Option("--texts", help="Folder that h2osim study texts has filled.")
]
Only = Annotated[
    str | None, typer.Option("--only", help="Names of texts, for a part of the study.")
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes, one core each.")]
Store = Annotated[
    Path | None,
    typer.Option("--store", help="Folder for what is done; the same command goes on there."),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Save the table: .csv.gz or .csv")
]
From = Annotated[Path | None, typer.Option("--from", help="A saved table, instead of running.")]
Page = Annotated[
    Path | None, typer.Option("--page", help="Write the page: .md; figures go beside it.")
]


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
    model: Model = "smollm2",
    texts_: Texts = None,
    only: Only = None,
    jobs: Jobs = 1,
    store: Store = None,
    output: Output = None,
    from_: From = None,
    page: Page = None,
    made: Made = None,
    device: DeviceOption = "cpu",
) -> None:
    """Which measure of the uncompressed run predicts the KL of the closed loop."""
    from h2osim.studies.fidelity import Fidelity
    from h2osim.studies.fidelity_page import write

    _run(
        "fidelity",
        Fidelity(model, device=device),
        write,
        texts_,
        only,
        jobs,
        store,
        output,
        from_,
        page,
        made,
    )


@study.command("h2o")
def h2o(
    model: Model = "smollm2",
    texts_: Texts = None,
    only: Only = None,
    jobs: Jobs = 1,
    store: Store = None,
    output: Output = None,
    from_: From = None,
    page: Page = None,
    made: Made = None,
) -> None:
    """What the H2O paper found about attention and eviction, measured on this model."""
    from h2osim.studies.h2o import H2OFindings
    from h2osim.studies.h2o_page import write

    _run("h2o", H2OFindings(model), write, texts_, only, jobs, store, output, from_, page, made)


def _run(
    name: str,
    asked: Study,
    write: Callable[[pandas.DataFrame, Path], None],
    folder: Path | None,
    only: str | None,
    jobs: int,
    store: Path | None,
    output: Path | None,
    from_: Path | None,
    page: Path | None,
    made: str | None,
) -> None:
    """Run a study or read its table, and save the table, the page or both."""
    from h2osim.report.files import require_matplotlib
    from h2osim.studies.tasks import read_table, write_table

    if page is not None:
        output_path(page, "--page", (".md",))
        require_matplotlib()
    if output is not None:
        output_path(output, "--output", (".csv", ".gz"))
    if output is None and page is None:
        raise UserError(f"study {name}: expected --output, --page or both")
    if from_ is not None:
        table = read_table(from_, asked.columns)
    elif folder is None or store is None:
        raise UserError(f"study {name}: expected --texts and --store, or --from")
    else:
        found = _texts(asked, folder, only)
        from h2osim.models.loading import require

        require()
        with progress_bar() as bar:
            table = asked.run(found, store, jobs, bar or (lambda done, total, what: notice(what)))
    if made is not None:
        table = table.assign(made=made)
    if output is not None:
        write_table(table, output)
        notice(f"wrote {output}")
    if page is not None:
        try:
            write(table, page)
        except (LookupError, TypeError, ValueError) as error:
            if from_ is None:  # our own table: a bug
                raise
            what = f"{type(error).__name__}: {error}"
            raise UserError(
                f"--from {from_}: no page can be made of it ({what}), expected a table as this "
                "study saved it"
            ) from error
        notice(f"wrote {page}")


def _texts(asked: Study, folder: Path, only: str | None) -> dict[str, str | Task]:
    """The texts of a folder and the prompts that the study makes, or some of them."""
    from h2osim.studies.texts import read

    found = read(folder) | asked.prompts()
    if only is None:
        return found
    if unknown := set(only.split(",")) - set(found):
        known = ", ".join(found)
        raise UserError(f"--only: {min(unknown)!r} is no text or prompt; expected some of {known}")
    return {name: found[name] for name in found if name in only.split(",")}
