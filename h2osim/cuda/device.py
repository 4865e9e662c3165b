"""Where kernels run, and their texts.

A :class:`Device` runs kernels: :class:`Gpu` does through CuPy, which is imported here and nowhere
else in the engine. Tests run the same texts, and the rest of the engine unchanged, on the CPU.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import cycle
from typing import Any, Protocol, TypeVar

import numpy as np

from h2osim.policies.declaration import Policy
from h2osim.policies.to_cuda import rules_text
from h2osim.support import bundled
from h2osim.support.errors import UserError

T = TypeVar("T")

#: Threads of a GPU that copy rows to pinned memory: one does not keep up with the GPU.
COPIERS = 4
#: Bytes of pinned memory that such a thread fills at a time; it has two of these.
PINNED = 2**22


class Device(Protocol):
    """Where kernels run. Arrays are the device's own; ``host`` copies one back."""

    warp: int
    threads: int  # most threads of a block
    shared: int  # bytes of shared memory that a block may ask for
    exhausted: type[BaseException]  # what running out of memory raises
    lanes: int  # threads that may use it at once, one copying while another computes
    copying: threading.Lock  # of the lane that copies rows

    def enter(self, lane: int) -> None:
        """From now on this thread works in that lane."""

    def array(self, values: Any) -> Any:
        """A copy on the device."""

    def put(self, values: np.ndarray, target: Any, start: int) -> None:
        """Copy values into a flat array of the device."""

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Do some work, which calls only :meth:`put`, for each of some items; in any order."""

    def full(self, shape: Any, dtype: Any, value: int = 0) -> Any:
        """A filled array on the device."""

    def empty(self, size: int, dtype: Any) -> Any:
        """An array of unspecified contents on the device."""

    def host(self, array: Any) -> np.ndarray:
        """A copy on the host."""

    def running_sums(self, array: Any) -> Any:
        """On the device: instead of every number the sum of those up to it, along the last axis."""

    def free(self) -> int:
        """Bytes that may be asked for now."""

    def release(self) -> None:
        """Give back what is held but not used."""

    def launch(
        self, text: str, name: str, grid: int, threads: int, shared: int, args: Sequence[Any]
    ) -> None:
        """Run a kernel of a text; ``args`` are arrays of the device and NumPy scalars."""


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
        self.copying = threading.Lock()
        self._copiers = ThreadPoolExecutor(COPIERS)

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
        values = np.ascontiguousarray(values)
        with self._here():
            target = self._cupy.empty(values.shape, values.dtype)
            # not asarray, whose pinned memory is asked for anew while a stream is busy
            target.set(values)
            return target

    def put(self, values: np.ndarray, target: Any, start: int) -> None:
        """Copy values into a flat array of the device, through pinned memory of this thread's."""
        with self._here():
            stream = self._cupy.cuda.get_current_stream()
            if not hasattr(self._thread, "pinned"):
                self._thread.pinned = cycle([_Pinned(self._cupy), _Pinned(self._cupy)])
            step = PINNED // values.itemsize
            for at in range(0, len(values), step):
                part = values[at : at + step]
                pinned = next(self._thread.pinned)
                pinned.read.synchronize()
                there = pinned.bytes[: part.nbytes].view(part.dtype)
                there[:] = part
                target[start + at : start + at + len(part)].set(there, stream=stream)
                pinned.read.record(stream)

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Do some work for each of some items, on this thread's stream, by several threads."""
        stream = getattr(self._thread, "stream", None)

        def there(item: T) -> None:
            self._thread.stream = stream
            work(item)

        list(self._copiers.map(there, items))

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
            # a copy to ordinary memory that waits for kernels keeps the other lanes' copies waiting
            self._cupy.cuda.get_current_stream().synchronize()
            return np.asarray(self._cupy.asnumpy(array))

    def running_sums(self, array: Any) -> Any:
        """On the device: instead of every number the sum of those up to it, along the last axis."""
        with self._here():
            return self._cupy.cumsum(array, axis=-1)

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


class _Pinned:
    """Memory that the GPU reads without the CPU; ``read``: it has read what it was told to."""

    def __init__(self, cupy: Any):
        self.bytes = np.frombuffer(cupy.cuda.alloc_pinned_memory(PINNED), np.uint8, PINNED)
        self.read = cupy.cuda.Event(disable_timing=True)


def blocks_beside(device: Device, shared: int) -> int:
    """How many blocks a multiprocessor has room for; each costs a KiB more than it asks for."""
    return (device.shared + 1024) // (shared + 1024)


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


def kernel_text(name: str, constants: dict[str, int], policy: Policy | None = None) -> str:
    """CUDA text of a kernel of gpu/: constants, common.cuh, a policy's rules, the kernel.

    An ``#include`` of a file of the folder is replaced by the file: compilers at run time know no
    folders.
    """
    folder = bundled.gpu()
    defines = "".join(f"#define {key} {value}\n" for key, value in sorted(constants.items()))
    rules = rules_text(policy) if policy else ""
    common = (folder / "common.cuh").read_text()
    kernel = re.sub(
        r'^#include "(\w+\.cuh)"$',
        lambda found: (folder / found[1]).read_text(),
        (folder / f"{name}.cu").read_text(),
        flags=re.MULTILINE,
    )
    return f"{defines}{common}\n{rules}\n{kernel}"
