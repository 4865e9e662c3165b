"""``h2osim search``: find a policy and a split of its budget for a model, and prove them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import command_line, parse_budgets, progress_bar, read_text
from h2osim.cli.options import Dask, DeviceOption, Made, Model
from h2osim.cli.output import notice, output_path
from h2osim.support.errors import UserError

Texts = Annotated[
    Path | None,
    typer.Option("--texts", help="Folder of UTF-8 texts NAME.txt (h2osim study texts makes one)."),
]
Names = Annotated[
    str | None,
    typer.Option(
        "--train", help="Names of the training texts; default: the first of each genre, or a third."
    ),
]
Held = Annotated[
    str | None, typer.Option("--held", help="Names of the held-out texts; default: all others.")
]
Spaces = Annotated[
    list[str] | None,
    typer.Option("--policies", "-p", help="Grids to search, as in h2osim sweep: two-speed:mix=…"),
]


def search(
    context: typer.Context,
    model: Model = "smollm2",
    texts: Texts = None,
    train: Names = None,
    held: Held = None,
    policies: Spaces = None,
    budgets: Annotated[
        str, typer.Option("--budgets", "-b", help="Mean budgets: 5%,10%,20%.")
    ] = "5%,10%,20%",
    by: Annotated[
        str,
        typer.Option(
            "--by",
            help="Open-loop measure: first-order, error, error-abs, attention-error, recall.",
        ),
    ] = "first-order",
    objective: Annotated[
        str, typer.Option("--objective", help="What chooses: kl, answers, both, open-loop."),
    ] = "kl",
    answers: Annotated[
        float,
        typer.Option("--answers", help="What prompts with an answer count in the open loop: 0.3."),
    ] = 0.0,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Settings to measure.")] = 100,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, help="Settings proposed and measured together.")
    ] = 8,
    finalists: Annotated[
        int, typer.Option("--finalists", min=1, help="Settings that run in the closed loop.")
    ] = 6,
    tune: Annotated[
        int,
        typer.Option("--tune", min=0, help="Ways to share the budget to try in the closed loop."),
    ] = 0,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=3, help="Tokens of a text.")] = 768,
    prompt_len: Annotated[
        int, typer.Option("--prompt-len", min=1, help="Tokens of its prompt.")
    ] = 256,
    prompts: Annotated[
        int,
        typer.Option("--prompts", min=1, help="Prompts with an answer of each kind and depth."),
    ] = 6,
    checks: Annotated[
        str | None,
        typer.Option("--checks", help="Run also, of these: prompts,cuts,lengths,writing."),
    ] = None,
    left: Annotated[
        int,
        typer.Option("--left", min=0, help="Held-out texts to work out on what is left to win."),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the proposals.")] = 0,
    device: DeviceOption = "cpu",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes.")] = 1,
    dask: Dask = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", help="Folder for what is done; the same command goes on there."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the table: .csv.gz or .csv")
    ] = None,
    budgets_out: Annotated[
        Path | None, typer.Option("--split", help="Save the winner's budgets by unit: .json")
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="A saved table, instead of running.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="Write the page: .md; figures go beside it.")
    ] = None,
    made: Made = None,
) -> None:
    """Search policies' parameters and their budgets' split; report on held-out texts."""
    from h2osim.report.files import require_matplotlib
    from h2osim.studies.search.asked import SPACE, Search
    from h2osim.studies.search.searching import search as run
    from h2osim.studies.tasks import read_table, write_table

    for path, option, endings in (
        (page, "--page", (".md",)), (output, "--output", (".csv", ".gz")),
        (budgets_out, "--split", (".json",)),
    ):  # fmt: skip
        if path is not None:
            output_path(path, option, endings)
    if page is not None:
        require_matplotlib()
    if from_ is not None:
        if page is None:
            raise UserError("--from: expected --page with it")
        from h2osim.studies.search.page import write

        write(read_table(from_, frozenset({"stage", "split", "budget", "winner", "command"})), page)
        notice(f"wrote {page}")
        return
    if texts is None or store is None or output is None or budgets_out is None:
        raise UserError("expected --texts, --store, --output and --split, or --from")
    totals = [t for t in parse_budgets(budgets) if isinstance(t, float) and 0.01 < t < 0.7]
    if len(totals) < len(budgets.split(",")):
        raise UserError(f"--budgets {budgets}: expected shares of a text between 1% and 70%")
    found = _texts(texts)
    training, other = _halves(found, train, held)
    asked = Search(
        model, tuple(policies or [SPACE]), tuple(totals), by=by,
        objective=objective, trials=trials, batch=at_once, finalists=finalists, tokens=tokens,
        prompt_len=prompt_len, seed=seed, task_seeds=prompts, device=device,
        answers=answers, tune=tune, left=left,
        checks=tuple(checks.split(",") if checks else ()),
    )  # fmt: skip
    with progress_bar() as bar:
        result = run(
            asked, training, other, store, jobs=jobs, dask=dask,
            command=command_line(context),
            progress=bar or (lambda done, total, what: notice(what)),
        )  # fmt: skip
    from h2osim.replays.budget_file import write_budgets

    table = result.table if made is None else result.table.assign(made=made)
    write_table(table, output)
    write_budgets(budgets_out, result.budgets)
    notice(f"wrote {output} and {budgets_out}")
    if page is not None:
        from h2osim.studies.search.page import write

        write(table, page)
        notice(f"wrote {page}")


def _texts(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise UserError(f"--texts {folder}: expected a folder with texts NAME.txt")
    return {path.stem: read_text(path, "--texts") for path in files}


def _halves(
    found: dict[str, str], train: str | None, held: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """The training and the held-out texts."""
    from h2osim.studies.texts import listed

    first = {one.genre: one.name for one in reversed(listed()) if one.name in found}
    usual = list(first.values()) if set(found) <= {one.name for one in listed()} else None
    names = train.split(",") if train else usual or list(found)[: max(1, len(found) // 3)]
    others = held.split(",") if held else [name for name in found if name not in names]
    for name in (*names, *others):
        if name not in found:
            raise UserError(f"text {name!r}: expected some of {', '.join(found)}")
    return {name: found[name] for name in names}, {name: found[name] for name in others}
