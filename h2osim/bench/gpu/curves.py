"""The kernels that replay every budget in one pass, alone, by CUDA events."""

from __future__ import annotations

import numpy as np

import h2osim
from h2osim import cuda
from h2osim.attention.triangle import tri
from h2osim.bench import Measurement, core_seconds
from h2osim.bench.gpu.pytorch import pytorch_seconds
from h2osim.bench.gpu.tools import (
    DECAYS,
    POLICY,
    RECENT,
    UNITS,
    as_unit,
    on_one_core,
    random_rows,
    seconds,
)
from h2osim.cuda.kernels.depths import Depths
from h2osim.cuda.kernels.stack import Stack
from h2osim.cuda.rows import DeviceRows, load_rows
from h2osim.engines.request import Job
from h2osim.policies.text import parse

RECORDED = 90  # units of a recording of the default model: 30 layers, 3 KV heads


def accumulated(device: cuda.Gpu, n: int, copy: float) -> list[Measurement]:
    """H2O at every budget, against a copy on the device, one CPU core, and PyTorch."""
    rows = random_rows(device, n)
    jobs = {i: Job(as_unit(device, rows, n, i), parse(POLICY), 1, 1) for i in (0, 100, UNITS - 1)}
    job = jobs[100]
    run = Depths(device, [job] * UNITS, range(UNITS), (), 1)
    run.feed(rows)
    found = run.curves()
    for i, one in jobs.items():
        assert np.array_equal(found[i][0].kept, on_one_core(one).kept)

    gpu = seconds(lambda: run.feed(rows))
    read = UNITS * tri(n) * 2 / gpu
    core = core_seconds(lambda: on_one_core(job), 3)
    name = f"H2O, {UNITS} units of {n} tokens, every budget"
    lines = [
        Measurement(name, gpu * 1e3, "ms"),
        Measurement(f"{name}: scores read once", read / 1e9, "GB/s"),
        Measurement(f"{name}: share of the copy", 100 * read / copy, "%"),
        Measurement(f"{name}: one core by numba / GPU", core * UNITS / gpu, "times", 1000),
    ]
    if n == 2048:
        baseline = pytorch_seconds(rows, n, n // 5, found)
        if baseline:
            lines += [
                Measurement(f"PyTorch, {UNITS} units, budget {n // 5}", baseline, "s"),
                Measurement("PyTorch / GPU, per budget", baseline / (gpu / n), "times", 500),
            ]
    return lines


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
