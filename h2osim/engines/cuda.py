"""The CUDA engine: the kernels of gpu/, many units and configurations at once.

``direct`` replays jobs at their budgets, ``curves`` every budget of inclusive policies in one pass;
both give the integers and the evictions of the naive engine. Rows of a `qk` trace are made on the
device, block by block, with the bits that `rows.py` gives.

A :class:`Device` is where kernels run: :class:`Gpu` through CuPy, which is imported there and
nowhere else. Tests run the same text and this same module on the CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np

from h2osim import carried
from h2osim.engines.job import Curve, Job, Outcome
from h2osim.engines.specialise import number_slots
from h2osim.engines.translate import LARGEST, Untranslatable, rules_text
from h2osim.errors import UserError
from h2osim.fixedpoint import tri
from h2osim.policy import Configured, Policy, arguments
from h2osim.rules import accumulate, fade, guarded_score
from h2osim.trace import Unit

R = TypeVar("R")
Ticker = Callable[[int], None]


class Device(Protocol):
    """Where kernels run. Arrays are the device's own; ``host`` copies one back."""

    warp: int
    threads: int  # most threads of a block
    shared: int  # bytes of shared memory that a block may ask for
    exhausted: type[BaseException]  # what running out of memory raises
    lanes: int  # threads that may use it at once, one copying while another computes

    def enter(self, lane: int) -> None:
        """From now on this thread works in that lane."""

    def array(self, values: Any) -> Any:
        """A copy on the device."""

    def put(self, values: np.ndarray, target: Any, start: int) -> None:
        """Copy values into a flat array of the device."""

    def full(self, shape: Any, dtype: Any, value: int = 0) -> Any:
        """A filled array on the device."""

    def empty(self, size: int, dtype: Any) -> Any:
        """An array of unspecified contents on the device."""

    def host(self, array: Any) -> np.ndarray:
        """A copy on the host."""

    def free(self) -> int:
        """Bytes that may be asked for now."""

    def release(self) -> None:
        """Give back what is held but not used."""

    def launch(
        self, text: str, name: str, grid: int, threads: int, shared: int, args: Sequence[Any]
    ) -> None:
        """Run a kernel of a text; ``args`` are arrays of the device and NumPy scalars."""


# --- the GPU --------------------------------------------------------------------------------------


class Gpu:
    """One NVIDIA GPU through CuPy. A lane is a stream of its own."""

    warp = 32
    lanes = 2

    def __init__(self, index: int = 0):
        self._cupy = _cupy()
        self._index = index
        with self._cupy.cuda.Device(index) as device:
            self.threads = int(device.attributes["MaxThreadsPerBlock"])
            self.shared = int(device.attributes["MaxSharedMemoryPerBlockOptin"])
            self._streams = [self._cupy.cuda.Stream(non_blocking=True) for _ in range(self.lanes)]
        self.exhausted = self._cupy.cuda.memory.OutOfMemoryError
        self._kernels: dict[tuple[str, str], Any] = {}
        self._compiling = threading.Lock()
        self._thread = threading.local()

    def enter(self, lane: int) -> None:
        """From now on this thread works on that lane's stream."""
        self._thread.stream = self._streams[lane]

    @contextmanager
    def _here(self) -> Iterator[None]:
        stream = getattr(self._thread, "stream", None)
        with self._cupy.cuda.Device(self._index), stream or nullcontext():
            yield

    def array(self, values: Any) -> Any:
        """A copy on the device."""
        with self._here():
            return self._cupy.asarray(np.ascontiguousarray(values))

    def put(self, values: np.ndarray, target: Any, start: int) -> None:
        """Copy values into a flat array of the device, through pinned memory."""
        with self._here():
            target[start : start + len(values)] = self._cupy.asarray(values)

    def full(self, shape: Any, dtype: Any, value: int = 0) -> Any:
        """A filled array on the device."""
        with self._here():
            return self._cupy.full(shape, value, dtype)

    def empty(self, size: int, dtype: Any) -> Any:
        """An array of unspecified contents on the device."""
        with self._here():
            return self._cupy.empty(size, dtype)

    def host(self, array: Any) -> np.ndarray:
        """A copy on the host, once all that was launched is done."""
        with self._here():
            return np.asarray(self._cupy.asnumpy(array))

    def free(self) -> int:
        """Bytes that may be asked for now."""
        with self._here():
            pool = self._cupy.get_default_memory_pool()
            return int(self._cupy.cuda.runtime.memGetInfo()[0] + pool.free_bytes())

    def release(self) -> None:
        """Give CuPy's idle memory back to the device."""
        with self._here():
            self._cupy.get_default_memory_pool().free_all_blocks()

    def kernel(self, text: str, name: str) -> Any:
        """A compiled kernel; CuPy keeps compiled texts in its cache folder."""
        key = (text, name)
        with self._compiling:
            if key not in self._kernels:
                module = self._cupy.RawModule(code=text, options=OPTIONS)
                self._kernels[key] = module.get_function(name)
        return self._kernels[key]

    def launch(
        self, text: str, name: str, grid: int, threads: int, shared: int, args: Sequence[Any]
    ) -> None:
        """Run a kernel of a text; ``args`` are arrays of the device and NumPy scalars."""
        with self._here():
            kernel = self.kernel(text, name)
            if shared > 48 * 1024:
                kernel.max_dynamic_shared_size_bytes = shared
            kernel((grid,), (threads,), tuple(args), shared_mem=shared)


#: How kernels are compiled: no a*b+c in one rounding, which Python does not do either.
OPTIONS = ("--fmad=false", "-std=c++17")


def _cupy() -> Any:
    """CuPy, or one line that says what is missing."""
    try:
        import cupy
    except ImportError as error:
        raise UserError(
            f"engine=cuda needs CuPy ({error}); pip install 'h2osim[gpu-cuda13]' for a driver of "
            "CUDA 13, 'h2osim[gpu-cuda12]' for CUDA 12"
        ) from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # the runtime's own exception types need a working runtime
        raise UserError(f"engine=cuda: no usable NVIDIA GPU ({error})") from None
    if count < 1:
        raise UserError("engine=cuda: no NVIDIA GPU found; engine=numba runs on the CPU")
    return cupy


@cache
def devices() -> tuple[Gpu, ...]:
    """Every GPU of this machine; UserError when there is none or CuPy is missing."""
    return tuple(Gpu(i) for i in range(_cupy().cuda.runtime.getDeviceCount()))


def available() -> bool:
    """Whether there is CuPy and a GPU."""
    try:
        return bool(devices())
    except UserError:
        return False


# --- the kernels' texts ---------------------------------------------------------------------------


def kernel_text(name: str, constants: dict[str, int], policy: Policy | None = None) -> str:
    """CUDA text of a kernel of gpu/: constants, common.cuh, a policy's rules, the kernel."""
    folder = carried.gpu()
    defines = "".join(f"#define {key} {value}\n" for key, value in sorted(constants.items()))
    rules = rules_text(policy) if policy else ""
    common = (folder / "common.cuh").read_text()
    return f"{defines}{common}\n{rules}\n{(folder / f'{name}.cu').read_text()}"


def refusal(configured: Configured, heads: int) -> str | None:
    """Why a policy runs on the CPU only, in a line, or None if the GPU can run it."""
    policy = configured.policy
    if policy.readmits:
        return f"policy {policy.name}: its keys are chosen afresh in every step; engine=numba"
    for name, value in configured.numbers(1).items():
        if isinstance(value, int) and abs(value) >= LARGEST:
            return f"policy {policy.name}: {name}={value}: the GPU takes numbers below {LARGEST}"
    if heads > 127:
        return f"policy {policy.name}: {heads} heads share a cache; the GPU takes up to 127"
    try:
        rules_text(policy)
    except Untranslatable as error:
        return str(error)
    return None


# --- rows on the device ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Rows first … stop - 1 of some units on the device; start … stop - 1 are new."""

    first: int
    start: int
    stop: int
    bits: Any
    places: Any


def _recorded(unit: Unit) -> bool:
    return "scores" in unit.trace.stores


def _row_bytes(unit: Unit, block: int, lag: int) -> int:
    """Device memory for a unit's rows."""
    n, heads = unit.n, len(unit.heads)
    if _recorded(unit):
        return heads * tri(n) * 2
    rows = min(n, block + lag)
    size = unit.keys().shape[2]
    return heads * rows * n * (2 + 4) + (heads + len(unit.kv)) * n * size * 4


def _rows(device: Device, units: Sequence[Unit], block: int, lag: int) -> Iterator[_Rows]:
    """The rows of some units of one trace, in blocks; a `scores` store in one."""
    n, heads = units[0].n, len(units[0].heads)
    if all(_recorded(unit) for unit in units):
        # kernels read whole pieces of 16 bytes
        bits = device.empty(len(units) * heads * tri(n) + 8, np.uint16)
        for i, unit in enumerate(units):
            device.put(next(iter(unit.blocks())).bits.reshape(-1), bits, i * heads * tri(n))
        places = np.arange(len(units) * heads, dtype=np.int64) * tri(n)
        yield _Rows(0, 0, n, bits, device.array(places))
        return
    queries = device.array(np.concatenate([u.queries() for u in units]).astype(np.float32))
    keys = device.array(np.concatenate([u.keys() for u in units]).astype(np.float32))
    group = heads // len(units[0].kv)
    kv = device.array(np.arange(len(units) * heads, dtype=np.int32) // group)
    size = units[0].keys().shape[2]
    side = 16 if device.threads >= 256 else 4
    threads, tile = max(16, side * side), 4 * side
    text = kernel_text("rows", {"T": threads, "SIDE": side, "TILE": tile})
    entries = {unit.layer: unit.trace.layer_entry(unit.layer) for unit in units}
    wrong = device.full(1, np.int32)
    total = len(units) * heads
    for start in range(0, n, block):
        stop, first = min(start + block, n), max(0, start - lag)
        each = tri(stop) - tri(first)
        bits = device.empty(total * each, np.uint16)
        places_host = np.arange(total, dtype=np.int64) * each - tri(first)
        places = device.array(places_host)
        room = device.empty(total * (stop - first) * stop, np.float32)
        # layers may differ in scale, softcap and window: one launch for each layer's units
        at = 0
        while at < len(units):
            layer = units[at].layer
            end = at
            while end < len(units) and units[end].layer == layer:
                end += 1
            entry, many = entries[layer], (end - at) * heads
            scale = np.float32(entry["scale"])
            cap = np.float32(entry.get("softcap") or 0.0)
            window = np.int32(entry.get("window") or 0)
            down, along = -(-(stop - first) // tile), -(-stop // tile)
            part = room[at * heads * (stop - first) * stop :]
            device.launch(
                text, "logits", many * down * along, side * side, 0,
                [queries[at * heads :], keys, kv[at * heads :], part, scale, cap, window,
                 *map(np.int32, (many, size, n, first, stop))],
            )  # fmt: skip
            grid = -(-many * (stop - first) * 16 // threads)
            device.launch(
                text, "softmax", grid, threads, 0,
                [part, bits, places[at * heads :], wrong, cap, window,
                 *map(np.int32, (many, first, stop))],
            )  # fmt: skip
            at = end
        if int(device.host(wrong)[0]):
            trace = units[0].trace
            raise UserError(f"trace {trace.name}: logits of rows {first}-{stop - 1} are not finite")
        yield _Rows(first, start, stop, bits, places)


def _masses(device: Device, rows: _Rows, heads: int) -> Any:
    """int64 [heads of all units, new rows] on the device: the whole mass of each row."""
    many = rows.stop - rows.start
    sums = device.empty(heads * many, np.int64)
    threads = min(256, device.threads)
    device.launch(
        kernel_text("masses", {"T": threads}), "masses",
        -(-heads * many * device.warp // threads), threads, 0,
        [rows.bits, rows.places, sums, *map(np.int32, (heads, rows.start, rows.stop))],
    )  # fmt: skip
    return sums


def _numbers(jobs: Sequence[Job]) -> tuple[np.ndarray, np.ndarray]:
    """The whole and the fractional parameters of jobs of one policy."""
    ints, floats = number_slots(jobs[0].configured.policy)
    return (
        np.array([[j.scalars[name] for name in ints] for j in jobs], np.int32).reshape(-1),
        np.array([[j.scalars[name] for name in floats] for j in jobs], np.float64).reshape(-1),
    )


def _inputs(jobs: Sequence[Job]) -> tuple[np.ndarray, np.ndarray]:
    """The jobs' inputs one after the other, equal ones once, and where each job's start."""
    policy = jobs[0].configured.policy
    if not policy.inputs:
        return np.zeros(1), np.zeros(len(jobs), np.int64)
    found: dict[bytes, int] = {}
    arrays: list[np.ndarray] = []
    at = []
    for job in jobs:
        values = np.stack([job.inputs[name] for name in policy.inputs])
        key = values.tobytes()
        if key not in found:
            found[key] = len(arrays) * values.size
            arrays.append(values)
        at.append(found[key])
    return np.concatenate(arrays).reshape(-1), np.array(at, np.int64)


# --- the direct kernel ----------------------------------------------------------------------------


class _Direct:
    """Jobs of one policy on their way through the rows."""

    def __init__(self, device: Device, jobs: Sequence[Job], unit_of: Sequence[int]):
        job = jobs[0]
        n, p, heads = job.unit.n, job.prompt_len, len(job.unit.heads)
        policy = job.configured.policy
        self._device, self._jobs = device, jobs
        self._threads = min(device.threads, 128)
        self._text = kernel_text("direct", {"T": self._threads}, policy)
        ints, floats = _numbers(jobs)
        inputs, inputs_at = _inputs(jobs)
        self._each = _direct_bytes(policy, n, heads)
        self._left = device.full((len(jobs), n), np.int32, n)
        self._kept = device.full((len(jobs), max(1, n - p)), np.int64)
        self._cells = device.full((len(jobs), 2), np.int32)
        self._given = [
            device.array(np.array(unit_of, np.int32)),
            device.array(np.array([j.budget for j in jobs], np.int32)),
            device.array(np.array([j.configured.scores == "cached" for j in jobs], np.int32)),
            device.array(np.array([j.configured.lag() for j in jobs], np.int32)),
            device.array(ints if ints.size else np.zeros(1, np.int32)),
            device.array(floats if floats.size else np.zeros(1)),
            device.array(inputs),
            device.array(inputs_at),
            self._left,
            self._kept,
            self._cells,
        ]
        self._scratch = device.empty(len(jobs) * self._each, np.uint8)

    def feed(self, rows: _Rows, masses: Any) -> None:
        job = self._jobs[0]
        self._device.launch(
            self._text, "direct", len(self._jobs), self._threads, 0,
            [rows.bits, rows.places, masses, *self._given, self._scratch, np.int64(self._each),
             *map(np.int32, (job.unit.n, job.prompt_len, len(job.unit.heads))),
             *map(np.int32, (rows.start, rows.stop))],
        )  # fmt: skip

    def outcomes(self) -> list[Outcome]:
        left, kept, cells = map(self._device.host, (self._left, self._kept, self._cells))
        found = []
        for i, job in enumerate(self._jobs):
            n, linger = job.unit.n, job.configured.policy.linger
            gone = left[i]
            if linger:
                scalars = {**job.scalars, "t": n - 1}
                last = linger(*[scalars[name] for name in arguments(linger)])
                late = np.minimum(n, np.maximum(gone, np.arange(n) + last)).astype(np.int32)
                gone = np.where(gone < n, late, n).astype(np.int32)
            found.append(Outcome(kept[i, : n - job.prompt_len], gone, int(cells[i, 1])))
        return found


def _direct_bytes(policy: Policy, n: int, heads: int) -> int:
    each = (len(policy.state) + 1) * n * 8 + 2 * heads * n * 8 + 2 * n * 4
    return (each + 15) // 16 * 16


def direct(
    jobs: Sequence[Job], device: Device | None = None, tick: Ticker | None = None
) -> list[tuple[Outcome, np.ndarray]]:
    """Replay jobs of one trace, each at its budget.

    Gives each job's outcome and int64 [n - p], the masses of its unit's decode rows. UserError for
    a policy that :func:`refusal` refuses.
    """
    _check(jobs)
    order = _by_unit(jobs)
    n, heads = jobs[0].unit.n, len(jobs[0].unit.heads)
    lag = max(job.configured.lag() for job in jobs)
    block = _block_rows(n)
    cost = {
        unit: _row_bytes(unit, block, lag)
        + sum(_direct_bytes(jobs[i].configured.policy, n, heads) + 20 * n for i in order[unit])
        for unit in order
    }

    def work(device: Device, units: list[Unit]) -> dict[int, tuple[Outcome, np.ndarray]]:
        kinds: dict[int, list[int]] = {}
        for unit in units:
            for i in order[unit]:
                kinds.setdefault(id(jobs[i].configured.policy), []).append(i)
        place = {unit: u for u, unit in enumerate(units)}
        runs = {
            policy: _Direct(device, [jobs[i] for i in mine], [place[jobs[i].unit] for i in mine])
            for policy, mine in kinds.items()
        }
        whole = np.zeros((len(units), n), np.int64)
        for rows in _rows(device, units, block, lag):
            masses = _masses(device, rows, len(units) * heads)
            for run in runs.values():
                run.feed(rows, masses)
            shape = (len(units), heads, rows.stop - rows.start)
            whole[:, rows.start : rows.stop] = device.host(masses).reshape(shape).sum(1)
            if tick:
                tick((rows.stop - rows.start) * sum(len(order[unit]) for unit in units))
        found = {}
        for policy, mine in kinds.items():
            for i, outcome in zip(mine, runs[policy].outcomes(), strict=True):
                found[i] = (outcome, whole[place[jobs[i].unit], jobs[i].prompt_len :])
        return found

    found = _spread(list(order), cost, work, device)
    return [found[i] for i in range(len(jobs))]


# --- the stack kernel -----------------------------------------------------------------------------


def _evicting(job: Job) -> np.ndarray:
    """uint8 [n]: the steps in which a rule evicts, asked about a huge cache and one token."""
    n, p, keep = job.unit.n, job.prompt_len, job.configured.policy.keep
    found = np.zeros(n, np.uint8)
    found[p - 1 :] = 1
    if keep:
        names = arguments(keep)
        known = {**job.scalars, "k": 1, "size": n + 1}
        for t in range(p - 1, n):
            known["t"] = t
            found[t] = keep(*[known[name] for name in names]) <= n
    return found


def _held(evicts: np.ndarray, p: int) -> np.ndarray:
    """int64 [n], budget 1 … n: most keys attended besides the own, by when a rule evicts."""
    n = len(evicts)
    k = np.arange(1, n + 1)
    held = np.zeros(n, np.int64)
    steps = np.arange(n)
    last = np.maximum.accumulate(np.where(evicts, steps, -1))
    stacked = np.concatenate([[0], last[:-1] + 1])[p:]
    pending = steps[p:] - stacked
    deepest = -1
    for many in np.unique(pending)[::-1]:
        depth = int(stacked[pending == many].max())
        if depth > deepest:
            held = np.maximum(held, np.minimum(k, depth) + many)
            deepest = depth
    return held


class _Stack:
    """Configurations of one policy on their way through the rows, all budgets at once."""

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        budgets: Sequence[int],
        together: int,
    ):
        job = jobs[0]
        self._n, self._p = job.unit.n, job.prompt_len
        n, heads, policy = self._n, len(job.unit.heads), job.configured.policy
        self._device, self._budgets = device, budgets
        timing = [_evicting(j).tobytes() for j in jobs]
        patterns = list(dict.fromkeys(timing))
        self._held = [_held(np.frombuffer(p_, np.uint8), self._p) for p_ in patterns]
        # A block's configurations share the unit and the timing; a short block repeats its last.
        alike: dict[tuple[int, int], list[int]] = {}
        for i, unit in enumerate(unit_of):
            alike.setdefault((unit, patterns.index(timing[i])), []).append(i)
        together = min(together, max(map(len, alike.values())))
        self._blocks: list[list[int]] = []
        units, which = [], []
        for (unit, pattern), mine in alike.items():
            for a in range(0, len(mine), together):
                self._blocks.append(mine[a : a + together])
                units.append(unit)
                which.append(pattern)
        filled = [b + [b[-1]] * (together - len(b)) for b in self._blocks]
        ordered = [jobs[i] for b in filled for i in b]
        ints, floats = _numbers(ordered)
        inputs, inputs_at = _inputs(ordered)

        shape = stack_shape(device, policy, n, together)
        self._threads, self._shared = shape["T"], shape.pop("bytes")
        self._text = kernel_text(
            "stack", {**shape, "C": together, "HEADS": heads, "EVENTS": int(bool(len(budgets)))},
            policy,
        )  # fmt: skip
        self._each = _stack_bytes(policy, n, together, shape["T"], shape["NS"])
        self._hits = device.full((len(filled), together, n + 1), np.int64)
        self._evicted = device.full((len(filled), together, max(1, len(budgets)), n), np.int32, n)
        following = np.searchsorted(np.asarray(budgets), np.arange(n + 2)).astype(np.int32)
        self._given = [
            device.array(np.array(units, np.int32)),
            device.array(np.array(which, np.int32)),
            device.array(np.frombuffer(b"".join(patterns), np.uint8)),
            device.array(ints if ints.size else np.zeros(1, np.int32)),
            device.array(floats if floats.size else np.zeros(1)),
            device.array(inputs),
            device.array(inputs_at),
            device.array(np.array([*budgets, 0], np.int32)),
            device.array(following),
            self._evicted,
            self._hits,
            device.empty(len(filled) * self._each, np.uint8),
            np.int64(self._each),
        ]
        self._which = which

    def feed(self, rows: _Rows) -> None:
        self._device.launch(
            self._text, "stack", len(self._blocks), self._threads, self._shared,
            [rows.bits, rows.places, *self._given,
             *map(np.int32, (len(self._budgets), self._n, self._p, rows.start, rows.stop))],
        )  # fmt: skip

    def curves(self) -> dict[int, tuple[Curve, int]]:
        hits, evicted = self._device.host(self._hits), self._device.host(self._evicted)
        found = {}
        for b, mine in enumerate(self._blocks):
            for c, i in enumerate(mine):
                mass = np.cumsum(hits[b, c])
                gone = evicted[b, c, : len(self._budgets)]
                found[i] = (Curve(mass[1:], self._held[self._which[b]], gone), int(mass[-1]))
        return found


def stack_shape(device: Device, policy: Policy, n: int, together: int) -> dict[str, int]:
    """The stack kernel's constants for a length, and its bytes of shared memory."""
    threads = device.threads
    while threads > 2 * device.warp and threads > max(128, n // 8):
        threads //= 2
    tokens = -(-n // threads)
    if tokens > 2:  # few variants, so that few are compiled
        tokens = -(-tokens // 4) * 4 if tokens <= 32 else -(-tokens // 16) * 16
    bytes_ = 8 * n + together * (8 * n + 4 * (n + 1))
    share = bytes_ <= device.shared // 2
    # Unrolled loops keep the state in registers; else it lies in local memory, which is cached.
    fields = max(1, len(policy.state))
    unroll = tokens if tokens * (2 * together * fields + 1) * threads <= 2**15 else 1
    return {
        "T": threads, "NS": tokens, "SHARED": int(share), "UNROLL": unroll,
        "bytes": bytes_ if share else 0,
    }  # fmt: skip


class _Lines:
    """Jobs whose rank is a score that rows add to, on the kernel that is written for them."""

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        budgets: Sequence[int],
        together: int,
    ):
        n, heads = jobs[0].unit.n, len(jobs[0].unit.heads)
        self._n, self._device = n, device
        self._held = _held(np.ones(n, np.uint8), jobs[0].prompt_len)
        decays = jobs[0].configured.policy.update is fade
        # A block's configurations share the unit and, where they can, the factor.
        alike: dict[int, list[int]] = {}
        for i, unit in enumerate(unit_of):
            alike.setdefault(unit, []).append(i)
        while not lines_shape(device, n, heads, together, together if decays else 1, decays):
            together = max(1, together // 2)
        together = min(together, max(map(len, alike.values())))
        self._blocks: list[list[int]] = []
        units, factors, factor_of = [], [], []
        for unit, mine in alike.items():
            if decays:
                mine.sort(key=lambda i: float(jobs[i].scalars["gamma"]))
            for a in range(0, len(mine), together):
                block = mine[a : a + together]
                gammas = [float(jobs[i].scalars["gamma"]) if decays else 1.0 for i in block]
                known = list(dict.fromkeys(gammas))
                self._blocks.append(block)
                units.append(unit)
                factors.append(known)
                factor_of.append([known.index(gamma) for gamma in gammas])
        most = max(map(len, factors))
        shape = lines_shape(device, n, heads, together, most, decays)
        assert shape is not None
        self._shared, self._threads = shape.pop("bytes"), shape["T"]
        sinks = any(int(job.scalars["sinks"]) for job in jobs)
        self._text = kernel_text(
            "lines", {**shape, "SINKS": int(sinks), "EVENTS": int(bool(len(budgets)))}
        )
        self._hits = device.full((len(self._blocks), together, n + 1), np.int64)
        self._evicted = device.full(
            (len(self._blocks), together, max(1, len(budgets)), n), np.int32, n
        )

        def filled(lists: list[list[Any]], width: int, value: Any, dtype: Any) -> Any:
            return device.array(
                np.array([[*one, *[value] * (width - len(one))] for one in lists], dtype)
            )

        def numbers(name: str) -> list[list[Any]]:
            return [[min(n, int(jobs[i].scalars[name])) for i in b] for b in self._blocks]

        self._given = [
            device.array(np.array(units, np.int32)),
            filled(numbers("recent"), together, -1, np.int32),
            filled(numbers("sinks"), together, 0, np.int32),
            filled(factor_of, together, 0, np.int32),
            filled(factors, most, 1.0, np.float64),
            device.array(np.array([*budgets, 0], np.int32)),
            device.array(np.searchsorted(budgets, np.arange(n + 2)).astype(np.int32)),
            self._evicted,
            self._hits,
            *map(np.int32, (len(budgets), n, jobs[0].prompt_len)),
        ]
        self._budgets = len(budgets)

    @staticmethod
    def fits(device: Device, job: Job) -> bool:
        """Whether the kernel knows this job's rule and has room for its scores."""
        policy = job.configured.policy
        return (
            policy.update in (accumulate, fade)
            and policy.rank is guarded_score
            and policy.init is None
            and len(policy.state) == 1
            and _recorded(job.unit)
            and bool(_evicting(job)[job.prompt_len - 1 :].all())
            and lines_shape(device, job.unit.n, len(job.unit.heads), 1, 1, policy.update is fade)
            is not None
        )

    def feed(self, rows: _Rows) -> None:
        self._device.launch(
            self._text, "lines", len(self._blocks), self._threads, self._shared,
            [rows.bits, rows.places, *self._given],
        )  # fmt: skip

    def curves(self) -> dict[int, tuple[Curve, int]]:
        hits, evicted = self._device.host(self._hits), self._device.host(self._evicted)
        found = {}
        for b, mine in enumerate(self._blocks):
            for c, i in enumerate(mine):
                mass = np.cumsum(hits[b, c])
                gone = evicted[b, c, : self._budgets]
                found[i] = (Curve(mass[1:], self._held, gone), int(mass[-1]))
        return found


def lines_shape(
    device: Device, n: int, heads: int, configurations: int, factors: int, decays: bool
) -> dict[str, int] | None:
    """The constants of the kernel `lines`, or None if a unit has no room in shared memory."""
    warps = 2
    while warps < device.threads // device.warp and warps * device.warp * 32 < n:
        warps *= 2
    warps = min(warps, device.threads // device.warp - configurations)
    if warps < 1:
        return None
    threads = (warps + configurations) * device.warp
    tokens = -(-n // (warps * device.warp))
    if tokens > 2:  # few variants, so that few are compiled
        tokens = -(-tokens // 4) * 4
    row = (2 * n + 14 + 15) // 16 * 16
    most = tokens * warps * device.warp
    need = 3 * heads * row + most * (5 + 2 * configurations + (8 * factors if decays else 0))
    if need > device.shared or tokens > 32 or heads * n >= 2**16:  # a score has 40 bits
        return None
    return {
        "T": threads,
        "C": configurations,
        "NS": tokens,
        "HEADS": heads,
        "ROW": row,
        "LINES": -(-n // device.warp**2),
        "S": factors,
        "DECAYS": int(decays),
        "BLOCKS": max(1, min((device.shared + 1024) // (need + 1024), 1344 // threads)),
        "bytes": need,
    }


def _stack_bytes(policy: Policy, n: int, together: int, threads: int, tokens: int) -> int:
    state = tokens * together * max(1, len(policy.state)) * threads * 8
    each = state + 8 * n + together * (8 * n + 4 * (n + 1)) + 16
    return (each + 15) // 16 * 16


#: Configurations of a unit that share the loading of its rows.
TOGETHER = 4


def curves(
    jobs: Sequence[Job],
    budgets: Sequence[int] = (),
    device: Device | None = None,
    tick: Ticker | None = None,
    together: int = TOGETHER,
) -> list[tuple[Curve, int]]:
    """Every budget of inclusive policies of one trace, one pass a job (theorem T7).

    ``job.budget`` plays no part; ``budgets`` (ascending) are those whose evictions are recorded. Up
    to ``together`` configurations of a policy share the loading of a unit's rows. Gives each job's
    :class:`~h2osim.engines.stack.Curve` and the mass of all its decode rows.
    """
    _check(jobs)
    order = _by_unit(jobs)
    n = jobs[0].unit.n
    block = _block_rows(n)
    outputs = (8 + 4 * max(1, len(budgets))) * (n + 1)
    cost = {
        unit: _row_bytes(unit, block, 0)
        + sum(
            outputs + _stack_bytes(jobs[i].configured.policy, n, 1, 1, n + 1024)
            for i in order[unit]
        )
        for unit in order
    }

    def work(device: Device, units: list[Unit]) -> dict[int, tuple[Curve, int]]:
        kinds: dict[tuple[type[_Lines] | type[_Stack], int], list[int]] = {}
        for unit in units:
            for i in order[unit]:
                kernel = _Lines if _Lines.fits(device, jobs[i]) else _Stack
                kinds.setdefault((kernel, id(jobs[i].configured.policy)), []).append(i)
        place = {unit: u for u, unit in enumerate(units)}
        runs = {
            (kernel, policy): kernel(
                device, [jobs[i] for i in mine], [place[jobs[i].unit] for i in mine], budgets,
                together,
            )
            for (kernel, policy), mine in kinds.items()
        }  # fmt: skip
        for rows in _rows(device, units, block, 0):
            for run in runs.values():
                run.feed(rows)
            if tick:
                tick((rows.stop - rows.start) * sum(len(order[unit]) for unit in units))
        found = {}
        for kind, mine in kinds.items():
            for i, result in runs[kind].curves().items():
                found[mine[i]] = result
        return found

    found = _spread(list(order), cost, work, device)
    return [found[i] for i in range(len(jobs))]


# --- chunks of units over devices -----------------------------------------------------------------


def _check(jobs: Sequence[Job]) -> None:
    for configured in {id(job.configured): job.configured for job in jobs}.values():
        why = refusal(configured, len(jobs[0].unit.heads))
        if why:
            raise UserError(why)
    if len({(job.unit.trace, job.prompt_len, len(job.unit.heads)) for job in jobs}) > 1:
        raise ValueError("jobs of one call share the trace, the prompt length and the head count")


def _by_unit(jobs: Sequence[Job]) -> dict[Unit, list[int]]:
    order: dict[Unit, list[int]] = {}
    for i, job in enumerate(jobs):
        order.setdefault(job.unit, []).append(i)
    return order


#: Entries of a unit's rows that are made at a time.
ROOM = 2**25


def _block_rows(n: int) -> int:
    """Rows of a `qk` trace that are made at a time."""
    return max(256, min(2048, ROOM // n))


#: Bytes of recorded rows that are worth a chunk of their own, so that copying overlaps computing.
PIECE = 2**29


def _spread(
    units: list[Unit],
    cost: dict[Unit, int],
    work: Callable[[Device, list[Unit]], dict[int, R]],
    device: Device | None,
) -> dict[int, R]:
    """Work through units in chunks that fit the memory of every device.

    A device has several lanes, each a thread that takes the next chunk when it is done with one:
    the rows of one chunk are copied while another is computed. Where rows are made on the device
    there is little to copy, and chunks are as large as they can be: few blocks take as long as
    many. A chunk that does not fit is halved.
    """
    present = [device] if device is not None else devices()
    workers = [(one, lane) for lane in range(present[0].lanes) for one in present]
    todo, lock = list(units), threading.Lock()
    total = sum(cost[unit] for unit in units)
    if _recorded(units[0]):
        piece = max(PIECE, total // (4 * len(workers)))
    else:
        piece = -(-total // len(present))
    found: dict[int, R] = {}
    active = {id(one): one.lanes for one in present}

    def take(mine: Device, most: int) -> tuple[list[Unit], bool]:
        """The next chunk, and whether other lanes of the device are at work; none left: leave."""
        room = min(piece, int(mine.free() * 0.8) // mine.lanes)
        with lock:
            chunk: list[Unit] = []
            while (
                todo
                and len(chunk) < most
                and (not chunk or sum(cost[u] for u in chunk) + cost[todo[0]] <= room)
            ):
                chunk.append(todo.pop(0))
            beside = active[id(mine)] > 1
            if not chunk:
                active[id(mine)] -= 1
            return chunk, beside

    def run(mine: Device, lane: int) -> None:
        mine.enter(lane)
        most = len(units)
        while True:
            chunk, beside = take(mine, most)
            if not chunk:
                return
            try:
                result = work(mine, chunk)
            except mine.exhausted:
                mine.release()
                if len(chunk) == 1 and not beside:
                    raise UserError(
                        f"{chunk[0].label}: out of device memory for one unit of "
                        f"{chunk[0].n} tokens; engine=numba runs it on the CPU"
                    ) from None
                most = max(1, len(chunk) // 2)
                with lock:
                    todo[:0] = chunk
                    if len(chunk) == 1 and active[id(mine)] > 1:
                        active[id(mine)] -= 1  # one lane fewer, and more room for the others
                        return
                continue
            with lock:
                found.update(result)

    if len(workers) == 1:
        run(*workers[0])
        return found
    with ThreadPoolExecutor(len(workers)) as pool:
        running = [pool.submit(run, *worker) for worker in workers]
        try:
            for done in running:
                done.result()
        finally:
            with lock:
                todo.clear()  # after an error or Ctrl-C the others stop at their next chunk
    return found
