"""The CUDA engine: its kernels' text run on the CPU, and compiled for every architecture.

`cuda_shim` runs the very text that a GPU runs, under the engine's own host code; decisions are
compared with the naive engine with ==. Where there is a GPU and CuPy, the same tests run on it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import shutil
import subprocess
import threading
import time
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from cuda_shim import COMPILER, Shim
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, qk_traces, traces
from test_specialise import CELL, run_cell

from h2osim import cuda
from h2osim.cuda import chunks, run
from h2osim.cuda.bracket import brackets
from h2osim.cuda.device import OPTIONS
from h2osim.cuda.kernels.depths import Depths, depths_shape
from h2osim.cuda.kernels.stack import Stack, stack_shape
from h2osim.cuda.rows import load_rows
from h2osim.engines import naive
from h2osim.engines.request import Job
from h2osim.engines.results import Curve
from h2osim.engines.stack import StackRun
from h2osim.optima.bracket import narrow
from h2osim.policies.expressions import LARGEST
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

GPU = cuda.available()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
ARCHITECTURES = ("80", "90", "100")
DIRECT = sorted(n for n, p in all_policies().items() if not cuda.refusal(parse(n), 1))
STACK = [
    "h2o:recent=0,scores=full", "h2o:recent=3,sinks=2,scores=full", "h2o:recent=2,when=prompt",
    "decay:recent=1,scores=full", "tova:scores=full", "recency", "streaming:sinks=2", "full",
    "lazy:window=4,scores=full", "future", "random", "h2o-mean:recent=2,scores=full", "h2o-alg1",
    "vatp:recent=2,scores=full,sinks=1",
]  # fmt: skip


def devices() -> list[cuda.Device]:
    """The shim, its threads in either order, and the GPU if there is one."""
    return [Shim(0), Shim(1), *(cuda.devices()[:1] if GPU else ())]


def a_prompt(data: st.DataObject, n: int) -> int:
    return data.draw(st.integers(1, max(1, n - 1)), label="prompt")


def check_direct(device: cuda.Device, jobs: list[Job]) -> None:
    for job, (found, masses) in zip(jobs, cuda.direct(jobs, device), strict=True):
        expected = naive.run(job)
        assert found.kept.tolist() == expected.kept.tolist()
        assert found.evicted_at.tolist() == expected.evicted_at.tolist()
        assert found.held == expected.held
        assert masses.tolist() == job.unit.row_masses()[job.prompt_len :].tolist()


def kernels(device: cuda.Device, jobs: list[Job]) -> list[type]:
    """Every kernel for all budgets that can run all of the jobs."""
    return [one for one in run.KERNELS if all(one.fits(device, job) for job in jobs)]


def curves_by(
    kernel: type, device: cuda.Device, jobs: list[Job], budgets: list[int], together: int | None
) -> list[tuple[Curve, int]]:
    with mock.patch.object(run, "KERNELS", (kernel,)):
        return cuda.curves(jobs, budgets, device, together=together)


def check_curves(
    device: cuda.Device, jobs: list[Job], budgets: list[int], together: int, kernel: type
) -> None:
    found = curves_by(kernel, device, jobs, budgets, together)
    for job, (curve, mass) in zip(jobs, found, strict=True):
        assert mass == int(job.unit.row_masses()[job.prompt_len :].sum())
        for b, k in enumerate(budgets):
            expected = naive.run(Job(job.unit, job.configured, k, job.prompt_len))
            assert int(curve.kept[k - 1]) == int(expected.kept.sum())
            assert int(curve.held[k - 1]) == expected.held
            assert curve.evicted_at[b].tolist() == expected.evicted_at.tolist()


@needs_compiler
@pytest.mark.parametrize("name", DIRECT)
@examples(8)
@given(data=st.data())
def test_direct_kernel_is_naive(name: str, data: st.DataObject) -> None:
    trace = data.draw(traces(norms=True, max_n=16, max_layers=1))
    configured = parse(name)
    share = data.draw(st.sampled_from(["head", "group", "layer"]))
    p, n = a_prompt(data, trace.n), trace.n
    budgets = data.draw(st.sets(st.integers(1, n), min_size=1, max_size=3))
    jobs = [Job(unit, configured, k, p) for unit in trace.units(share)[:2] for k in budgets]
    check_direct(data.draw(st.sampled_from(devices())), jobs)


@needs_compiler
@pytest.mark.parametrize("text", STACK)
@examples(8)
@given(data=st.data())
def test_kernels_of_curves_are_naive_at_every_budget(text: str, data: st.DataObject) -> None:
    trace = data.draw(traces(norms=True, max_n=16, max_heads=1, max_layers=2))
    jobs = [Job(unit, parse(text), 1, a_prompt(data, trace.n)) for unit in trace.units()[:1]]
    device = data.draw(st.sampled_from(devices()))
    kernel = data.draw(st.sampled_from(kernels(device, jobs)))
    check_curves(device, jobs, list(range(1, trace.n + 1)), 1, kernel)


@needs_compiler
@examples(8)
@given(data=st.data())
def test_configurations_that_share_a_block(data: st.DataObject) -> None:
    trace = data.draw(traces(max_n=14, max_heads=2, max_layers=1))
    p = a_prompt(data, trace.n)
    some = ["decay:gamma=0.5,recent=1,scores=full", "decay:gamma=1,recent=0,scores=full,sinks=1"]
    some += ["decay:gamma=0.9,recent=2,scores=full"]
    jobs = [Job(u, parse(text), 1, p) for u in trace.units("layer") for text in some]
    # in shared memory, and in device memory where there is too little of it
    device: cuda.Device = data.draw(st.sampled_from([*devices(), Shim(shared=64)]))
    kernel = data.draw(st.sampled_from(kernels(device, jobs)))
    check_curves(device, jobs, [1, trace.n], 2, kernel)


def check_large(
    device: cuda.Device, jobs: list[Job], budgets: list[int], together: int | None, kernel: type
) -> None:
    """A kernel against the numba stack engine, which the naive engine vouches for."""
    found = curves_by(kernel, device, jobs, budgets, together)
    for job, (curve, mass) in zip(jobs, found, strict=True):
        run = StackRun(job, budgets)
        for block in job.unit.blocks():
            run.feed(block)
        expected = run.result()
        assert curve.kept.tolist() == expected.kept.tolist()
        assert curve.held.tolist() == expected.held.tolist()
        assert curve.evicted_at.tolist() == expected.evicted_at.tolist()
        assert mass == int(run.masses.sum())


@needs_compiler
@examples(40)
@given(data=st.data())
def test_kernels_of_scores_are_the_stack_engine(data: st.DataObject) -> None:
    trace = data.draw(traces(max_n=70, max_heads=2, max_layers=1))
    n, p = trace.n, a_prompt(data, trace.n)
    texts = []
    gammas = st.sampled_from([None, 0.0, 0.5, 0.98, 1.0])
    all_h2o = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 3), label="configurations")):
        recent, sinks = (data.draw(st.integers(0, n + 1)) for _ in range(2))
        gamma = None if all_h2o else data.draw(gammas)
        name = "h2o:" if gamma is None else f"decay:gamma={gamma},"
        texts.append(f"{name}recent={recent},sinks={sinks},scores=full")
    jobs = [Job(u, parse(text), 1, p) for u in trace.units("layer") for text in texts]
    budgets = data.draw(st.sets(st.integers(1, n), max_size=4).map(sorted))
    device = data.draw(st.sampled_from(devices()))
    kernel = data.draw(st.sampled_from(kernels(device, jobs)))
    check_large(device, jobs, budgets, data.draw(st.integers(1, 2)), kernel)


def busy_unit(n: int, seed: int, heads: int = 1) -> Unit:
    """Rows of few entries, so that tokens overtake one another all the time."""
    rng = np.random.default_rng(seed)
    scores = np.zeros((1, heads, n, n))
    for h in range(heads):
        for t in range(n):
            np.add.at(scores[0, h, t], rng.integers(max(0, t - 90), t + 1, 4), 0.25)
    return Trace.from_scores(scores).units("layer")[0]


@needs_compiler
@pytest.mark.parametrize("recent", [0, 3, 40])
@pytest.mark.parametrize("prompt", [pytest.param(1, marks=pytest.mark.nightly), 50])
@pytest.mark.parametrize("heads", [1, 3])
def test_kernels_where_much_moves(recent: int, prompt: int, heads: int) -> None:
    """Several lines, tokens that overtake one another in all of them, ties of infinite ranks."""
    unit = busy_unit(140, recent, heads)
    texts = [f"h2o:recent={recent},scores=full"]
    texts += [f"decay:gamma={gamma},recent={recent},scores=full" for gamma in (0.0, 0.9)]
    texts += [f"decay:recent={recent},sinks=3,scores=full", f"h2o-mean:recent={recent},scores=full"]
    texts += ["future"] if heads == 1 else []
    jobs = [Job(unit, parse(text), 1, prompt) for text in texts]
    for device in devices():
        for job in jobs:
            for kernel in kernels(device, [job]):
                check_large(device, [job], [], 1, kernel)
                check_large(device, [job], [1, 7, 60, 140], 1, kernel)
        check_large(device, jobs[1:3], [], 2, Depths)


@needs_compiler
def test_kernels_count_past_32_bits() -> None:
    """One token that gets all there is: 300 rows of 2^24 each."""
    scores = np.zeros((300, 300))
    scores[:, 0] = 1.0
    job = Job(Trace.from_scores(scores).units()[0], parse("h2o:recent=1,scores=full"), 1, 1)
    for device in devices():
        for kernel in kernels(device, [job]):
            check_large(device, [job], [1, 2, 300], 1, kernel)


@needs_compiler
def test_windows_of_any_size_share_a_launch() -> None:
    unit = busy_unit(90, 5)
    texts = [f"decay:gamma=0.9,recent={recent},scores=full" for recent in (0, 1, 30, 89, 200)]
    jobs = [Job(unit, parse(text), 1, 20) for text in texts]
    for device in devices():
        check_large(device, jobs, [3, 40], None, Depths)
    texts = [f"h2o:recent={r},sinks={s},scores=full" for r, s in ((0, 0), (70, 3), (5, 0), (99, 1))]
    jobs = [Job(unit, parse(text), 1, 20) for text in texts]
    for device in devices():
        for budgets in ([], [3, 40]):
            check_large(device, jobs, budgets, 3, Depths)


@needs_compiler
def test_who_runs_what() -> None:
    """Rules with state that evict in every step go to `depths`, all others to `stack`."""
    unit, device = busy_unit(90, 5), Shim()

    def chosen(*texts: str) -> list[tuple[str, list[int]]]:
        jobs = [Job(unit, parse(text), 1, 1) for text in texts]
        return [(k.__name__, some) for k, some in run.choose(device, jobs)]

    assert chosen("decay:recent=5,scores=full", "h2o:recent=2,scores=full") == [("Depths", [0, 1])]
    assert chosen("lazy:window=4,scores=full", "tova:scores=full") == [
        ("Stack", [0]), ("Depths", [1])
    ]  # fmt: skip
    assert chosen("recency") == [("Stack", [0])]
    unit = busy_unit(4 * device.warp * 32 + 1, 5)  # more tokens than registers for their mass
    assert chosen("tova:scores=full") == [("Stack", [0])]


@needs_compiler
@examples(15)
@given(data=st.data())
def test_rows_from_queries_and_keys_have_the_bits_of_rows_py(data: st.DataObject) -> None:
    trace = data.draw(qk_traces(max_n=40, max_layers=2))
    units = trace.units()
    device = data.draw(st.sampled_from(devices()))
    block, lag = data.draw(st.integers(1, 16)), data.draw(st.integers(0, 5))
    theirs = [list(unit.blocks(block, lag)) for unit in units]
    for i, rows in enumerate(load_rows(device, units, block, lag)):
        bits, size = device.host(rows.bits), theirs[0][i].bits.size
        for u in range(len(units)):
            expected = theirs[u][i]
            assert (rows.start, rows.stop, rows.first) == (
                expected.start, expected.stop, expected.first,
            )  # fmt: skip
            assert bits[u * size : (u + 1) * size].tolist() == expected.bits.reshape(-1).tolist()


@needs_compiler
@pytest.mark.parametrize("text", ["scissorhands:window=5,recent=2", "h2o:recent=2,scores=full"])
def test_replays_that_stop_and_go_on(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `qk` trace comes in blocks of rows, with state kept on the device in between."""
    monkeypatch.setattr(run, "block_rows", lambda n: 7)
    rng = np.random.default_rng(5)
    q, k = rng.standard_normal((1, 2, 30, 4)), rng.standard_normal((1, 1, 30, 4))
    unit = Trace.from_qk(q, k, scale=1.0).units()[0]
    job = Job(unit, parse(text), 6, 4)
    check_direct(Shim(), [job])
    if job.configured.inclusive(2):
        for device in (Shim(), Shim(shared=64)):
            check_curves(device, [job], [1, 6, 30], 1, Stack)


@needs_compiler
def test_out_of_device_memory_means_smaller_chunks() -> None:
    trace = Trace.from_scores(np.tril(np.ones((8, 12, 12))) / np.arange(1, 13)[:, None])
    jobs = [Job(u, parse("tova"), 3, 1) for u in trace.units()]
    sizes: list[int] = []

    class Small(Shim):
        def empty(self, size: int, dtype: object) -> np.ndarray:
            sizes.append(size)
            return super().empty(size, dtype)

    check_direct(Small(memory=2000), jobs)
    assert max(sizes) > 2000 >= min(sizes)
    with pytest.raises(UserError, match="out of device memory"):
        cuda.direct(jobs, Shim(memory=100))


def test_lanes_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that fit one at a time are worked at one at a time, whatever lanes there are."""
    trace = Trace.from_scores(np.tril(np.ones((8, 12, 12))) / np.arange(1, 13)[:, None])
    units = trace.units()
    lock, busy, most = threading.Lock(), [0], [0]

    class Two(Shim):
        lanes = 2

    def work(room: int, device: cuda.Device, some: list[Unit]) -> dict[int, int]:
        with lock:
            busy[0] += len(some)
            most[0] = max(most[0], len(some))
            full = busy[0] > room
        time.sleep(0.002)
        with lock:
            busy[0] -= len(some)
        if full:
            raise MemoryError
        return {units.index(unit): unit.index for unit in some}

    cost = dict.fromkeys(units, 1)
    for room in (1, 2, 3, 100):
        monkeypatch.setattr(chunks, "PIECE", 2)
        for _ in range(20):
            found = chunks.spread(units, cost, partial(work, room), Two())
            assert found == {i: unit.index for i, unit in enumerate(units)}
    assert most[0] == 2
    with pytest.raises(UserError, match="out of device memory"):
        chunks.spread(units, cost, partial(work, 0), Two())


@needs_compiler
def test_rows_are_copied_while_others_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk's rows come during another chunk's kernels, and the curves are the same."""
    trace = Trace.from_scores(np.tril(np.ones((6, 40, 40))) / np.arange(1, 41)[:, None])
    jobs = [Job(u, parse("decay:recent=2,scores=full"), 1, 1) for u in trace.units()]
    expected = cuda.curves(jobs, (), Shim())
    spans: dict[str, list[tuple[float, float]]] = {"copy": [], "compute": []}
    one_at_a_time = threading.Lock()

    class Slow(Shim):
        lanes = 2

        def put(self, values: np.ndarray, target: np.ndarray, start: int) -> None:
            began = time.perf_counter()
            super().put(values, target, start)
            time.sleep(0.02)
            spans["copy"].append((began, time.perf_counter()))

        def launch(self, *args: Any) -> None:
            with one_at_a_time:  # the shim has one set of threads
                began = time.perf_counter()
                super().launch(*args)
                time.sleep(0.02)
                spans["compute"].append((began, time.perf_counter()))

    monkeypatch.setattr(chunks, "PIECE", 1)
    found = cuda.curves(jobs, (), Slow())
    for (curve, mass), (other, other_mass) in zip(found, expected, strict=True):
        assert curve.kept.tolist() == other.kept.tolist() and mass == other_mass
    assert len(spans["copy"]) == len(spans["compute"]) == 6
    beside = [a for a in spans["copy"] for b in spans["compute"] if a[0] < b[1] and b[0] < a[1]]
    assert len(beside) >= 3
    copies = sorted(spans["copy"])  # one lane's at a time, or all lanes would compute together
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(copies))


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_without_a_gpu_one_line_says_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"gpu-cuda13|NVIDIA GPU") as caught:
        cuda.devices()
    assert "\n" not in str(caught.value)


def test_policies_that_stay_on_the_cpu_are_named() -> None:
    refused = {n: cuda.refusal(parse(n), 1) for n in all_policies() if n not in DIRECT}
    assert set(refused) >= {"nacl", "roco", "snapkv", "topk"}
    for name, why in refused.items():
        assert why and f"policy {name}:" in why and "\n" not in why


@needs_compiler
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_policy_from_a_notebook(sign: str) -> None:
    """Rules that are defined in a cell are translated, and the kernels run them as naive does."""
    unit = busy_unit(40, 7, 2)
    configured = parse(run_cell(CELL.format(sign=sign), f"<ipython-input-9-{sign}>"))
    job = Job(unit, configured, 12, 3)
    device = Shim()
    check_direct(device, [job])
    assert kernels(device, [job]) == [Depths, Stack]
    for kernel in (Depths, Stack):
        check_curves(device, [job], [1, 12, 40], 1, kernel)


def test_refusals_at_the_limits() -> None:
    assert cuda.refusal(parse("h2o"), 127) is None
    assert "128 heads" in str(cuda.refusal(parse("h2o"), 128))
    assert cuda.refusal(parse(f"streaming:sinks={LARGEST - 1}"), 1) is None
    assert f"sinks={LARGEST}" in str(cuda.refusal(parse(f"streaming:sinks={LARGEST}"), 1))


@needs_compiler
@examples(15)
@given(data=st.data())
def test_bounds_hold_the_optimum_and_prove_it(data: st.DataObject) -> None:
    trace = data.draw(traces(max_n=14, max_heads=2, max_layers=2))
    n, p = trace.n, a_prompt(data, trace.n)
    k = data.draw(st.integers(1, n), label="budget")
    units = trace.units("layer")
    device = data.draw(st.sampled_from(devices()))
    for unit, found in zip(units, brackets(units, k, p, 1e-3, 64, device), strict=True):
        exact = narrow(unit, k, p, 0.0)
        assert exact.lower == exact.upper
        assert found.lower <= exact.lower <= found.upper and found.whole == exact.whole
        # the schedule is feasible and keeps what it says; the prices prove what they say
        gone, kept, dual = found.evicted_at, 0, k * int(found.price.sum())
        first = min(max(k, p - 1), n - 1)
        worth, best = np.zeros(n, np.int64), np.zeros(n, np.int64)
        for t in range(p, n):
            row = unit.row(t)
            older = np.flatnonzero(gone[:t] >= t)
            assert len(older) <= max(k, 0) or t <= first
            kept += int(row[older].sum() + row[t])
            dual += int(row[t])
            worth[:t] += row[:t] - (found.price[t] if t > first else 0)
            best[:t] = worth[:t] if t <= first else np.maximum(best[:t], worth[:t])
        assert (kept, dual + int(best.sum())) == (found.lower, found.upper)


# --- compiling ------------------------------------------------------------------------------------


class Big:
    """The numbers of a GPU, for choosing constants."""

    warp, threads, shared = 32, 1024, 227 * 1024


def kernel_texts() -> dict[str, str]:
    """Every kernel as it is compiled on a GPU, and every policy's rules with the direct kernel."""
    device: cuda.Device = Big()  # type: ignore[assignment]
    found = {
        "masses": cuda.kernel_text("masses", {"T": 256}),
        "rows": cuda.kernel_text("rows", {"T": 256, "SIDE": 16, "TILE": 64}),
        "bracket": cuda.kernel_text("bracket", {"T": 256, "HEADS": 2}),
        "random_rows": cuda.kernel_text("random_rows", {"T": 256}),
    }
    for name, n, heads, more, together in (
        ("decay", 2048, 1, 0, 2), ("decay", 4096, 1, 1, 1), ("tova", 300, 4, 1, 3),
        ("h2o-mean", 100, 1, 0, 1), ("vatp", 1000, 2, 1, 1),
    ):  # fmt: skip
        policy = all_policies()[name]
        shape = depths_shape(device, n, heads, len(policy.state), together, n)
        shape.pop("bytes")
        plain = int(name == "decay")
        found[f"depths {name} {n}"] = cuda.kernel_text(
            "depths", {**shape, "PLAIN": plain, "EVENTS": more}, policy
        )
    for name in DIRECT:
        policy = all_policies()[name]
        found[f"direct {name}"] = cuda.kernel_text("direct", {"T": 128}, policy)
    for name, n, together in (("h2o", 2048, 1), ("decay", 4096, 4), ("lazy", 40000, 1)):
        shape = stack_shape(device, all_policies()[name], n, together)
        shape.pop("bytes")
        shape |= {"C": together, "HEADS": 2, "EVENTS": 1}
        found[f"stack {name}"] = cuda.kernel_text("stack", shape, all_policies()[name])
    return found


@cache
def nvrtc() -> ctypes.CDLL | None:
    """NVIDIA's run-time compiler, from its wheel or the system; it needs no GPU."""
    places = []
    for package in ("nvidia.cu13", "nvidia.cuda_nvrtc"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for place in (spec.submodule_search_locations or ()) if spec else ():
            places += sorted(map(str, Path(place).glob("lib/libnvrtc.so*")))
    for place in [*places, "libnvrtc.so"]:
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    return None


def compile_with_nvrtc(text: str, architecture: str) -> str:
    """What the compiler says, empty if it is content."""
    library = nvrtc()
    assert library
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"k.cu", 0, None, None)
    options = [f"--gpu-architecture=sm_{architecture}", *OPTIONS]
    given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    failed = library.nvrtcCompileProgram(program, len(options), given)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() if failed else ""


@pytest.mark.nightly
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_cuda_text_compiles(architecture: str, tmp_path: Path) -> None:
    texts = kernel_texts()
    if architecture != "90":  # the rules are plain arithmetic: once each is enough
        rules = [f"direct {name}" for name in DIRECT if name not in ("h2o", "lazy")]
        texts = {name: text for name, text in texts.items() if name not in rules}
    if nvrtc():
        for name, text in texts.items():
            said = compile_with_nvrtc(text, architecture)
            assert not said, (name, said)
        return
    nvcc = shutil.which("nvcc")
    if not nvcc:
        pytest.skip("neither nvrtc (pip install nvidia-cuda-nvrtc) nor nvcc")
    for i, (name, text) in enumerate(texts.items()):
        source = tmp_path / f"{i}.cu"
        source.write_text(text)
        command = [nvcc, f"-arch=sm_{architecture}", *OPTIONS, "-cubin", "-o"]
        done = subprocess.run(
            [*command, str(tmp_path / "out"), str(source)], capture_output=True, text=True
        )
        assert done.returncode == 0, (name, done.stderr)
