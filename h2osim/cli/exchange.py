"""``h2osim import`` and ``h2osim export``: attention from other programs, and for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import checked_trace, command_line
from h2osim.cli.options import Overwrite
from h2osim.cli.output import notice, output_path


def import_(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Attention of every layer: .npz, .safetensors, or .pt (tensors)."
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The trace's folder, made here.")],
    names: Annotated[
        str | None,
        typer.Option("--names", help="The arrays that are meant: 'blocks.*.attn.hook_pattern'"),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option("--group-size", min=1, help="Query heads that share a cache; default: 1."),
    ] = None,
    prompt_len: Annotated[
        int | None,
        typer.Option("--prompt-len", min=1, help="Tokens of the prompt of a generated run."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The trace's name; default: the folder's.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a trace of attention that another program dumped, or that `export` wrote."""
    from h2osim.models.importing import import_trace

    path = import_trace(
        file,
        out=out,
        names=names,
        group_size=group_size,
        prompt_len=prompt_len,
        name=name,
        command=command_line(context),
        overwrite=overwrite,
    )
    notice(f"wrote {path}")


def export(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="A trace's folder or name.")],
    out: Annotated[
        Path, typer.Option("--output", "-o", help="The file: .npz or .safetensors, replaced.")
    ],
) -> None:
    """Write a trace as one file of plain matrices, which `import` takes too."""
    from h2osim.traces.exchange import SUFFIXES, export_trace

    output_path(out, "--output", SUFFIXES)
    notice(f"wrote {export_trace(checked_trace(trace), out)}")
