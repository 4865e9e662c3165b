"""Times each kernel alone, and the parts of a sweep, on the first GPU; gpu/README.md has numbers.

    python tests/measure_gpu.py

prints first what ``h2osim bench gpu`` measures. Results are checked against the CPU before they are
timed. Rows are random unless a line says otherwise.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import numpy as np

import h2osim
from h2osim import cuda
from h2osim.attention.triangle import tri
from h2osim.bench import Measurement, fed
from h2osim.bench.gpu import (
    DECAYS,
    FINE,
    POLICY,
    RECENT,
    UNITS,
    as_unit,
    clock,
    copy_bandwidth,
    host_trace,
    measure,
    on_one_core,
    random_rows,
    seconds,
)
from h2osim.cuda.bracket import search
from h2osim.cuda.chunks import spread
from h2osim.cuda.kernels.depths import Depths
from h2osim.cuda.kernels.direct import Direct
from h2osim.cuda.kernels.stack import Stack
from h2osim.cuda.rows import DeviceRows, block_rows, load_rows, row_masses
from h2osim.engines.direct import DirectRun
from h2osim.engines.request import Job
from h2osim.engines.results import Bracket
from h2osim.optima.bracket import narrow
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

RECORDED = 90  # units of a recording of the default model: 30 layers, 3 KV heads
LONG = 32768  # tokens of a text whose rows are never in memory all at once


def several_values(device: cuda.Gpu, n: int) -> list[Measurement]:
    """Sixteen values of a parameter at every budget, against one value."""
    rows = random_rows(device, n)
    unit = as_unit(device, rows, n, 100)
    decays = [Job(unit, parse(text), 1, 1) for text in DECAYS]
    windows = [
        Job(unit, parse(f"h2o:recent={recent},scores=full"), 1, 1) for recent in range(0, 32, 2)
    ]
    lines = []
    for what, jobs, units in (
        ("decay", decays, UNITS),
        ("decay", decays, RECORDED),
        ("h2o, windows", windows, UNITS),
    ):
        one = Depths(device, jobs[5:6] * units, list(range(units)), ())
        one.feed(rows)
        checked = min(100, units - 1)
        core = on_one_core(Job(as_unit(device, rows, n, checked), jobs[5].configured, 1, 1))
        assert np.array_equal(one.curves()[checked][0].kept, core.kept)
        single = seconds(lambda run=one: run.feed(rows), 3)  # type: ignore[misc]
        every = [u for u in range(units) for _ in jobs]
        many = Depths(device, jobs * units, every, ())
        many.feed(rows)
        assert np.array_equal(many.curves()[16 * checked + 5][0].kept, core.kept)
        sixteen = seconds(lambda run=many: run.feed(rows), 3)  # type: ignore[misc]
        del one, many
        name = f"{what}: {units} units of {n} tokens, every budget"
        lines += [
            Measurement(f"{name}: one value", single * 1e3, "ms"),
            Measurement(f"{name}: 16 values", sixteen * 1e3, "ms"),
            Measurement(f"{name}: 16 / one", sixteen / single, "times"),
        ]
    return lines


def recorded_text(device: cuda.Gpu) -> list[Measurement]:
    """The units of the bundled trace `prose`, repeated; recorded rows move more tokens a step."""
    units = h2osim.open_trace("prose").units()
    n = units[0].n
    rows = next(load_rows(device, units, n, 0))
    copies = UNITS // len(units)
    # the repeated units share one copy of the rows
    rows = DeviceRows(0, 0, n, rows.bits, device.array(np.tile(device.host(rows.bases), copies)))
    lines = []
    rest = f"recent={RECENT},scores=full"
    windows = [f"h2o:recent={recent},scores=full" for recent in range(0, 32, 2)]
    for what, texts, rounds in (
        (POLICY, [POLICY], copies),
        (f"decay:{rest}", [f"decay:{rest}"], copies),
        ("tova:scores=full", ["tova:scores=full"], copies),
        (f"h2o-mean:{rest}", [f"h2o-mean:{rest}"], copies),
        ("16 values of decay", DECAYS, copies // len(DECAYS)),
        ("16 windows of H2O", windows, copies // len(windows)),
    ):
        policies = [parse(text) for text in texts]
        jobs = [Job(u, one, 1, 1) for _ in range(rounds) for u in units for one in policies]
        which = [u for u in range(rounds * len(units)) for _ in policies]
        took = []
        for one in (Depths, Stack):
            run = one(device, jobs, which, ())
            run.feed(rows)
            assert np.array_equal(run.curves()[3][0].kept, on_one_core(jobs[3]).kept)
            took.append(seconds(lambda run=run: run.feed(rows), 3))  # type: ignore[misc]
        name = f"{what} on prose, {rounds * len(units)} units of {n} tokens"
        lines += [
            Measurement(f"{name}, every budget: `depths`", took[0] * 1e3, "ms"),
            Measurement(f"{name}: `stack` / it", took[1] / took[0], "times"),
        ]
    return lines


def cached_scores(device: cuda.Gpu, n: int) -> list[Measurement]:
    """H2O that observes renormalised rows, at one budget."""
    rows = random_rows(device, n)
    unit = as_unit(device, rows, n, 100)
    k = n // 5
    job = Job(unit, parse(f"h2o:recent={RECENT}"), k, 1)
    masses = row_masses(device, rows, UNITS)
    direct = Direct(device, [job] * UNITS, range(UNITS))

    def again() -> None:
        direct._progress.fill(0)
        direct.feed(rows, masses)

    again()
    expected, outcome = fed(DirectRun(job), unit), direct.outcomes()[100]
    assert outcome is not None and np.array_equal(outcome.kept, expected.kept)
    assert np.array_equal(outcome.evicted_at, expected.evicted_at)
    name = f"cached H2O, {UNITS} units of {n} tokens, budget {k}"
    return [Measurement(name, seconds(again, 3) * 1e3, "ms")]


def parts_of_a_sweep(device: cuda.Gpu, n: int) -> list[Measurement]:
    """What curves of rows in host memory cost: copying alone, computing alone, and both."""
    whole = host_trace(device, n, 128).units()
    cost = {unit: 2 * tri(n) for unit in whole}

    def copying() -> None:
        def work(mine: cuda.Device, some: list[Unit]) -> dict[int, Any]:
            for rows in load_rows(mine, some, n, 0):
                mine.host(rows.bases)
            return {}

        spread(whole, cost, work, device)

    resident = next(load_rows(device, whole, n, 0))
    device.host(resident.bases)  # wait: other streams do not
    index = {unit: u for u, unit in enumerate(whole)}

    def computing(jobs: list[Job]) -> None:
        def work(mine: cuda.Device, some: list[Unit]) -> dict[int, Any]:
            chunk = set(some)
            here = [job for job in jobs if job.unit in chunk]
            run = Depths(mine, here, [index[job.unit] for job in here], ())
            run.feed(resident)
            return run.curves()

        spread(whole, cost, work, device)

    copied = clock(copying)
    lines = [Measurement("copying those rows to the GPU, nothing else", copied * 1e3, "ms")]
    gpus = len(cuda.devices())
    for texts in (DECAYS[5:6], DECAYS, FINE):
        values = [parse(text) for text in texts]
        jobs = [Job(unit, one, 1, 1) for unit in whole for one in values]
        run = Depths(device, jobs, [index[job.unit] for job in jobs], ())
        alone = seconds(partial(run.feed, resident), 3)
        computed = clock(partial(computing, jobs))
        both = clock(partial(cuda.curves, jobs, (), device))
        name = f"curves, values: {len(texts)}"
        lines += [
            Measurement(f"{name}: the kernel, by events", alone * 1e3, "ms"),
            Measurement(f"{name}: from rows on the GPU, nothing copied", computed * 1e3, "ms"),
            Measurement(f"{name}: rows copied", both * 1e3, "ms"),
            Measurement(f"{name}: / copying + computing", both / (copied + computed), "times"),
        ]
        if gpus > 1:
            shared = clock(partial(cuda.curves, jobs))
            lines.append(Measurement(f"{name}: one GPU / {gpus} GPUs", both / shared, "times"))
    return lines


def bounds(device: cuda.Gpu, n: int, copy: float) -> list[Measurement]:
    """Bounds for all units; also as the number of times a copy could read the rows meanwhile."""
    rows = random_rows(device, n)
    k, gap = n // 5, 1e-3

    def run() -> list[Bracket]:
        return search(device, rows, UNITS, 1, n, k, 1, gap, 448)

    found = run()
    exact = narrow(as_unit(device, rows, n, 100), k, 1, 1e-5)
    assert found[100].lower <= exact.upper and exact.lower <= found[100].upper
    whole = seconds(run, 3)
    worst = max((one.upper - one.lower) / one.upper for one in found)
    name = f"bounds on the optimum, {UNITS} units of {n} tokens, budget {k}"
    return [
        Measurement(f"{name}: largest gap", worst, "", gap, False),
        Measurement(f"{name}: readings, median", statistics.median(o.readings for o in found), ""),
        Measurement(name, whole * 1e3, "ms"),
        Measurement(
            f"{name}: as readings at copy speed",
            whole * copy / (UNITS * tri(n) * 2),
            "",
            400,
            False,
        ),
    ]


def long_text(device: cuda.Gpu) -> list[Measurement]:
    """H2O at every budget from queries and keys, and what computing the rows takes of it."""
    rng = np.random.default_rng(7)

    def trace(n: int, heads: int) -> Trace:
        shape = (1, heads, n, 64)
        q, k = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
        return Trace.from_qk(q, k, scale=0.125)

    short = Job(trace(1500, 1).units()[0], parse(POLICY), 1, 1)
    assert np.array_equal(cuda.curves([short], (), device)[0][0].kept, on_one_core(short).kept)

    heads = 16
    units = trace(LONG, heads).units()
    jobs = [Job(unit, parse(POLICY), 1, 1) for unit in units]
    block = block_rows(LONG)

    def rows() -> None:
        for _ in load_rows(device, units, block, 0):
            pass

    making = seconds(rows, 1)
    whole = seconds(lambda: cuda.curves(jobs, (), device), 1)
    return [
        Measurement(f"H2O, {heads} units of {LONG} tokens from q and k, every budget", whole, "s"),
        Measurement("  of which making the rows", making, "s"),
    ]


def main() -> None:
    """Print every measurement, each when it is known."""
    device = cuda.devices()[0]
    for some in (
        measure,
        lambda: several_values(device, 2048),
        lambda: cached_scores(device, 2048),
        lambda: parts_of_a_sweep(device, 2048),
        lambda: recorded_text(device),
        lambda: bounds(device, 2048, copy_bandwidth(device)),
        lambda: long_text(device),
    ):
        for line in some():
            print(f"{line.what:<72} {line.value:12.4g} {line.unit}", flush=True)


if __name__ == "__main__":
    main()
