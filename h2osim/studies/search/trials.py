"""The open-loop stage of a search: settings, their losses, and the split of their budget.

Settings are proposed by Optuna in batches. The losses of all units at all budgets are averaged over
texts, each weighed by what equal budgets lose there, and the budget is split on the convex hulls.
A setting is worth what it then loses: the geometric mean over texts and totals.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.studies.search.asked import Axes, Search
from h2osim.studies.search.losses import Measure
from h2osim.studies.search.sharing import Sharing, lost, weighed
from h2osim.support.archive import read_arrays, write_arrays
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.sweeps.grid import setting

Numbers = NDArray[np.float64]


@dataclass
class Trial:
    """A setting, what it loses at each total with its budget shared out, and the shares.

    losses: of the training texts, [texts, budgets, layers, units].
    """

    policy: str
    value: float
    predicted: list[float]
    splits: list[Numbers] = field(repr=False)
    losses: Numbers = field(repr=False)


def require_optuna() -> None:
    """UserError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("h2osim search needs Optuna: run pip install 'h2osim[search]'") from None


def open_loop(
    asked: Search, weights: Mapping[str, float], measure: Measure, folder: Path, key: str,
    progress: Progress | None,
) -> list[Trial]:  # fmt: skip
    """All trials: those of the store are told to Optuna again, then it proposes the others.

    weights: of the texts, by name, adding up to 1. key: of the search, so that another's files are
    not taken for its own.
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
    each = np.array(list(weights.values()))
    done: list[Trial] = []
    measured: dict[str, Trial] = {}
    while len(done) < asked.trials:
        waiting = [study.ask() for _ in range(min(asked.batch, asked.trials - len(done)))]
        names = [_propose(one, choices) for one in waiting]
        if new := list(dict.fromkeys(name for name in names if name not in measured)):
            batch = folder / f"{len(done):05d}"
            losses = _batch(new, list(weights), measure, batch, key)
            for name, one in zip(new, losses, strict=True):
                measured[name] = shared(name, one, asked.totals, each)
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


def shared(policy: str, losses: Numbers, totals: Sequence[float], weights: Numbers) -> Trial:
    """A trial from losses [texts, budgets, layers, units]: its splits and what they lose.

    weights: of the texts, adding up to 1.
    """
    splits = [Sharing().split(weighed(losses, weights, total), total) for total in totals]
    predicted = [float(np.exp(weights @ np.log(lost(losses, split)))) for split in splits]
    return Trial(policy, float(np.mean(np.log(predicted))), predicted, splits, losses)


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
