"""Saving an optimum so that anyone with the trace can check it (`h2osim.certify`)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from h2osim.optima.certifying import FORMAT, digest, trace_facts
from h2osim.support.atomic import replacing
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

if TYPE_CHECKING:
    import xarray


def save_certificate(result: xarray.Dataset, trace: Trace, path: str | os.PathLike[str]) -> Path:
    """Write the schedules and prices of an `optimum` result, and what they prove, to one file.

    A safetensors file (no code in it) with the tensors

    * ``evicted_at`` int32 and ``price`` int64 [layer, unit, budget, n]: the schedule, and λ_t in
      fixed point (multiples of 2^-24);
    * ``kept``, ``bound`` int64 [layer, unit, budget] and ``mass`` int64 [layer, unit]: the value of
      the schedule, D(λ), and all decode mass, in fixed point;
    * ``layers``, ``budgets`` int64, the latter [layer, unit, budget] where they differ by unit;

    and as metadata the format, the trace it speaks of, prompt length, sharing, and a sha256 over
    everything. Raises UserError when the result has no schedules, or is of another trace.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if "evicted_at" not in result or "price_fixed" not in result:
        raise UserError("certificate: the result has no schedules; ask optimum for schedules=True")
    if (result.attrs["trace"], result.attrs["n"]) != (trace.name, trace.n):
        raise UserError(
            f"certificate: the result is of trace {result.attrs['trace']} with {result.attrs['n']} "
            f"tokens, not of {trace.name} with {trace.n}"
        )
    tensors: dict[str, NDArray[Any]] = {
        "evicted_at": result["evicted_at"].values,
        "price": result["price_fixed"].values,
        "kept": result["kept"].values,
        "bound": result["bound"].values,
        "mass": result["mass"].values,
        "layers": result["layer"].values.astype(np.int64),
        "budgets": result["slots" if "slots" in result else "budget"].values.astype(np.int64),
    }
    facts = {
        "prompt_len": int(result.attrs["prompt_len"]),
        "share": str(result.attrs["share"]),
        "weights": str(result.attrs["weights"]),
        **trace_facts(trace, result["layer"].values.tolist()),
    }
    text = json.dumps(facts, sort_keys=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "facts": text, "sha256": digest(text, tensors)}
    target = Path(path)
    try:
        with replacing(target) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise UserError(f"certificate {target}: cannot be written: {error}") from None
    return target
