"""``h2osim record``: the attention of a language model as a trace."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import command_line, parse_integers, progress_bar, read_bytes
from h2osim.cli.options import Layers, Model, Overwrite, Sample, Temperature
from h2osim.cli.output import notice
from h2osim.support.given import printable


class Store(StrEnum):
    """What a trace keeps of each layer."""

    scores = "scores"
    qk = "qk"
    both = "both"


def record(
    context: typer.Context,
    model: Model,
    text: Annotated[
        Path,
        typer.Option("--text", help="The UTF-8 text that the model reads; - reads standard input."),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The trace's folder, made here.")],
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
    overwrite: Overwrite = False,
) -> None:
    """Run a model over a text and record its attention (needs the extra `record`)."""
    from h2osim.models.recording import record as make

    only_layers = parse_integers(layers, "--layers")
    only_heads = parse_integers(kv_heads, "--kv-heads")
    content = read_bytes(text, "--text")
    with progress_bar() as progress:
        path = make(
            model,
            out=out,
            text=content,
            n_tokens=tokens,
            store=store.value,
            layers=only_layers,
            kv_heads=only_heads,
            values="8bit" if values_8bit else values,
            pre_rope=pre_rope,
            output_norms=output_norms,
            residual=residual,
            generate=generate,
            sample=sample,
            seed=seed,
            temperature=temperature,
            text_name="standard input" if str(text) == "-" else printable(text.name),
            text_license=text_license,
            name=name,
            command=command_line(context),
            overwrite=overwrite,
            progress=progress,
        )
    notice(f"wrote {path}")
