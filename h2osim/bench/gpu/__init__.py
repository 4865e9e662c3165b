"""Measures the CUDA engine on the first GPU, after checking its results against the CPU.

``h2osim bench gpu``, or ``python -m h2osim.bench.gpu``. Scores are random unless a line says
otherwise: softmax of independent normal logits, rounded to float16, made on the device. GPU times
are medians of CUDA events after a warm-up; CPU times are processor seconds of one core. Where
PyTorch is installed, it is a baseline.
"""

from __future__ import annotations

from h2osim import cuda
from h2osim.bench import Measurement
from h2osim.bench.gpu import bounds, curves, direct, queries_and_keys, sweeps, tools


def measure() -> list[Measurement]:
    """Every measurement, on the first GPU."""
    device = cuda.devices()[0]
    copy = tools.copy_bandwidth(device)
    lines = [Measurement("device-to-device copy, bytes read and written", copy / 1e9, "GB/s")]
    for n in (2048, 4096):
        lines += curves.accumulated(device, n, copy)
    lines += curves.several_values(device, 2048)
    lines += direct.cached_scores(device, 2048)
    lines += sweeps.sweeps(device, 2048)
    lines += curves.recorded_text(device)
    lines += bounds.bounds(device, 2048, copy)
    lines += queries_and_keys.long_text(device)
    return lines
