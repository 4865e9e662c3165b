"""Sweeps: thousands of policy configurations on all units of some traces, at many budgets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.policies.declaration import Configured, Policy
from h2osim.replays import results
from h2osim.replays.execute import Destination, Engine, Memory, engine_here, execute
from h2osim.replays.facts import policy_facts, run_facts
from h2osim.replays.found import Found
from h2osim.replays.plan import WorkPlan, plan_work
from h2osim.replays.unit_budgets import Budgets
from h2osim.support.bars import with_bar
from h2osim.support.errors import UserError
from h2osim.sweeps.grid import expand
from h2osim.traces.catalogue import open_trace
from h2osim.traces.trace import Trace

if TYPE_CHECKING:
    import xarray

    from h2osim.sweeps.store import SweepStore

__all__ = ["open_sweep", "sweep"]

#: Names that a parameter's coordinate must not take; it is called ``param_NAME`` then.
_TAKEN = {*results.VARIABLES, *results.COORDINATES, "done"}


@with_bar
def sweep(
    traces: str | os.PathLike | Trace | Sequence[str | os.PathLike | Trace],
    policies: str | Policy | Configured | Sequence[str | Policy | Configured],
    budgets: Budgets,
    store: str | os.PathLike | None = None,
    *,
    prompt_len: int | None = None,
    share: str = "group",
    engine: str = "auto",
    layers: Iterable[int] | None = None,
    measure: str = "recall",
    dask: str | None = None,
    chunk: tuple[int, int] | None = None,
    command: str = "",
    progress: Callable[[float, float, str], None] | None = None,
    planned: Callable[[WorkPlan, int], None] | None = None,
) -> xarray.Dataset:
    """Replay every configuration of a grid of policies on every unit of some traces.

    Each number is the one that :func:`h2osim.replay` gives. The work is cut into chunks
    (configurations × units); a chunk's results are written whole, then marked. A call that was
    killed is continued by the same call: what is marked is not computed again.

    Parameters
    ----------
    traces
        Traces, or their folders or names.
    policies
        Grids as text, ``"h2o:recent=0..128:16,scores=full|cached,tova"`` (see
        :mod:`h2osim.sweeps.grid`), or policy objects.
    budgets, prompt_len, share, layers, measure
        As in :func:`h2osim.replay`, for each trace.
    store
        A folder for the results, in the Zarr format; made if it is not there, continued if it holds
        the same sweep. None: results stay in memory.
    engine
        As in :func:`h2osim.replay`.
    dask
        Address of a running Dask scheduler. Its workers open traces and store by path.
    chunk
        Configurations and units of a chunk; chosen from the cost if not given. A store keeps the
        shape it was made with.
    command
        The command line behind this call, kept in the attributes.
    progress
        Called with work done, work in all and a word. From threads, one at a time.
    planned
        Called once with the plan and the number of chunks that are left, before the work.

    Returns
    -------
    xarray.Dataset
        ``recall``, ``kept``, ``held`` and ``mass[unit]`` as in :func:`h2osim.replay`, and the
        errors measured, over

        * ``policy``: the configurations as text; beside it the facts about each, as in a replay
          but for ``engine``, and one coordinate a parameter, of all parameters of all the policies
          (NaN or empty where a policy has no such parameter);
        * ``unit``: all units of all traces one after the other; beside it ``layer``, ``index`` (in
          the layer) and ``heads``, and of the trace its name, ``n``, ``prompt_len`` and the other
          attributes of a replay;
        * ``budget``: tokens (``"all"``: 1 … the longest n; NaN where a trace is shorter). Where
          traces of several lengths are asked for shares, the shares as asked, with ``tokens[unit,
          budget]`` beside them; so too where budgets differ by unit, which ``split`` names.

        With a store, arrays are read from it when they are used.

    Raises
    ------
    UserError
        As :func:`h2osim.replay`; a bad grid; a store that holds another sweep, that another process
        is at work on, or that is something else; no Dask, no scheduler, no worker.
    """
    given = [traces] if isinstance(traces, str | os.PathLike | Trace) else list(traces)
    configured = expand(policies)
    opened = [one if isinstance(one, Trace) else open_trace(one) for one in given]
    path = None if store is None else Path(store)
    if path is not None:
        _storage()
    plan = plan_work(
        opened, configured, budgets, prompt_len=prompt_len, share=share, layers=layers,
        measure=measure,
    )
    seconds = float(plan.seconds.sum())
    if dask is None:
        kind = engine_here(engine, seconds)
        plan = _cut(plan, kind, kind.lanes(), chunk)

        def work(plan: WorkPlan, destination: Destination) -> None:
            execute(plan, kind, destination, progress, "sweeping")

        if path is not None:
            return _into_store(plan, path, command, planned, work)
        memory = Memory(plan, Found.empty(plan.shape, errors=plan.errors))
        if planned:
            planned(plan, plan.chunks)
        work(plan, memory)
        names = ("recall", "kept", "held", "mass")
        data = {name: getattr(memory.found, name) for name in names} | memory.found.errors
        return results.assemble("sweep", data, _coords(plan), _facts(plan, command))
    if path is None:
        raise UserError("--dask: give a store too; workers write their chunks into it")
    from h2osim.sweeps.cluster import connect, engine_there, execute_there, lanes_of, trace_paths

    paths = trace_paths(opened)
    client = connect(dask)
    try:
        there = engine_there(client, engine, [*paths, os.path.abspath(path.parent)], seconds)
        return _into_store(
            _cut(plan, there, lanes_of(client), chunk),
            path,
            command,
            planned,
            lambda plan, store: execute_there(plan, there, store, client, progress),
        )
    finally:
        client.close()


def _cut(plan: WorkPlan, engine: Engine, lanes: int, chunk: tuple[int, int] | None) -> WorkPlan:
    return engine.cut(plan, lanes) if chunk is None else replace(plan, chunk=chunk)


def _into_store(
    plan: WorkPlan,
    path: Path,
    command: str,
    planned: Callable[[WorkPlan, int], None] | None,
    work: Callable[[WorkPlan, SweepStore], None],
) -> xarray.Dataset:
    """Do a plan into the store at a path."""
    store = _store_for(path, plan, command)
    plan = replace(plan, chunk=store.chunk)
    with store.locked():
        if planned:
            planned(plan, sum(not store.finished(i) for i in range(plan.chunks)))
        work(plan, store)
        store.sweep_up()
    return open_sweep(path)


def open_sweep(store: str | os.PathLike) -> xarray.Dataset:
    """The results in a store, finished or not (NaN where not); arrays are read when used.

    Every file is held against the digest that was written with it. ``xarray.open_zarr`` reads the
    same folder. Raises :class:`UserError` where the folder is no store, or a file is damaged.
    """
    import xarray

    storage = _storage()
    path = Path(store)
    storage.SweepStore(path).verify()
    with storage.understood(path):
        found = xarray.open_zarr(path, chunks=None, consolidated=True).drop_vars("done")
    texts = {
        name: (c.dims, np.array(c.values.tolist(), str))
        for name, c in found.coords.items()
        if c.dtype.kind in "OT"
    }
    facts = {name: value for name, value in found.attrs.items() if name != storage.KEY}
    found = found.assign_coords(texts)
    found.attrs = facts
    return results.describe(found)


def _storage() -> ModuleType:
    """The module of stores; UserError where zarr is not installed."""
    try:
        from h2osim.sweeps import store
    except ImportError:
        raise UserError(
            "the store of a sweep needs zarr: run pip install 'h2osim[sweep]'"
        ) from None
    return store


def _store_for(path: Path, plan: WorkPlan, command: str) -> SweepStore:
    """The store at a path: the one there if it is of the same sweep, else a new one."""
    kind: type[SweepStore] = _storage().SweepStore
    if not path.exists():
        try:
            labels = results.labels(_coords(plan), ("policy", "unit", "budget"))
            return kind.create(path, plan, labels, results.facts("sweep", _facts(plan, command)))
        except OSError:
            if not path.exists():  # else another process was faster
                raise
    folder = kind(path)
    folder.check(plan)
    return folder


def _facts(plan: WorkPlan, command: str) -> dict[str, str]:
    return {"share": plan.share, "command": command, **plan.columns.facts}


def _coords(plan: WorkPlan) -> dict[str, Any]:
    """The values of all coordinates, by name."""
    one_pass = plan.one_pass.all(axis=1)
    found: dict[str, Any] = policy_facts(plan.configured, one_pass=one_pass)
    kinds = {p.name: p.kind for c in plan.configured for p in c.policy.takes if p.name in c.values}
    for name, kind in kinds.items():
        key = f"param_{name}" if name in _TAKEN else name
        if kind in ("choice", "when"):
            found[key] = [str(c.values.get(name, "")) for c in plan.configured]
        else:
            found[key] = [float(c.values.get(name, np.nan)) for c in plan.configured]
    of_trace = [
        run_facts(trace, p, plan.share) | {"trace": name}
        for trace, name, p in zip(plan.traces, plan.names, plan.prompt_lens, strict=True)
    ]
    for name in of_trace[0].keys() - {"share"}:
        found[name] = [of_trace[o][name] for o in plan.owner]
    return found | {
        "unit": np.arange(len(plan.units)),
        "layer": [u.layer for u in plan.units],
        "index": [u.index for u in plan.units],
        "heads": [len(u.heads) for u in plan.units],
        **plan.columns.coordinates(),
        "tokens": None if plan.columns.uniform else plan.tokens,
    }
