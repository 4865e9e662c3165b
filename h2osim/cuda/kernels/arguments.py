"""What kernels are told of jobs: parameters and inputs, blocks, in which steps a rule evicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from h2osim.cuda.device import Device
from h2osim.engines.request import Job
from h2osim.policies.arithmetic import accumulate, fade, guarded_score
from h2osim.policies.roles import arguments
from h2osim.policies.to_numba import number_slots

T = TypeVar("T")
Kind = TypeVar("Kind", bound=Hashable)


def of_each(jobs: Iterable[Job], tell: Callable[[Job], T]) -> list[T]:
    """What each of one trace's jobs tells of its parameters; asked once, whatever the unit."""
    known: dict[tuple[int, int], T] = {}
    return [
        known[key]
        if (key := (id(job.configured), job.budget)) in known
        else known.setdefault(key, tell(job))
        for job in jobs
    ]


def job_arrays(device: Device, jobs: Sequence[Job]) -> list[Any]:
    """On the device: jobs' whole and fractional parameters, inputs, and where each job's start."""
    ints, floats = number_slots(jobs[0].configured.policy)
    whole = of_each(jobs, lambda job: [job.scalars[name] for name in ints] or [0])
    parts = of_each(jobs, lambda job: [job.scalars[name] for name in floats] or [0.0])
    numbers = np.array(whole, np.int32), np.array(parts, np.float64)
    return [device.array(array.reshape(-1)) for array in (*numbers, *_inputs(jobs))]


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


def most_alike(kinds: Iterable[Hashable]) -> int:
    """How many are of the kind of which there are most."""
    return max(Counter(kinds).values())


def in_blocks(kinds: Sequence[Kind], together: int) -> tuple[list[list[int]], list[Kind]]:
    """Indices of the same kind in blocks of up to ``together``, and each block's kind."""
    alike: dict[Kind, list[int]] = {}
    for i, kind in enumerate(kinds):
        alike.setdefault(kind, []).append(i)
    blocks = [
        (mine[a : a + together], kind)
        for kind, mine in alike.items()
        for a in range(0, len(mine), together)
    ]
    return [block for block, _ in blocks], [kind for _, kind in blocks]


def filled(blocks: Sequence[Sequence[T]], together: int) -> list[T]:
    """All blocks one after the other; a short one repeats its last."""
    return [one for b in blocks for one in [*b, *[b[-1]] * (together - len(b))]]


def always_evicts(job: Job) -> bool:
    """Whether a rule evicts in every step from the prompt's last row on."""
    return bool(evicting(job)[job.prompt_len - 1 :].all())


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


def window(job: Job) -> int:
    """The newest tokens that a rule protects whatever their state, where that is known."""
    if job.configured.policy.rank is not guarded_score:
        return 0
    return min(job.unit.n, int(job.scalars["recent"]))


def sinks(job: Job) -> int:
    """The oldest tokens that a guarded score protects."""
    return min(job.unit.n, int(job.scalars["sinks"]))


def is_plain(job: Job) -> bool:
    """Whether below the window the rank is the only field of state, and never negative."""
    policy = job.configured.policy
    return (
        policy.rank is guarded_score
        and policy.update in (accumulate, fade)
        and policy.init is None
        and sinks(job) == 0
    )
