"""Replays jobs on devices: each at its budget, or inclusive policies at every budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

import numpy as np

from h2osim.cuda.chunks import spread
from h2osim.cuda.device import Device
from h2osim.cuda.kernels.arguments import of_each
from h2osim.cuda.kernels.depths import Depths
from h2osim.cuda.kernels.direct import Direct, direct_bytes
from h2osim.cuda.kernels.errors import error_bytes, read_in_parts, value_size
from h2osim.cuda.kernels.residuals import outputs_of
from h2osim.cuda.kernels.stack import Stack, stack_bytes
from h2osim.cuda.rows import block_rows, load_rows, row_bytes, row_masses
from h2osim.engines.direct import DirectRun
from h2osim.engines.request import Job
from h2osim.engines.results import Curve, Outcome
from h2osim.engines.stack import StackRun
from h2osim.policies.declaration import Configured
from h2osim.policies.expressions import LARGEST, Untranslatable
from h2osim.policies.to_cuda import rules_text
from h2osim.support.errors import UserError
from h2osim.traces.unit import Unit

Ticker = Callable[[int], None]

#: By how much chunks are larger where errors are wanted.
LARGER = 8


def refusal(configured: Configured, heads: int) -> str | None:
    """One line that says why the GPU cannot run a policy, or None if it can."""
    policy = configured.policy
    if policy.readmits:
        return f"policy {policy.name}: its keys are chosen afresh in every step; engine=numba"
    for name, value in configured.numbers(1).items():
        if isinstance(value, int) and abs(value) >= LARGEST:
            return f"policy {policy.name}: {name}={value}: the GPU takes numbers below {LARGEST}"
    if heads > 127:
        return f"policy {policy.name}: {heads} heads share a cache; the GPU takes up to 127"
    try:
        rules_text(policy)
    except Untranslatable as error:
        return str(error)
    return None


def direct(
    jobs: Sequence[Job],
    device: Device | None = None,
    tick: Ticker | None = None,
    errors: Collection[str] = (),
) -> list[tuple[Outcome, np.ndarray]]:
    """Replay jobs of one trace, each at its budget.

    ``errors``: variables of :mod:`h2osim.engines.errors` that are wanted too. Returns for each job
    its outcome and int64 [n - p], the sums of its unit's decode rows in 2^-24. UserError for a
    policy that :func:`refusal` names.
    """
    _check(jobs)
    order = _by_unit(jobs)
    n, heads = jobs[0].unit.n, len(jobs[0].unit.heads)
    size = value_size(order, errors)
    lag = max(job.configured.lag() for job in jobs)
    block = block_rows(n)
    cost = {
        unit: row_bytes(unit, block, lag)
        + sum(direct_bytes(jobs[i].configured.policy, n, heads) + 20 * n for i in order[unit])
        + (error_bytes(unit, size, len(order[unit]), False, errors) if errors else 0)
        for unit in order
    }

    def work(device: Device, units: list[Unit]) -> dict[int, tuple[Outcome, np.ndarray]]:
        kinds: dict[int, list[int]] = {}
        for unit in units:
            for i in order[unit]:
                kinds.setdefault(id(jobs[i].configured.policy), []).append(i)
        index = {unit: u for u, unit in enumerate(units)}
        outputs = None
        if errors:
            outputs = outputs_of(device, units, jobs[0].prompt_len, errors, size, len(jobs))
        runs = {
            policy: Direct(
                device, [jobs[i] for i in mine], [index[jobs[i].unit] for i in mine], outputs
            )
            for policy, mine in kinds.items()
        }
        whole = np.zeros((len(units), n), np.int64)
        for rows in read_in_parts(load_rows(device, units, block, lag), outputs):
            masses = row_masses(device, rows, len(units) * heads)
            for run in runs.values():
                run.feed(rows, masses)
            shape = (len(units), heads, rows.stop - rows.start)
            whole[:, rows.start : rows.stop] = device.host(masses).reshape(shape).sum(1)
            if tick:
                tick((rows.stop - rows.start) * sum(len(order[unit]) for unit in units))
        found = {}
        for policy, mine in kinds.items():
            for i, outcome in zip(mine, runs[policy].outcomes(), strict=True):
                if outcome is None:
                    raise _no_rank(DirectRun(jobs[i]), jobs[i])
                found[i] = (outcome, whole[index[jobs[i].unit], jobs[i].prompt_len :])
        return found

    found = spread(list(order), cost, work, device, LARGER if errors else 1)
    return [found[i] for i in range(len(jobs))]


#: The kernels for every budget in one pass, the fastest first; the last one runs any inclusive
#: policy. A kernel goes with its line here, its module of h2osim.cuda.kernels and its .cu file.
Kernel: TypeAlias = type[Depths] | type[Stack]
KERNELS: tuple[Kernel, ...] = (Depths, Stack)


def curves(
    jobs: Sequence[Job],
    budgets: Sequence[int] = (),
    device: Device | None = None,
    tick: Ticker | None = None,
    together: int | None = None,
    errors: Collection[str] = (),
) -> list[tuple[Curve, int]]:
    """Replay inclusive policies (proofs/14-inclusion.md) at every budget, one pass for each job.

    ``job.budget`` is ignored. Evictions are recorded at ``budgets`` (ascending). A thread block
    replays up to ``together`` configurations of a policy on one unit, so that they share the copies
    of its rows (None: the kernel chooses). ``errors``: variables of :mod:`h2osim.engines.errors`
    that are wanted too. Returns for each job its curve and the sum of all its decode rows in 2^-24.
    """
    _check(jobs)
    order = _by_unit(jobs)
    n = jobs[0].unit.n
    size = value_size(order, errors)
    block = block_rows(n)
    results = (8 + 4 * len(budgets)) * (n + 1)
    each = of_each(jobs, lambda job: stack_bytes(job.configured.policy, n, 1, 1, n + 1024))
    cost = {
        unit: row_bytes(unit, block, 0)
        + sum(results + each[i] for i in order[unit])
        + (error_bytes(unit, size, len(order[unit]), True, errors) if errors else 0)
        for unit in order
    }

    # the choice of a kernel is the same for all units of a trace
    chosen: dict[tuple[int, ...], list[tuple[Kernel, list[int]]]] = {}

    def work(device: Device, units: list[Unit]) -> dict[int, tuple[Curve, int]]:
        kinds: dict[tuple[Kernel, int], list[int]] = {}
        for unit in units:
            alike: dict[int, list[int]] = {}
            for i in order[unit]:
                alike.setdefault(id(jobs[i].configured.policy), []).append(i)
            for policy, ids in alike.items():
                key = (id(device), *(id(jobs[i].configured) for i in ids))
                if key not in chosen:
                    kernels = (Stack,) if errors else KERNELS
                    chosen[key] = choose(device, [jobs[i] for i in ids], kernels)
                for kernel, some in chosen[key]:
                    kinds.setdefault((kernel, policy), []).extend(ids[one] for one in some)
        index = {unit: u for u, unit in enumerate(units)}
        outputs, more = None, {}
        if errors:
            outputs = outputs_of(device, units, jobs[0].prompt_len, errors, size, len(jobs))
            more = {"outputs": outputs}
        runs = {
            (kernel, policy): kernel(
                device,
                [jobs[i] for i in ids],
                [index[jobs[i].unit] for i in ids],
                budgets,
                together,
                **more,
            )
            for (kernel, policy), ids in kinds.items()
        }
        for rows in read_in_parts(load_rows(device, units, block, 0), outputs):
            for run in runs.values():
                run.feed(rows)
            if tick:
                tick((rows.stop - rows.start) * sum(len(order[unit]) for unit in units))
        found = {}
        for kind, ids in kinds.items():
            for i, result in runs[kind].curves().items():
                if result[1] < 0:  # the kernel's mark
                    raise _no_rank(StackRun(jobs[ids[i]]), jobs[ids[i]])
                found[ids[i]] = result
        return found

    found = spread(list(order), cost, work, device, LARGER if errors else 1)
    return [found[i] for i in range(len(jobs))]


def _no_rank(run: DirectRun | StackRun, job: Job) -> UserError:
    """What is said of a rank that is NaN: the CPU's engine finds the step."""
    try:
        for block in job.unit.blocks():
            run.feed(block)
    except UserError as error:
        return error
    return UserError(f"policy {job.configured.policy.name}: a rank is NaN on the GPU alone")


def choose(
    device: Device, jobs: Sequence[Job], kernels: Sequence[Kernel] = KERNELS
) -> list[tuple[Kernel, list[int]]]:
    """The first kernel that fits each job of a policy, with the indices of its jobs."""
    found: dict[Kernel, list[int]] = {}
    for i, job in enumerate(jobs):
        found.setdefault(next(k for k in kernels if k.fits(device, job)), []).append(i)
    return list(found.items())


def _check(jobs: Sequence[Job]) -> None:
    for configured in {id(job.configured): job.configured for job in jobs}.values():
        why = refusal(configured, len(jobs[0].unit.heads))
        if why:
            raise UserError(why)
    if len({(job.unit.trace, job.prompt_len, len(job.unit.heads)) for job in jobs}) > 1:
        raise ValueError("jobs of one call share the trace, the prompt length and the head count")


def _by_unit(jobs: Sequence[Job]) -> dict[Unit, list[int]]:
    order: dict[Unit, list[int]] = {}
    for i, job in enumerate(jobs):
        order.setdefault(job.unit, []).append(i)
    return order
