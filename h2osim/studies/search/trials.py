"""The open-loop stage of a search: settings, their losses, and the split of their budget.

Settings are proposed by Optuna in batches. The losses of all units at all budgets are averaged over
texts, each weighed by what equal budgets lose there, and the budget is split on the convex hulls.
A setting is worth what it then loses: the geometric mean over texts and totals.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.optima.allocation_curves import Curves
from h2osim.optima.splitting import best_split
from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.studies.search.asked import Axes, Search
from h2osim.studies.search.losses import SHARES, Measure
from h2osim.support.archive import read_arrays, write_arrays
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.sweeps.grid import setting

Numbers = NDArray[np.float64]

GRID = 1000
"""Slots of a text that are split: a split is in thousandths of a text."""


@dataclass
class Trial:
    """A setting, what it loses at each total with its budget shared out, and the shares."""

    policy: str
    value: float
    predicted: list[float]
    splits: list[Numbers] = field(repr=False)


def require_optuna() -> None:
    """UserError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("h2osim search needs Optuna: run pip install 'h2osim[search]'") from None


def open_loop(
    asked: Search, texts: Sequence[str], measure: Measure, folder: Path, key: str,
    progress: Progress | None,
) -> list[Trial]:  # fmt: skip
    """All trials: those of the store are told to Optuna again, then it proposes the others.

    key: of the search, so that another's files are not taken for its own.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=asked.seed, multivariate=True, group=True, constant_liar=True,
            n_startup_trials=16,
        )  # fmt: skip
    study, choices = optuna.create_study(sampler=sampler), asked.choices()
    done: list[Trial] = []
    measured: dict[str, Trial] = {}
    while len(done) < asked.trials:
        waiting = [study.ask() for _ in range(min(asked.batch, asked.trials - len(done)))]
        names = [_propose(one, choices) for one in waiting]
        if new := list(dict.fromkeys(name for name in names if name not in measured)):
            batch = folder / f"{len(done):05d}"
            losses = _batch(new, texts, measure, batch, key)
            for name, one in zip(new, losses, strict=True):
                measured[name] = shared(name, one, asked.totals)
        for one, name in zip(waiting, names, strict=True):
            study.tell(one, measured[name].value)
            done.append(measured[name])
        if progress:
            least = min(done, key=lambda t: t.value)
            progress(len(done), asked.trials, f"open loop, best so far {least.policy}")
    return done


def _batch(
    policies: Sequence[str], texts: Sequence[str], measure: Measure, folder: Path, key: str
) -> Numbers:
    """Losses of some settings, [policies, texts, budgets, layers, units]; a file for each text."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[int, Any] = {}
    for i in range(len(texts)):
        kept = read_arrays(folder / f"{i:03d}.npz", f"{key} {folder.name} {i}")
        if kept is not None and kept["policies"].tolist() == list(policies):
            found[i] = kept["losses"]
    missing = [text for i, text in enumerate(texts) if i not in found]
    for text, losses in measure(policies, missing):
        i = texts.index(text)
        found[i] = losses
        arrays = {"policies": np.array(policies), "losses": losses}
        write_arrays(folder / f"{i:03d}.npz", arrays, f"{key} {folder.name} {i}")
    return np.stack([found[i] for i in range(len(texts))], axis=1).astype(np.float64)


def _propose(trial: Any, choices: Sequence[Axes]) -> str:
    """A setting: of one of the policies, each parameter by its place among its values."""
    at = trial.suggest_int("policy", 0, len(choices) - 1) if len(choices) > 1 else 0
    name, policy, found = choices[at]
    chosen = {
        key: values[trial.suggest_int(f"{at} {key}", 0, len(values) - 1)]
        for key, values in found.items()
    }
    return setting(name, policy, chosen).text


def shared(policy: str, losses: Numbers, totals: Sequence[float]) -> Trial:
    """A trial from losses [texts, budgets, layers, units]: its splits and what they lose."""
    curves = on_the_grid(losses)
    predicted, splits = [], []
    for total in totals:
        equal = curves[:, :, round(total * GRID)].sum(axis=1)
        split = split_budget((curves / equal[:, None, None]).mean(axis=0), total)
        predicted.append(float(np.exp(np.mean(np.log(lost(curves, split))))))
        splits.append(split.reshape(losses.shape[2:]))
    return Trial(policy, float(np.mean(np.log(predicted))), predicted, splits)


def on_the_grid(losses: Numbers) -> Numbers:
    """Losses [texts, budgets, layers, units] at 0 … GRID slots, [texts, units, GRID + 1].

    Straight lines between the budgets of :data:`SHARES` and 1, where nothing is lost.
    """
    flat = losses.reshape(*losses.shape[:2], -1)
    at, slots = np.array([*SHARES, 1.0]) * GRID, np.arange(GRID + 1)
    return np.array(
        [[np.interp(slots, at, [*curve, 0.0]) for curve in text.T] for text in flat], np.float64
    )


def split_budget(curves: Numbers, total: float) -> Numbers:
    """The shares [units] of mean ``total`` whose losses add up to least, on the curves' hulls.

    curves: [units, GRID + 1]. No unit gets less than the least of :data:`SHARES`.
    """
    units, low = len(curves), round(SHARES[0] * GRID)
    slots = round(total * GRID * units)
    split, _ = best_split(Curves(curves[None]).gains([0]), slots, "hull", low)
    return UnitBudgets("", split[None] / GRID).scaled(total).budgets[0]


def lost(curves: Numbers, split: Numbers) -> Numbers:
    """What the units of each text lose together at these shares, [texts]."""
    slots = np.arange(GRID + 1)
    return np.array(
        [
            sum(np.interp(k * GRID, slots, one) for k, one in zip(split, text, strict=True))
            for text in curves
        ]
    )


def trial_rows(asked: Search, best: Sequence[Trial]) -> Iterator[dict[str, Any]]:
    """Rows of the search's table: what each setting would lose."""
    for trial in best:
        for total, value in zip(asked.totals, trial.predicted, strict=True):
            yield {"stage": "open loop", "policy": trial.policy, "split": "shared",
                   "budget": total, "predicted": value}  # fmt: skip


def split_rows(asked: Search, winner: Trial) -> Iterator[dict[str, Any]]:
    """Rows of the search's table: the winner's share of each unit."""
    for total, split in zip(asked.totals, winner.splits, strict=True):
        for (layer, unit), share in np.ndenumerate(split):
            yield {"stage": "split", "policy": winner.policy, "budget": total,
                   "layer": layer, "unit": unit, "share": share}  # fmt: skip
