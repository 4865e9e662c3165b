"""A device for the CUDA engine without a GPU: the kernels' text compiled as C++ by g++.

See `cuda_shim.h`. The engine's own host code runs unchanged; arrays are NumPy arrays.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
HEADER = Path(__file__).with_name("cuda_shim.h")
COMPILER = shutil.which("g++") or shutil.which("clang++")
KERNELS = (
    "stack", "depths", "direct", "masses", "logits", "softmax", "price_rows",
    "price_step", "token_values", "make_schedule", "outputs", "depth_errors", "budget_errors",
    "project_values", "project_outputs", "depth_residuals", "budget_residuals",
)  # fmt: skip


class Shim:
    """Blocks of 16 threads at most, in warps of 4, on one CPU thread."""

    warp = 4
    threads = 16
    lanes = 1
    exhausted: type[BaseException] = MemoryError

    def __init__(self, order: int = 0, shared: int = 1 << 20, memory: int = 1 << 40):
        self.order, self.shared, self._memory = order, shared, memory
        self.copying = threading.Lock()

    def enter(self, lane: int) -> None:
        pass

    def array(self, values: Any) -> np.ndarray:
        return np.array(values, order="C")

    def put(self, values: np.ndarray, target: np.ndarray, start: int) -> None:
        target[start : start + len(values)] = values

    def each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        for item in items:
            work(item)

    def full(self, shape: Any, dtype: Any, value: int = 0) -> np.ndarray:
        return np.full(shape, value, dtype)

    def empty(self, size: int, dtype: Any) -> np.ndarray:
        if size * np.dtype(dtype).itemsize > self._memory:
            raise MemoryError
        return np.frombuffer(bytearray(b"\xa5") * (size * np.dtype(dtype).itemsize), dtype)

    def host(self, array: np.ndarray) -> np.ndarray:
        return array.copy()

    def running_sums(self, array: np.ndarray) -> np.ndarray:
        return np.cumsum(array, axis=-1)

    def free(self) -> int:
        return 1 << 40

    def release(self) -> None:
        pass

    def launch(
        self, text: str, name: str, grid: int, threads: int, shared: int, args: Sequence[Any]
    ) -> None:
        assert shared <= self.shared
        assert threads % self.warp == 0
        pointers = (ctypes.c_void_p * len(args))()
        held: list[Any] = []
        for i, arg in enumerate(args):
            if isinstance(arg, np.ndarray):
                assert arg.flags.c_contiguous
                held.append(ctypes.c_void_p(arg.ctypes.data))
                pointers[i] = ctypes.cast(ctypes.pointer(held[-1]), ctypes.c_void_p)
            else:
                held.append(np.array([arg]))
                pointers[i] = held[-1].ctypes.data
        beyond = library(text)[f"launch_{name}"](grid, threads, shared, pointers, self.order)
        assert beyond == 0, f"{name} writes beyond the {shared} bytes of shared memory it asked for"


@cache
def library(text: str) -> ctypes.CDLL:
    """The text as a shared library, kept in the temporary folder under its hash."""
    assert COMPILER, "no C++ compiler"
    launchers = "".join(
        f'extern "C" int launch_{name}(int grid, int threads, int shared, void **args, int order) '
        f"{{ return shim::launch({name}, grid, threads, shared, args, order); }}\n"
        for name in KERNELS
        if f" {name}(\n" in text
    )
    whole = f"{HEADER.read_text('utf-8')}\n{text}\n{launchers}"
    folder = Path(tempfile.gettempdir()) / "h2osim-shim"
    folder.mkdir(exist_ok=True)
    target = folder / (hashlib.sha256(whole.encode()).hexdigest()[:24] + ".so")
    if not target.exists():
        source = target.with_suffix(f".{os.getpid()}.cpp")
        source.write_text(whole)
        partial = target.with_suffix(f".{os.getpid()}.partial")
        command = [COMPILER, "-O1", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
        done = subprocess.run(
            [*command, "-o", str(partial), str(source)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[:4000]
        os.replace(partial, target)
        source.unlink()
    return ctypes.CDLL(str(target))
