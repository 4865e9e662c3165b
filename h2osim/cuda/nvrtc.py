"""NVIDIA's run-time compiler, from its wheel or the system: it tells whether CUDA text compiles,
without a GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

from h2osim.cuda.device import OPTIONS


@cache
def library() -> ctypes.CDLL | None:
    """The compiler; None where it is not installed."""
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


def errors(text: str, architecture: str = "90") -> str:
    """What the compiler, which must be there, says against a text; empty if it is content."""
    compiler = library()
    assert compiler is not None
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    compiler.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"k.cu", 0, None, None)
    options = [f"--gpu-architecture=sm_{architecture}", *OPTIONS]
    given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    failed = compiler.nvrtcCompileProgram(program, len(options), given)
    compiler.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    compiler.nvrtcGetProgramLog(program, log)
    compiler.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode() if failed else ""
