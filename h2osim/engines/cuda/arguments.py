"""What kernels are told of jobs: parameters and inputs, and in which steps a rule evicts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from h2osim.engines.job import Job
from h2osim.engines.specialise import number_slots
from h2osim.policy import arguments


def job_numbers(jobs: Sequence[Job]) -> tuple[np.ndarray, np.ndarray]:
    """The whole and the fractional parameters of jobs of one policy."""
    ints, floats = number_slots(jobs[0].configured.policy)
    return (
        np.array([[j.scalars[name] for name in ints] for j in jobs], np.int32).reshape(-1),
        np.array([[j.scalars[name] for name in floats] for j in jobs], np.float64).reshape(-1),
    )


def job_inputs(jobs: Sequence[Job]) -> tuple[np.ndarray, np.ndarray]:
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


def evicting(job: Job) -> np.ndarray:
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


def held_keys(evicts: np.ndarray, p: int) -> np.ndarray:
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
