"""What is left to win on a text: the optimum, and oracles in force in the running model.

The optimum keeps the most attention mass, or value-weighted mass, that any schedules under any
split of a total can keep (exact: no online policy keeps more). What the model then loses is
measured by masking what the schedules evict. Neither is made for KL; the oracle ``future`` with its
budget shared out by this very text's first-order KL comes closer to what KL asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.optima.allocating import allocate, budgets_of
from h2osim.optima.allocation_curves import schedules_keep
from h2osim.optima.solving import optimum
from h2osim.replays.replaying import replay
from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.studies.search.losses import curves, placed_model, run_of
from h2osim.studies.search.sharing import Sharing, weighed
from h2osim.support.archive import read_arrays, write_arrays
from h2osim.support.machine import cores
from h2osim.support.processes import processes
from h2osim.support.progress import Progress
from h2osim.traces.trace import Trace

STAGE = "left"
ORACLE = "future"
WEIGHTS = {"mass": "recall", "value": "value"}
"""What the optimum keeps, and what ``allocate`` calls it."""

Schedules = list[NDArray[np.int32]]
"""Of each total the step after which a token is never attended again, [layers, units, n]."""


def what_is_left(
    model: str, device: str, texts: Mapping[str, tuple[int, ...]], prompt_len: int,
    totals: Sequence[float], online: Mapping[str, Sequence[Any]], folder: Path, jobs: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of each text; one that the folder holds is not worked out again.

    online: policies by what rows call them, name and budgets, one for each total.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: [_plain(b) for b in budgets] for name, budgets in online.items()}
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        pool = None
        if jobs > 1:
            pool = stack.enter_context(processes(jobs, cores() // jobs or 1))
        waiting = []
        for name, ids in texts.items():
            about = repr((model, device, ids, prompt_len, list(totals), plain)).encode()
            digest = sha256(about).hexdigest()
            path = folder / f"{digest[:16]}.npz"
            given = model, device, ids, prompt_len, totals, online
            kept = read_arrays(path, digest)
            job = pool.submit(_of_text, *given) if pool and kept is None else None
            waiting.append((name, path, digest, given, kept, job))
        for done, (name, path, digest, given, kept, job) in enumerate(waiting):
            if progress:
                progress(done, len(waiting), f"what is left, {name}")
            if kept is None:
                kept = job.result() if job else _of_text(*given)
                write_arrays(path, kept, digest)
            rows += [{"stage": STAGE, "text": name, **row} for row in _rows(kept, totals)]
    return rows


def _plain(budget: Any) -> Any:
    return budget.budgets.tolist() if isinstance(budget, UnitBudgets) else budget


def _rows(found: Mapping[str, NDArray[Any]], totals: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"policy": str(policy), "split": str(split), "budget": total,
         "kl": float(found["kl"][i, b]), "mass_lost": float(found["mass"][i, b]),
         "value_lost": float(found["value"][i, b])}
        for i, (policy, split) in enumerate(found["names"])
        for b, total in enumerate(totals)
    ]  # fmt: skip


def _of_text(
    model: str, device: str, ids: tuple[int, ...], prompt_len: int, totals: Sequence[float],
    online: Mapping[str, Sequence[Any]],
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """kl, mass and value lost, [kinds, totals], and names [kinds, 2]: policy and split."""
    trace = run_of(model, device, ids, prompt_len).trace
    assert trace is not None
    kinds = _optima(trace, prompt_len, totals)
    losses = curves(model, device, ids, prompt_len, [ORACLE], "first-order").astype(np.float64)
    one = np.ones(1)
    shares = [Sharing().split(weighed(losses, one, total), total) for total in totals]
    own = [UnitBudgets(str(i), split) for i, split in enumerate(shares)]
    kinds[ORACLE, "its own"] = _replayed(trace, ORACLE, own, prompt_len)
    kinds[ORACLE, "equal"] = _replayed(trace, ORACLE, list(totals), prompt_len)
    kl = [_kl(model, device, ids, prompt_len, schedules) for schedules in kinds.values()]
    for name, budgets in online.items():
        split = "shared" if isinstance(budgets[0], UnitBudgets) else "equal"
        kinds[name, split] = _replayed(trace, name, list(budgets), prompt_len)
        kl.append(np.full(len(totals), np.nan))  # the closed loop's is that of the held-out stage
    gone = np.stack([one for schedules in kinds.values() for one in schedules])
    flat = gone.reshape(len(gone), -1, gone.shape[-1]).transpose(1, 0, 2)
    found = {"names": np.array(list(kinds)), "kl": np.stack(kl)}
    for weights in WEIGHTS:
        kept, mass = schedules_keep(trace, "group", weights, prompt_len, flat)
        share = 1 - kept.sum(axis=0) / mass.sum()
        found[weights] = share.reshape(len(kinds), len(totals))
    return found


def _optima(
    trace: Trace, prompt_len: int, totals: Sequence[float]
) -> dict[tuple[str, str], Schedules]:
    """Schedules of the optimum, by what it keeps, under equal budgets and under the best split."""
    kinds: dict[tuple[str, str], Schedules] = {}
    for weights, by in WEIGHTS.items():
        found = allocate(trace, list(totals), by=by, prompt_len=prompt_len)
        for split in ("equal", "best"):
            budgets = budgets_of(found, split)
            best = optimum(trace, budgets, weights=weights, prompt_len=prompt_len)
            gone = best["evicted_at"].transpose("budget", "layer", "unit", "token").values
            kinds[f"optimum of {weights}", split] = list(gone.astype(np.int32))
    return kinds


def _replayed(trace: Trace, policy: str, budgets: list[Any], prompt_len: int) -> Schedules:
    found = [replay(trace, policy, one, prompt_len=prompt_len)["evicted_at"] for one in budgets]
    gone = [one.transpose("policy", "budget", "layer", "unit", "token") for one in found]
    return [one.values[0, 0].astype(np.int32) for one in gone]


def _kl(
    model: str, device: str, ids: tuple[int, ...], prompt_len: int, schedules: Schedules
) -> NDArray[np.float64]:
    """KL of the running model with each schedule in force, nats a token."""
    from h2osim.closed_loop.caches import Eviction
    from h2osim.closed_loop.decoding import Decoder

    decoder = Decoder(placed_model(model, device), ids, prompt_len)
    layers = decoder.prompt.layers
    masks = [Eviction(None, 1, dict(zip(layers, one, strict=True))) for one in schedules]
    return np.array([decoder.evict(one).kl.mean() for one in masks])
