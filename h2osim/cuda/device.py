"""Devices that run kernels, and the text of a kernel.

:class:`Gpu` runs kernels through CuPy, which no other module of the engine imports. Tests implement
:class:`Device` on the CPU and run the same text under the same host code.
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

#: Threads that copy rows to pinned memory for a GPU; one is slower than the bus.
COPIERS = 4
#: Bytes of a pinned buffer; each of these threads has two.
PINNED = 2**22


class Device(Protocol):
    """Runs kernels and holds arrays; ``host`` copies an array back."""

    warp: int  # threads of a warp
    threads: int  # most threads of a block
    shared: int  # bytes of shared memory that a block may ask for
    exhausted: type[BaseException]  # the exception when memory runs out
    lanes: int  # host threads that use it at once, one copying while another computes
    copying: threading.Lock  # held by the lane that copies rows

    def enter(self, lane: int) -> None:
        """Assign the calling thread to a lane."""

    def array(self, values: Any) -> Any:
        """A copy of values on the device."""

    def put(self, values: np.ndarray, target: Any, start: int) -> None:
        """Copy values to a flat array of the device, from index `start` on."""

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        """Call `work`, which may only :meth:`put`, for each item, in any order."""

    def full(self, shape: Any, dtype: Any, value: int = 0) -> Any:
        """A filled array on the device."""

    def empty(self, size: int, dtype: Any) -> Any:
        """An array of unspecified contents on the device."""

    def host(self, array: Any) -> np.ndarray:
        """A copy on the host."""

    def running_sums(self, array: Any) -> Any:
        """Cumulative sums along the last axis, on the device."""

    def free(self) -> int:
        """Bytes of device memory that can be allocated now."""

    def release(self) -> None:
        """Free memory that is held but not used."""

    def launch(
        self, text: str, name: str, grid: int, threads: int, shared: int, args: Sequence[Any]
    ) -> None:
        """Run kernel `name` of a text; ``args``: arrays of the device and NumPy scalars."""


class Gpu:
    """One NVIDIA GPU through CuPy; each lane has a stream."""

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
        """Assign the calling thread to the stream of a lane."""
        self._thread.stream = self._streams[lane]

    @contextmanager
    def _here(self) -> Iterator[None]:
        stream = getattr(self._thread, "stream", None)
        with self._cupy.cuda.Device(self._index), stream or nullcontext():
            yield

    def array(self, values: Any) -> Any:
        """A copy of values on the device."""
        values = np.ascontiguousarray(values)
        with self._here():
            target = self._cupy.empty(values.shape, values.dtype)
            # asarray would allocate pinned memory while a stream is busy, which waits for it
            target.set(values)
            return target

    def put(self, values: np.ndarray, target: Any, start: int) -> None:
        """Copy values to a flat array of the device through this thread's pinned buffers."""
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
        """Call `work` for each item, in several threads, on the calling thread's stream."""
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
        """A copy on the host, after all kernels launched on this stream have ended."""
        with self._here():
            # a copy to pageable memory that waits for kernels would block the other lanes' copies
            self._cupy.cuda.get_current_stream().synchronize()
            return np.asarray(self._cupy.asnumpy(array))

    def running_sums(self, array: Any) -> Any:
        """Cumulative sums along the last axis, on the device."""
        with self._here():
            return self._cupy.cumsum(array, axis=-1)

    def free(self) -> int:
        """Bytes of device memory that can be allocated now."""
        with self._here():
            pool = self._cupy.get_default_memory_pool()
            return int(self._cupy.cuda.runtime.memGetInfo()[0] + pool.free_bytes())

    def release(self) -> None:
        """Free the memory that CuPy holds but does not use."""
        with self._here():
            self._cupy.get_default_memory_pool().free_all_blocks()

    def kernel(self, text: str, name: str) -> Any:
        """A compiled kernel; CuPy caches compiled texts on disk."""
        key = (text, name)
        with self._compiling:
            if key not in self._kernels:
                module = self._cupy.RawModule(code=text, options=OPTIONS)
                self._kernels[key] = module.get_function(name)
        return self._kernels[key]

    def launch(
        self, text: str, name: str, grid: int, threads: int, shared: int, args: Sequence[Any]
    ) -> None:
        """Run kernel `name` of a text; ``args``: arrays of the device and NumPy scalars."""
        with self._here():
            kernel = self.kernel(text, name)
            if shared > 48 * 1024:
                kernel.max_dynamic_shared_size_bytes = shared
            kernel((grid,), (threads,), tuple(args), shared_mem=shared)


class _Pinned:
    """A pinned host buffer; the event ``read`` is recorded after each copy from it."""

    def __init__(self, cupy: Any):
        self.bytes = np.frombuffer(cupy.cuda.alloc_pinned_memory(PINNED), np.uint8, PINNED)
        self.read = cupy.cuda.Event(disable_timing=True)


def blocks_beside(device: Device, shared: int) -> int:
    """Blocks of so many bytes of shared memory on a multiprocessor; each reserves 1 KiB more."""
    return (device.shared + 1024) // (shared + 1024)


#: Compiler options. Without fused multiply-adds results have the roundings of Python's.
OPTIONS = ("--fmad=false", "-std=c++17")


def _cupy() -> Any:
    """CuPy; UserError if it or a GPU is missing."""
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

    The run-time compiler has no include path, so each ``#include`` is replaced by the file.
    """
    folder = bundled.gpu()
    defines = "".join(f"#define {key} {value}\n" for key, value in sorted(constants.items()))
    rules = rules_text(policy) if policy else ""
    common = (folder / "common.cuh").read_text(encoding="utf-8")
    kernel = re.sub(
        r'^#include "(\w+\.cuh)"$',
        lambda found: (folder / found[1]).read_text(encoding="utf-8"),
        (folder / f"{name}.cu").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    return f"{defines}{common}\n{rules}\n{kernel}"
