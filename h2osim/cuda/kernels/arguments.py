"""Kernel arguments of jobs: parameters, inputs, blocks, and the steps in which a rule evicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from h2osim.cuda.device import Device
from h2osim.engines.request import Job
from h2osim.engines.stack import most_attended
from h2osim.policies.arithmetic import accumulate, fade, guarded_score
from h2osim.policies.roles import ask
from h2osim.policies.to_numba import number_slots

T = TypeVar("T")
Kind = TypeVar("Kind", bound=Hashable)


def of_each(jobs: Iterable[Job], compute: Callable[[Job], T]) -> list[T]:
    """compute(job) for jobs of one trace, once for each configuration and budget.

    The value must not depend on the unit.
    """
    known: dict[tuple[int, int], T] = {}
    return [
        known[key]
        if (key := (id(job.configured), job.budget)) in known
        else known.setdefault(key, compute(job))
        for job in jobs
    ]


def job_arrays(device: Device, jobs: Sequence[Job]) -> list[Any]:
    """PARAMETERS of gpu/arguments.cuh: integer and float parameters, inputs and their indices."""
    ints, floats = number_slots(jobs[0].configured.policy)
    whole = of_each(jobs, lambda job: [job.scalars[name] for name in ints] or [0])
    parts = of_each(jobs, lambda job: [job.scalars[name] for name in floats] or [0.0])
    numbers = np.array(whole, np.int32), np.array(parts, np.float64)
    return [device.array(array.reshape(-1)) for array in (*numbers, *_inputs(jobs))]


def _inputs(jobs: Sequence[Job]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct inputs of the jobs, flat, and the index at which those of each job start."""
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
    """The greatest number of equal elements."""
    return max(Counter(kinds).values())


def in_blocks(kinds: Sequence[Kind], together: int) -> tuple[list[list[int]], list[Kind]]:
    """Blocks of up to ``together`` indices of one kind, and the kind of each block."""
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
    """The blocks, flat; the last element of a short block is repeated."""
    return [one for b in blocks for one in [*b, *[b[-1]] * (together - len(b))]]


def always_evicts(job: Job) -> bool:
    """Whether a policy evicts in every step from the last row of the prompt on."""
    return bool(evicting(job)[job.prompt_len - 1 :].all())


def evicting(job: Job) -> np.ndarray:
    """uint8 [n]: the steps in which a policy would shrink a cache of n + 1 tokens to budget 1."""
    n, p, rules = job.unit.n, job.prompt_len, job.configured.policy.rules()
    found = np.zeros(n, np.uint8)
    found[p - 1 :] = 1
    if "keep" in rules or job.configured.when != "always":
        known = {**job.scalars, "k": 1, "size": n + 1}
        for t in range(p - 1, n):
            found[t] = ask(rules, "keep", known | {"t": t}) <= n
    return found


def held_keys(evicts: np.ndarray, p: int) -> np.ndarray:
    """int64 [n]: for budgets 1 … n the most keys that a row attends besides its own token.

    ``evicts``: the steps in which the policy evicts. p: prompt length.
    """
    n = len(evicts)
    steps = np.arange(n)
    last = np.maximum.accumulate(np.where(evicts, steps, -1))
    stacked = np.concatenate([[0], last[:-1] + 1])[p:]
    return most_attended(n, stacked, steps[p:] - stacked)


def window(job: Job) -> int:
    """How many of the newest tokens are protected whatever their state; 0 if that is not known."""
    if job.configured.policy.rank is not guarded_score:
        return 0
    return min(job.unit.n, int(job.scalars["recent"]))


def sinks(job: Job) -> int:
    """How many of the oldest tokens a guarded score protects."""
    return min(job.unit.n, int(job.scalars["sinks"]))


def is_plain(job: Job) -> bool:
    """Whether the rank of tokens outside the window is their only state, and never negative."""
    policy = job.configured.policy
    return (
        policy.rank is guarded_score
        and policy.update in (accumulate, fade)
        and policy.init is None
        and sinks(job) == 0
    )
