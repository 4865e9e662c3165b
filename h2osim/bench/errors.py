"""What the errors of every budget cost, beside the recall of every budget."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from h2osim.bench import Measurement, median_seconds
from h2osim.bench.curve import POLICY, one_pass
from h2osim.engines.direct import DirectRun
from h2osim.engines.errors import OUTPUT, RESIDUAL, Outputs
from h2osim.engines.request import Job
from h2osim.engines.results import Curve
from h2osim.engines.stack import StackRun
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

if TYPE_CHECKING:
    from h2osim import cuda
    from h2osim.cuda.rows import DeviceRows

HEAD_SIZE = 64
GOAL = 40.0
#: Made units that a GPU is given.
UNITS = 132


def with_values(unit: Unit, many: int = 1) -> list[Unit]:
    """Some units of one head with the rows of a unit, and random values of the usual size."""
    scores = np.repeat(unit.trace.tensor(unit.layer, "scores")[None, :1], many, axis=1)
    shape = 1, many, unit.n, HEAD_SIZE
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    return Trace.from_packed(scores, name=unit.trace.name, v=values).units()


def measure(unit: Unit) -> list[Measurement]:
    """Time one pass over all budgets of H2O without errors and with; checked before timing."""
    curve = error_pass(unit)
    for k in (1, unit.n // 5, unit.n):
        run = DirectRun(Job(unit, parse(POLICY), k, 1), outputs := Outputs(unit, 1, OUTPUT))
        for block in unit.blocks(rows=outputs.rows_at_a_time()):
            outputs.read(block)
            run.feed(block)
        for name, one in run.result().errors.of.items():
            assert np.isclose(one, curve.errors.of[name][k - 1], rtol=1e-7, atol=1e-12)
    plain = median_seconds(lambda: one_pass(unit))
    whole = median_seconds(lambda: error_pass(unit))
    size = unit.values().shape[2]
    found = [
        Measurement(f"recall, all {unit.n} budgets", plain * 1e3, "ms"),
        Measurement(f"output error, head size {size}, all {unit.n} budgets", whole * 1e3, "ms"),
        Measurement("output error / recall", whole / plain, "times", GOAL, False),
    ]
    if unit.has_residual:
        behind = median_seconds(lambda: error_pass(unit, RESIDUAL))
        found.append(Measurement("residual error / recall", behind / plain, "times"))
    return found


def error_pass(unit: Unit, names: Sequence[str] = OUTPUT) -> Curve:
    """Every budget's recall and errors by the stack engine, on this thread."""
    outputs = Outputs(unit, 1, names)
    run = StackRun(Job(unit, parse(POLICY), unit.n, 1), outputs=outputs)
    for block in unit.blocks(rows=outputs.rows_at_a_time()):
        outputs.read(block)
        run.feed(block)
    return run.result()


def measure_gpu(units: Sequence[Unit]) -> list[Measurement]:
    """The same on the first GPU: whole calls for some units of a trace, and the kernels alone.

    The last unit is checked against a core first. Kernels are given the units again and again, in
    one copy of their rows, as many as keep a GPU busy.
    """
    from h2osim import cuda
    from h2osim.bench import gpu
    from h2osim.cuda.rows import DeviceRows, load_rows

    device, n, policy = cuda.devices()[0], units[0].n, parse(POLICY)
    jobs = [Job(unit, policy, n, 1) for unit in units]
    kinds = (OUTPUT, RESIDUAL) if all(unit.has_residual for unit in units) else (OUTPUT,)
    for names in kinds:
        expected = error_pass(units[-1], names)
        curve = cuda.curves(jobs, (), device, errors=names)[-1][0]
        assert np.array_equal(curve.kept, expected.kept)
        for name, one in expected.errors.of.items():
            assert np.allclose(one, curve.errors.of[name], rtol=1e-7, atol=1e-12)

    plain, whole, *more = (
        gpu.clock(partial(cuda.curves, jobs, (), device, errors=names)) for names in ((), *kinds)
    )
    core = median_seconds(lambda: error_pass(units[-1]), 3)
    copies = -(-gpu.UNITS // len(units))
    rows = next(load_rows(device, units, n, 0))
    rows = DeviceRows(0, 0, n, rows.bits, device.array(np.tile(device.host(rows.bases), copies)))
    recall, errors, full, stacks = gpu_passes(device, jobs * copies, rows)
    behind = []
    if more:
        kernels = gpu_passes(device, jobs * copies, rows, RESIDUAL)[1]
        behind = [
            Measurement("residual error / recall", more[0] / plain, "times"),
            Measurement("kernels: residual error", kernels * 1e3, "ms"),
            Measurement("kernels: residual error / recall", kernels / recall, "times"),
        ]
    size, many = units[0].values().shape[2], f"units of {n} tokens, all budgets"
    error = f"output error, head size {size}"
    return [
        Measurement(f"recall, {len(units)} {many}", plain * 1e3, "ms"),
        Measurement(error, whole * 1e3, "ms"),
        Measurement("output error / recall", whole / plain, "times", GOAL, False),
        Measurement(f"kernels: recall, {copies * len(units)} {many}", recall * 1e3, "ms"),
        Measurement(f"kernels: {error}", errors * 1e3, "ms"),
        Measurement("  of which outputs of whole rows", full * 1e3, "ms"),
        Measurement("  of which recall by the kernel that gives stacks", stacks * 1e3, "ms"),
        Measurement("kernels: output error / recall", errors / recall, "times", GOAL, False),
        Measurement(f"{error}, one unit on one core", core * 1e3, "ms"),
        Measurement("one core / GPU", core * len(units) / whole, "times"),
        *behind,
    ]


def gpu_passes(
    device: cuda.Gpu, jobs: Sequence[Job], rows: DeviceRows, names: Sequence[str] = OUTPUT
) -> list[float]:
    """Seconds of recall, of errors, and of two parts of the latter, from rows on the device."""
    from h2osim.bench.gpu import seconds
    from h2osim.cuda.kernels.errors import read_in_parts, value_size
    from h2osim.cuda.kernels.residuals import outputs_of
    from h2osim.cuda.kernels.stack import Stack
    from h2osim.cuda.run import choose

    units, which = [job.unit for job in jobs], range(len(jobs))
    ((kernel, _),) = choose(device, jobs)
    plain = kernel(device, jobs, which, ())
    outputs = outputs_of(device, units, 1, names, value_size(units, names), len(jobs))
    errors, stacks = (Stack(device, jobs, which, (), 1, one) for one in (outputs, None))

    def feed(*runs: Stack) -> None:
        for part in read_in_parts([rows], outputs):
            for run in runs:
                run.feed(part)

    full = seconds(feed, 3)
    return [
        seconds(partial(plain.feed, rows), 3), seconds(partial(feed, errors), 3), full,
        seconds(partial(feed, stacks), 3) - full,
    ]  # fmt: skip
