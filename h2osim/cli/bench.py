"""``h2osim bench``: measured ratios, checked before they are timed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from h2osim.cli.common import (
    checked_trace,
    parse_batch,
    parse_integers,
    parse_numbers,
    read_text,
    whole_of,
)
from h2osim.cli.options import BatchOption, DeviceOption
from h2osim.cli.output import console, notice, print_json
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    from h2osim.bench import Measurement
    from h2osim.traces.unit import Unit

bench = typer.Typer(help="Measure speed, as ratios from one run; checked before it is timed.")

AsJson = Annotated[bool, typer.Option("--json", help="Print a list of records.")]
Tokens = Annotated[int, typer.Option("--n", min=64, max=32768, help="Tokens of the trace.")]
Where = Annotated[
    str | None,
    typer.Argument(metavar="[TRACE]", help="A trace to measure on; default: a made one."),
]
Layer = Annotated[
    int | None, typer.Option("--layer", help="The layer whose first unit is measured.")
]


@bench.callback(invoke_without_command=True)
def default(context: typer.Context, json: AsJson = False) -> None:
    """Measure speed, as ratios from one run; checked before it is timed. Alone: curve."""
    if context.invoked_subcommand is None:
        curve(json=json)


@bench.command("curve")
def curve(trace: Where = None, n: Tokens = 4096, layer: Layer = None, json: AsJson = False) -> None:
    """All budgets in one pass, against direct runs and plain NumPy, on one core."""
    from h2osim.bench.curve import measure

    show(measure(_units(trace, n, layer)[0]), json)


@bench.command("errors")
def errors(
    trace: Where = None,
    n: Tokens = 4096,
    layer: Layer = None,
    on_gpu: Annotated[
        bool, typer.Option("--gpu", help="All units of the trace or layer on a GPU.")
    ] = False,
    json: AsJson = False,
) -> None:
    """The output error of all budgets in one pass, against their recall, on one core or a GPU."""
    from h2osim.bench.errors import UNITS, measure, measure_gpu, with_values

    if on_gpu:
        from h2osim import cuda

        cuda.devices()
    units = _units(trace, n, layer)
    if not trace:
        units = with_values(units[0], UNITS if on_gpu else 1)
    for unit in units:
        if not unit.has_values:
            raise UserError(f"bench errors: {unit.label} has no values to measure")
    show(measure_gpu(units) if on_gpu else measure(units[0]), json)


@bench.command("optimum")
def optimum(
    trace: Where = None, n: Tokens = 2048, layer: Layer = None, json: AsJson = False
) -> None:
    """The exact optimum of every budget, against other solvers on one, on one core (needs lapx)."""
    from h2osim.bench.optimum import measure

    unit = _units(trace, n, layer)[0]
    # SciPy's solver takes minutes beyond this.
    show(measure(unit, scipy=unit.n <= 4096), json)


@bench.command("gpu")
def gpu(json: AsJson = False) -> None:
    """The kernels on a GPU: against its copy bandwidth, one CPU core and PyTorch."""
    from h2osim.bench.gpu import measure

    show(measure(), json)


@bench.command("record")
def recording(
    model: Annotated[str, typer.Option("--model", help="As for h2osim record.")] = "smollm2",
    n: Annotated[str, typer.Option("--n", help="Tokens, random ones; several: 1024,4096")] = "1024",
    device: DeviceOption = "cpu",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs; the least counts.")] = 3,
    json: AsJson = False,
) -> None:
    """A recording of all layers, against a plain forward pass."""
    from h2osim.models import loading

    lengths = parse_integers(n, "--n") or []
    loading.require()
    import numpy as np

    from h2osim.bench import recording as measuring
    from h2osim.models.placing import check_device, placed

    check_device(device)
    loaded = placed(loading.load(model), device)
    most = loaded.context or max(lengths)
    for length in lengths:
        if not 2 <= length <= most:
            raise UserError(f"--n: found {length}, expected 2 to the model's context of {most}")
    lines: list[Measurement] = []
    for length in lengths:
        random = np.random.default_rng(0).integers(0, loaded.vocabulary, length)
        lines += measuring.measure(loaded, random.tolist(), repeats)
    show(lines, json)


@bench.command("closed-loop")
def closed_loop(
    model: Annotated[str, typer.Option("--model", help="As for h2osim evaluate.")] = "smollm2",
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", help="UTF-8 texts; default: a bundled one, random ids for a grid."),
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="", hidden=True)] = None,
    n: Annotated[int, typer.Option("--n", min=3, help="Tokens of each text.")] = 768,
    prompt_len: Annotated[
        int, typer.Option("--prompt-len", min=1, help="Tokens of the prompt.")
    ] = 256,
    policies: Annotated[
        str, typer.Option("--policies", "-p", help="Online policies with their parameters.")
    ] = "h2o,tova,streaming",
    budget: Annotated[
        str, typer.Option("--budget", "-b", help="Tokens, a fraction, 5% or 50%prompt.")
    ] = "10%",
    device: DeviceOption = "cpu",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Runs; medians count.")] = 5,
    grid: Annotated[
        str | None,
        typer.Option(
            "--grid",
            metavar="TEXTSxPOLICIESxBUDGETS",
            help="Time a study of this size too; default: 16x12x5 (or as many texts as given) on a "
            "GPU, none on a CPU.",
        ),
    ] = None,
    batch: BatchOption = "auto",
    json: AsJson = False,
) -> None:
    """A pass with a policy in force, against a plain forward pass; one thread on a CPU."""
    from h2osim.closed_loop.evaluating import configure, first_step, text_ids
    from h2osim.models import loading
    from h2osim.policies.text import split_policies
    from h2osim.support.bundled import traces

    configured = configure(split_policies(policies))
    asked = parse_numbers(budget)
    if isinstance(asked, str) or len(asked) != 1:
        raise UserError(f"--budget: found {budget!r}, expected one")
    paths = [*(text or []), *(more or [])] or [traces() / "texts" / "prose.txt"]
    words = {str(path): read_text(path, "--text") for path in paths}
    default = f"{len(words) if text else 16}x12x5" if device.startswith("cuda") else ""
    size, at_once = _grid(grid or default), parse_batch(batch)
    if size and text and len(words) < size[0]:
        raise UserError(f"--grid: {size[0]} texts, but --text names {len(words)}")
    loading.require()
    from h2osim.bench import closed_loop as measuring
    from h2osim.models.placing import placed

    loaded = placed(loading.load(model), device)
    texts = {name: text_ids(loaded, name, some, n) for name, some in words.items()}
    name, ids = next(iter(texts.items()))
    p = first_step(name, n, prompt_len)
    lines = measuring.measure(loaded, ids, p, configured, asked[0], repeats)
    if size:
        for line in lines:
            notice(f"{line.what}: {line.value:.3g} {line.unit}")
        lines += measuring.measure_grid(
            loaded, measuring.grid_texts(loaded, texts if text else {}, size[0], n), p,
            configure(split_policies(measuring.GRID_POLICIES)[: size[1]]),
            measuring.GRID_BUDGETS[: size[2]], at_once, notice,
        )  # fmt: skip
    show(lines, json)


def _grid(text: str) -> list[int]:
    """16x12x5 as numbers; none of an empty text."""
    found = [number for word in text.split("x") if (number := whole_of(word)) is not None]
    if text and (len(found) != 3 or not (found[0] >= 1 <= found[1] <= 12 and 1 <= found[2] <= 5)):
        raise UserError(
            f"--grid: found {text!r}, expected TEXTSxPOLICIESxBUDGETS, up to 12 policies and 5 "
            "budgets: 16x12x5"
        )
    return found


def _units(trace: str | None, n: int, layer: int | None) -> list[Unit]:
    from h2osim.traces.synthetic import synth

    recorded = checked_trace(trace) if trace else synth("powerlaw", n, seed=0)
    if layer is not None:
        recorded.check_layer(layer)
    units = [unit for unit in recorded.units("group") if layer in (None, unit.layer)]
    notice(f"measuring on {recorded.name}, {units[0].label}, {units[0].n} tokens")
    return units


def show(lines: list[Measurement], as_json: bool) -> None:
    """Print measurements as a table or as records; a goal missed is exit code 1."""
    if as_json:
        print_json([{**asdict(line), "met": line.met} for line in lines])
    else:
        from rich.table import Table

        table = Table("measured", "value", "unit", "goal")
        table.columns[1].justify = "right"
        for line in lines:
            goal = ""
            if line.goal is not None:
                side = "at least" if line.at_least else "at most"
                goal = f"{side} {line.goal:,g}: {'met' if line.met else 'MISSED'}"
            table.add_row(line.what, f"{line.value:,.3g}", line.unit, goal)
        console().print(table)
    if any(line.met is False for line in lines):
        raise typer.Exit(1)
