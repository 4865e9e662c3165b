"""What the CUDA engine costs, as ratios from one run on one GPU; everything is checked first.

``h2osim bench gpu``, or ``python -m h2osim.bench.gpu``. Scores are random: softmax of independent
normal logits, rounded to float16, made on the device. Times are medians of CUDA events after a
warm-up; CPU times are processor seconds of one core. The PyTorch baseline is measured where PyTorch
is installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import h2osim
from h2osim import cuda
from h2osim.attention.fixed_point import UNIT
from h2osim.attention.triangle import tri
from h2osim.bench import Line, core_seconds
from h2osim.cuda.bracket import Bounds, search
from h2osim.cuda.chunks import spread
from h2osim.cuda.kernels.depths import Depths
from h2osim.cuda.kernels.direct import Direct
from h2osim.cuda.kernels.stack import Stack
from h2osim.cuda.rows import Rows, block_rows, load_rows, row_masses
from h2osim.engines.direct import DirectRun
from h2osim.engines.request import Job
from h2osim.engines.results import Curve
from h2osim.engines.stack import StackRun
from h2osim.optima.bracket import narrow
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

UNITS = 1056  # eight for each of an H200's 132 multiprocessors
RECORDED = 90  # of a whole recording of the default model: 30 layers, 3 KV heads
RECENT = 32
POLICY = f"h2o:recent={RECENT},scores=full"
FINE = [f"decay:gamma={0.9 + 0.0015 * i:.4f},recent={RECENT},scores=full" for i in range(64)]
DECAYS = FINE[::4]
LONG = 32768


def measure() -> list[Line]:
    """Every line of the benchmark, on the first GPU."""
    device = cuda.devices()[0]
    copy = copy_bandwidth(device)
    lines = [Line("device-to-device copy, bytes read and written", copy / 1e9, "GB/s")]
    for n in (2048, 4096):
        lines += accumulated(device, n, copy)
    lines += others(device, 2048, copy)
    lines += sweeps(device, 2048)
    lines += recorded_text(device)
    lines += optimum(device, 2048, copy)
    lines += long_text(device)
    return lines


# --- tools ---------------------------------------------------------------------------------------


def seconds(work: Callable[[], Any], repeats: int = 7) -> float:
    """Median seconds of some work on the GPU, by events, after one that does not count."""
    import cupy

    work()
    times = []
    for _ in range(repeats):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) / 1e3)
    return statistics.median(times)


def copy_bandwidth(device: cuda.Gpu) -> float:
    """Bytes read and written in a second by a large copy on the device."""
    import cupy

    source = device.empty(2**31, np.uint8)
    source[:] = 7
    target = cupy.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: cupy.copyto(target, source))


def random_rows(device: cuda.Gpu, n: int, units: int = UNITS) -> Any:
    """Random rows of some units on the device; the 100th unit comes back as a trace too."""
    bits = device.empty(units * tri(n) + 8, np.uint16)
    places = device.array(np.arange(units, dtype=np.int64) * tri(n))
    device.launch(
        cuda.kernel_text("random_rows", {"T": 256}), "random_rows", -(-units * n // 8), 256, 0,
        [bits, np.uint64(2024), np.float32(1.0), np.int64(units * n), np.int32(n)],
    )  # fmt: skip
    return Rows(0, 0, n, bits, places)


def as_unit(device: cuda.Gpu, rows: Any, n: int, index: int) -> Unit:
    """One of the units of `random_rows` on the host."""
    scores = np.zeros((n, n), np.float16)
    packed = device.host(rows.bits[index * tri(n) : (index + 1) * tri(n)])
    scores[np.tril_indices(n)] = packed.view(np.float16)
    return Trace.from_scores(scores).units()[0]


def on_one_core(job: Job) -> Curve:
    """The numba stack engine, on this thread."""
    run = StackRun(job)
    for block in job.unit.blocks():
        run.feed(block)
    return run.result()


# --- (a) (b) (c): accumulated scores -------------------------------------------------------------


def accumulated(device: cuda.Gpu, n: int, copy: float) -> list[Line]:
    """H2O at every budget: against the copy, one core, and PyTorch."""
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
        Line(name, gpu * 1e3, "ms"),
        Line(f"{name}: scores read once", read / 1e9, "GB/s"),
        Line(f"{name}: share of the copy", 100 * read / copy, "%"),
        Line(f"{name}: one core by numba / GPU", core * UNITS / gpu, "times", 1000),
    ]
    if n == 2048:
        torch_seconds = pytorch(device, rows, n, n // 5, found)
        if torch_seconds:
            lines += [
                Line(f"PyTorch, a step a turn, {UNITS} units, budget {n // 5}", torch_seconds, "s"),
                Line("PyTorch / GPU, per unit and budget", torch_seconds / (gpu / n), "times", 500),
            ]
    return lines


def pytorch(device: cuda.Gpu, rows: Any, n: int, budget: int, found: Any) -> float | None:
    """Seconds of H2O in PyTorch on the same scores: all units at once, one budget, float32."""
    try:
        import torch
    except ImportError:
        return None
    index = torch.tril_indices(n, n, device="cuda")
    flat = torch.as_tensor(rows.bits[: UNITS * tri(n)].view(np.float16), device="cuda")
    scores = torch.zeros((UNITS, n, n), dtype=torch.float16, device="cuda")
    for u in range(UNITS):
        scores[u, index[0], index[1]] = flat[u * tri(n) : (u + 1) * tri(n)]

    def run(scores: Any = scores) -> Any:
        total = torch.zeros((UNITS, n), device="cuda")
        cached = torch.zeros((UNITS, n), dtype=torch.bool, device="cuda")
        kept = torch.zeros(UNITS, device="cuda", dtype=torch.float64)
        for t in range(n):
            row = scores[:, t, : t + 1].float()
            total[:, : t + 1] += row
            cached[:, t] = True
            if t:
                kept += (row * cached[:, : t + 1]).sum(1)
            if t >= budget:
                last = t + 1 - RECENT
                worst = torch.where(cached[:, :last], total[:, :last], torch.inf).argmin(1)
                cached.scatter_(1, worst[:, None], False)
        return kept

    torch.cuda.synchronize()
    kept = run()
    exact = np.array([int(found[u][0].kept[budget - 1]) for u in range(UNITS)]) * UNIT
    assert np.allclose(kept.cpu().numpy(), exact, rtol=1e-3)  # float32 sums may break near-ties
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for _ in range(3):
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    del flat
    torch.cuda.empty_cache()
    return statistics.median(times)


# --- (d): several values, and cached scores ------------------------------------------------------


def sweeps(device: cuda.Gpu, n: int, units: int = 128) -> list[Line]:
    """`h2osim.sweep` from scores in host memory, many values and one, and what copying costs."""
    packed = random_rows(device, n, units)
    scores = np.zeros((1, units, n, n), np.float16)
    below = np.tril_indices(n)
    for u in range(units):
        rows = device.host(packed.bits[u * tri(n) : (u + 1) * tri(n)])
        scores[0, u][below] = rows.view(np.float16)
    del packed
    trace = Trace.from_scores(scores)
    del scores

    def clock(work: Callable[[], Any]) -> float:
        work()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def sweep(texts: list[str]) -> Any:
        return h2osim.sweep(trace, ",".join(texts), "all", engine="cuda")

    whole = trace.units()
    cost = {unit: 2 * tri(n) for unit in whole}

    def copying() -> None:
        def work(mine: cuda.Device, some: list[Unit]) -> dict[int, Any]:
            for rows in load_rows(mine, some, n, 0):
                mine.host(rows.places)
            return {}

        spread(whole, cost, work, device)

    resident = next(load_rows(device, whole, n, 0))
    device.host(resident.places)  # has arrived: lanes do not wait for this stream
    place = {unit: u for u, unit in enumerate(whole)}

    def computing(jobs: list[Job]) -> None:
        def work(mine: cuda.Device, some: list[Unit]) -> dict[int, Any]:
            chunk = set(some)
            here = [job for job in jobs if job.unit in chunk]
            run = Depths(mine, here, [place[job.unit] for job in here], ())
            run.feed(resident)
            return run.curves()

        spread(whole, cost, work, device)

    one, many, more = (clock(partial(sweep, texts)) for texts in (DECAYS[5:6], DECAYS, FINE))
    copied = clock(copying)
    lines = [
        Line(f"sweep of one decay value, {units} units of {n} tokens in host memory", one, "s"),
        Line("sweep of 16 decay values / of one", many / one, "times"),
        Line("sweep of 64 decay values / of one", more / one, "times"),
        Line("copying those rows to the GPU, nothing else", copied * 1e3, "ms"),
    ]
    gpus = len(cuda.devices())
    for texts in (DECAYS[5:6], DECAYS, FINE):
        values = [parse(text) for text in texts]
        jobs = [Job(unit, one, 1, 1) for unit in whole for one in values]
        run = Depths(device, jobs, [place[job.unit] for job in jobs], ())
        alone = seconds(partial(run.feed, resident), 3)
        computed = clock(partial(computing, jobs))
        both = clock(partial(cuda.curves, jobs, (), device))
        name = f"curves, values: {len(texts)}"
        lines += [
            Line(f"{name}: the kernel, by events", alone * 1e3, "ms"),
            Line(f"{name}: from rows on the GPU, nothing copied", computed * 1e3, "ms"),
            Line(f"{name}: rows copied", both * 1e3, "ms"),
            Line(f"{name}: that / copying, computing in turn", both / (copied + computed), "times"),
        ]
        if gpus > 1:
            shared = clock(partial(cuda.curves, jobs))
            lines.append(Line(f"{name}: one GPU / {gpus} GPUs", both / shared, "times"))
    return lines


def others(device: cuda.Gpu, n: int, copy: float) -> list[Line]:
    """One and sixteen values of a parameter at every budget, and cached H2O at one."""
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
            Line(f"{name}: one value", single * 1e3, "ms"),
            Line(f"{name}: 16 values", sixteen * 1e3, "ms"),
            Line(f"{name}: 16 / one", sixteen / single, "times"),
        ]

    k = n // 5
    job = Job(unit, parse(f"h2o:recent={RECENT}"), k, 1)
    masses = row_masses(device, rows, UNITS)
    direct = Direct(device, [job] * UNITS, range(UNITS))

    def again() -> None:
        direct._cells.fill(0)
        direct.feed(rows, masses)

    again()
    run = DirectRun(job)
    for block in unit.blocks():
        run.feed(block)
    expected, outcome = run.result(), direct.outcomes()[100]
    assert np.array_equal(outcome.kept, expected.kept)
    assert np.array_equal(outcome.evicted_at, expected.evicted_at)
    name = f"cached H2O, {UNITS} units of {n} tokens, budget {k}"
    return [*lines, Line(name, seconds(again, 3) * 1e3, "ms")]


# --- real scores ---------------------------------------------------------------------------------


def recorded_text(device: cuda.Gpu) -> list[Line]:
    """The bundled `prose`, its units again and again: real rows move far more tokens a step."""
    units = h2osim.open_trace("prose").units()
    n = units[0].n
    rows = next(load_rows(device, units, n, 0))
    copies = UNITS // len(units)
    # one copy of the rows, but so many units
    rows = Rows(0, 0, n, rows.bits, device.array(np.tile(device.host(rows.places), copies)))
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
            Line(f"{name}, every budget: `depths`", took[0] * 1e3, "ms"),
            Line(f"{name}: `stack` / it", took[1] / took[0], "times"),
        ]
    return lines


# --- (e): the offline optimum ---------------------------------------------------------------------


def optimum(device: cuda.Gpu, n: int, copy: float) -> list[Line]:
    """Bounds on the optimum of one budget for all units, in readings at the copy's bandwidth."""
    rows = random_rows(device, n)
    k, gap = n // 5, 1e-3

    def run() -> list[Bounds]:
        return search(device, rows, UNITS, 1, n, k, 1, gap, 448)

    found = run()
    exact = narrow(as_unit(device, rows, n, 100), k, 1, 1e-5)
    assert found[100].lower <= exact.upper and exact.lower <= found[100].upper
    whole = seconds(run, 3)
    worst = max((one.upper - one.lower) / one.upper for one in found)
    name = f"bounds on the optimum, {UNITS} units of {n} tokens, budget {k}"
    return [
        Line(f"{name}: largest gap", worst, "", gap, False),
        Line(f"{name}: readings, median", statistics.median(o.readings for o in found), ""),
        Line(name, whole * 1e3, "ms"),
        Line(
            f"{name}: as readings at copy speed",
            whole * copy / (UNITS * tri(n) * 2),
            "",
            400,
            False,
        ),
    ]


# --- (f): rows from queries and keys -------------------------------------------------------------


def long_text(device: cuda.Gpu) -> list[Line]:
    """A long text from queries and keys: the rows never exist all at once."""
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
        Line(f"H2O, {heads} units of {LONG} tokens from q and k, every budget", whole, "s"),
        Line("  of which making the rows", making, "s"),
    ]


if __name__ == "__main__":
    for line in measure():
        goal = ""
        if line.goal is not None:
            word = "at least" if line.at_least else "at most"
            goal = f"   goal {word} {line.goal:g}: {'met' if line.met else 'NOT met'}"
        print(f"{line.what:<72} {line.value:12.4g} {line.unit}{goal}", flush=True)
