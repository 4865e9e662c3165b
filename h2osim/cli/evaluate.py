"""``h2osim evaluate``: run a model with policies in force and say what it loses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from h2osim.cli.common import (
    Share,
    budgets_of,
    command_line,
    parse_batch,
    parse_budgets,
    parse_integers,
    parse_policies,
    progress_bar,
    read_text,
    whole_of,
)
from h2osim.cli.options import (
    BatchOption,
    Dask,
    DeviceOption,
    FormatOption,
    Layers,
    Model,
    Ratio,
    Sample,
    ShareOption,
    Temperature,
    plot_option,
    policies_option,
)
from h2osim.cli.output import Format, check_files, draw, save, show
from h2osim.support.errors import UserError
from h2osim.support.given import printable


def evaluate(
    context: typer.Context,
    model: Model,
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", help="UTF-8 texts: --text A B C, or several --text."),
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="", hidden=True)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help='JSON lines, {"prompt": …, "answer": …}, instead of texts.'),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="needle, pairs or facts: prompts made here, instead of texts."),
    ] = None,
    task_length: Annotated[
        int, typer.Option("--task-length", min=1, help="Most tokens of such a prompt.")
    ] = 512,
    task_depths: Annotated[
        str, typer.Option("--task-depths", help="Where the needle stands: 0 first, 1 last.")
    ] = "0.1,0.5,0.9",
    task_seeds: Annotated[
        int, typer.Option("--task-seeds", min=1, help="Prompts for each depth; seeds from --seed.")
    ] = 4,
    policies: Annotated[
        list[str] | None,
        policies_option("Online policies with their parameters; default: h2o,streaming,tova."),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets",
            "-b",
            help="Tokens (64), fractions (0.05), percent (5%) of the text or of its prompt "
            "(50%prompt), or by unit @FILE.json, @FILE.json:5%; default: 5%,10%,20%.",
        ),
    ] = None,
    ratio: Ratio = None,
    mask_from: Annotated[
        Path | None,
        typer.Option("--mask-from", help="Apply the evictions of a replay saved as .nc instead."),
    ] = None,
    prompt_len: Annotated[
        str,
        typer.Option("--prompt-len", help="Tokens of the prompt; auto: a third of each text."),
    ] = "auto",
    tokens: Annotated[
        int | None, typer.Option("--tokens", "-n", min=3, help="Tokens of each text; default: all.")
    ] = None,
    generate: Annotated[
        int, typer.Option("--generate", min=0, help="Let the model write so many tokens.")
    ] = 0,
    sample: Sample = False,
    temperature: Temperature = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of --sample, and of --task.")] = 0,
    share: ShareOption = Share.group,
    layers: Layers = None,
    device: DeviceOption = "cpu",
    batch: BatchOption = "auto",
    store: Annotated[
        Path | None,
        typer.Option(
            "--store", help="A folder that keeps each pass; the same command continues there."
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Passes at a time, each in a process.")
    ] = 1,
    dask: Dask = None,
    format_: FormatOption = Format.table,
    plot: Annotated[Path | None, plot_option("KL against budget")] = None,
    output: Annotated[
        list[Path] | None, typer.Option("--output", "-o", help="Save the results as NetCDF: .nc")
    ] = None,
) -> None:
    """Run a model with policies in force and say what it loses (needs the extra `record`)."""
    from h2osim.report.evaluation import evaluation_figure, evaluation_page, evaluation_records

    # A mask brings its own policies and budgets.
    usual_budgets = "" if mask_from else "5%,10%,20%"
    words = budgets_of(context, usual_budgets if budgets is None else budgets, ratio)
    wanted = parse_budgets(words) if words else []
    if wanted == "all":
        raise UserError("--budgets: all: expected a list, every budget is a pass of the model")
    usual = [] if mask_from else ["h2o,streaming,tova"]
    chosen = parse_policies(policies or usual) if policies or usual else []
    if prompt_len != "auto" and whole_of(prompt_len) is None:
        raise UserError(f"--prompt-len: found {prompt_len!r}, expected a number of tokens or auto")
    only = parse_integers(layers, "--layers")
    check_files(plot, output, (".nc",))
    if sum((bool(text), prompts is not None, task is not None)) != 1:
        raise UserError("expected one of --text, --prompts and --task")
    texts: dict[str, Any] = {}
    for path in [*(text or []), *(more or [])]:
        name = printable(path.name if path.name not in texts else str(path))
        texts[name] = read_text(path, "--text")
    if prompts is not None:
        from h2osim.closed_loop.prompts import read_questions

        texts = dict(read_questions(prompts))
    if task is not None:
        texts = _tasks(task, task_length, task_depths, range(seed, seed + task_seeds))
    if generate and not text:
        raise UserError("--generate: goes with --text; answers are scored, not written")

    from h2osim.sweeps.evaluation import evaluate as run

    with progress_bar("passes") as progress:
        results = run(
            model,
            texts,
            chosen,
            wanted,
            prompt_len=None if prompt_len == "auto" else int(prompt_len),
            share=share.value,
            n_tokens=tokens,
            layers=only,
            generate=generate,
            sample=sample,
            seed=seed,
            temperature=temperature,
            mask_from=mask_from,
            device=device,
            batch=parse_batch(batch),
            store=store,
            jobs=jobs,
            dask=dask,
            command=command_line(context),
            progress=progress,
        )
    save(results, output)
    draw(plot, lambda: evaluation_figure(results))
    show(format_, lambda: evaluation_records(results), lambda: evaluation_page(results))


def _tasks(kind: str, length: int, depths: str, seeds: range) -> dict[str, Any]:
    from h2osim.closed_loop.prompts import Task

    found = {}
    for word in depths.split(","):
        try:
            depth = float(word)
        except ValueError:
            raise UserError(f"--task-depths: {word!r}, expected numbers like 0.1,0.5") from None
        for seed in seeds:
            one = Task(kind, length, depth, seed)
            found[one.name] = one
    return found
