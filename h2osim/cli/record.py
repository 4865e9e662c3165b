"""``h2osim record``: the attention of a language model as traces, one a text."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from h2osim.cli.common import command_line, parse_integers, progress_bar, read_bytes
from h2osim.cli.options import DeviceOption, Layers, Model, Overwrite, Sample, Temperature
from h2osim.cli.output import notice
from h2osim.support.errors import UserError
from h2osim.support.given import printable


class Store(StrEnum):
    """What a trace keeps of each layer."""

    scores = "scores"
    qk = "qk"
    both = "both"


def record(
    context: typer.Context,
    model: Model,
    out: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The trace's folder, made here; of several texts, a folder that holds theirs.",
        ),
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            help="The UTF-8 text that the model reads; - reads standard input. Several, or a "
            "folder of them: a trace each, named after its text.",
        ),
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="", hidden=True)] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            "--dataset",
            help='JSON lines, {"prompt": …} or {"text": …} and maybe "name", instead of texts.',
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", "-n", min=1, help="Tokens of the text to take; default: all."),
    ] = None,
    store: Annotated[
        Store,
        typer.Option(
            "--store",
            help="scores: float16 rows, exact on any machine; qk: queries and keys, for long ones.",
        ),
    ] = Store.scores,
    layers: Layers = None,
    kv_heads: Annotated[
        str | None,
        typer.Option("--kv-heads", help="Only these KV heads, with all their query heads: 0,2"),
    ] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Keep the value vectors too; norms are always kept.")
    ] = False,
    values_8bit: Annotated[
        bool,
        typer.Option("--values-8bit", help="Keep them in 8 bits a number and a scale a vector."),
    ] = False,
    pre_rope: Annotated[
        bool,
        typer.Option("--pre-rope", help="Keep the queries before RoPE too (with --store qk)."),
    ] = False,
    output_norms: Annotated[
        bool,
        typer.Option("--output-norms", help="Keep the norm of W_o v, a number a query head."),
    ] = False,
    residual: Annotated[
        bool,
        typer.Option(
            "--residual",
            help="Keep output projections, norms of the residual stream, and values: what "
            "`--measure residual-error` takes.",
        ),
    ] = False,
    generate: Annotated[
        int,
        typer.Option(
            "--generate", min=0, help="Take the text as a prompt and decode this many tokens."
        ),
    ] = 0,
    sample: Sample = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 0,
    temperature: Temperature = 1.0,
    name: Annotated[
        str | None, typer.Option("--name", help="The trace's name; default: the folder's.")
    ] = None,
    text_license: Annotated[
        str | None, typer.Option("--text-license", help="The text's licence, for the manifest.")
    ] = None,
    device: DeviceOption = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Run a model over texts and record its attention (needs the extra `record`).

    Of several texts, those are recorded that are not in the folder yet: the same command continues.
    """
    from h2osim.models.recording import record as record_one
    from h2osim.models.recording import record_many

    settings: dict[str, Any] = {
        "n_tokens": tokens,
        "store": store.value,
        "layers": parse_integers(layers, "--layers"),
        "kv_heads": parse_integers(kv_heads, "--kv-heads"),
        "values": "8bit" if values_8bit else values,
        "pre_rope": pre_rope,
        "output_norms": output_norms,
        "residual": residual,
        "generate": generate,
        "sample": sample,
        "seed": seed,
        "temperature": temperature,
        "text_license": text_license,
        "command": command_line(context),
        "device": device,
        "overwrite": overwrite,
    }
    paths = [*(text or []), *(more or [])]
    if bool(paths) == (dataset is not None):
        raise UserError("record: expected one of --text and --dataset")
    if len(paths) == 1 and not paths[0].is_dir():
        one, content = paths[0], read_bytes(paths[0], "--text")
        called = "standard input" if str(one) == "-" else printable(one.name)
        with progress_bar("tokens") as progress:
            path = record_one(
                model,
                out=out,
                text=content,
                text_name=called,
                name=name,
                progress=progress,
                **settings,
            )
        notice(f"wrote {path}")
        return
    if name is not None:
        raise UserError("--name: is for one text; traces of several are named after theirs")
    texts = texts_of(paths) if dataset is None else prompts_of(dataset)
    with progress_bar("tokens") as progress:
        made = record_many(model, texts, out=out, progress=progress, **settings)
    notice(f"{len(made)} traces in {out}")


def texts_of(paths: Sequence[Path]) -> dict[str, bytes]:
    """The texts of files, and of the files in folders (hidden ones aside), by their names."""
    files: dict[str, Path] = {}
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.is_file() and one.name[0] != ".")
            if not inside:
                raise UserError(f"--text {path}: found no file in this folder, expected texts")
        for one in inside:
            name = printable(one.stem)
            if str(one) == "-":
                raise UserError("--text -: standard input is recorded alone, not beside others")
            if name in files:
                raise UserError(
                    f"--text {one}: {files[name]} has the same name, which its trace would get too"
                )
            files[name] = one
    return {name: read_bytes(one, "--text") for name, one in files.items()}


def prompts_of(dataset: Path) -> dict[str, str]:
    """The prompts of a file of JSON lines, by their names, or that of the file and the line."""
    from h2osim.models.prompts import read_prompts

    return read_prompts(dataset, "--dataset")
