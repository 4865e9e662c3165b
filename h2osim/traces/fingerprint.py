"""Digests that say which trace a result came from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from h2osim.traces.trace import Trace

_MEMORY: WeakKeyDictionary[Trace, str] = WeakKeyDictionary()


def trace_sha256(trace: Trace) -> str:
    """The sha256 of a trace's trace.json, which holds that of each layer's file.

    Of a trace in memory: a sha256 over the digests of its layers, computed once.
    """
    if trace.path is not None:
        return hashlib.sha256((trace.path / "trace.json").read_bytes()).hexdigest()
    if trace not in _MEMORY:
        layers = "".join(f"{layer} {layer_sha256(trace, layer)};" for layer in trace.layers)
        _MEMORY[trace] = hashlib.sha256(layers.encode()).hexdigest()
    return _MEMORY[trace]


def layer_sha256(trace: Trace, layer: int) -> str:
    """A sha256 over the tensors of a layer: names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(trace.tensors(layer)):
        tensor = trace.tensor(layer, name)
        total.update(f"{name} {tensor.dtype} {tensor.shape};".encode())
        total.update(np.ascontiguousarray(tensor).data)
    return total.hexdigest()
