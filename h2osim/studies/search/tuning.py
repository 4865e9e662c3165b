"""Tuning a split where it counts: in the closed loop, on the training texts.

What units lose to first order is added up as if their errors were small and knew nothing of each
other. Where little memory is left neither holds, and a few numbers (:class:`Sharing`) say how to
depart from it. Optuna proposes them for each total, the split that is in force on one half of the
training texts is made from the other half's losses, so that none is favoured for fitting the texts
it is measured on, and the winner's split is made from all.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from h2osim.studies.search.asked import Search
from h2osim.studies.search.closed_loop import Stages
from h2osim.studies.search.sharing import Numbers, Sharing, weighed
from h2osim.studies.search.trials import Trial

STAGE = "tune"
SPACE = {"power": (0.4, 1.2, 0.1), "late": (-1.2, 1.2, 0.2), "equal": (0.0, 0.4, 0.05)}
"""Least, most and step of each number."""


def tuned(
    asked: Search, trial: Trial, weights: Mapping[str, float], texts: Mapping[str, Any],
    stages: Stages,
) -> tuple[Trial, list[dict[str, Any]]]:  # fmt: skip
    """The trial with the best of ``asked.tune`` ways to share its budget, and rows of what was
    tried. texts: of the training, in the order of the first weights; prompts follow.
    """
    studies = [_study(asked.seed) for _ in asked.totals]
    each = np.array(list(weights.values()))
    rows: list[dict[str, Any]] = []
    while len(rows) < asked.tune * len(asked.totals):
        count = min(asked.batch, asked.tune - len(rows) // len(asked.totals))
        asks = [[study.ask() for study in studies] for _ in range(count)]
        ways = [[_way(one) for one in together] for together in asks]
        kl = _closed_loop(asked, trial, each, texts, stages, ways)
        for at in np.ndindex(kl.shape):
            (i, b), found = at, float(kl[at])
            studies[b].tell(asks[i][b], np.log(found))
            rows.append({"stage": STAGE, "policy": trial.policy, "split": "shared",
                         "budget": asked.totals[b], "kl": found, **asdict(ways[i][b])})  # fmt: skip
    best = [Sharing(**study.best_params) for study in studies]
    return replace(trial, splits=_splits(trial.losses, each, best, asked.totals)), rows


def _study(seed: int) -> Any:
    """Proposals for one total; the first is to add up the losses as they are."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(asdict(Sharing()))
    return study


def _way(ask: Any) -> Sharing:
    return Sharing(
        **{
            name: ask.suggest_float(name, low, high, step=step)
            for name, (low, high, step) in SPACE.items()
        }
    )


def _closed_loop(
    asked: Search, trial: Trial, weights: Numbers, texts: Mapping[str, Any], stages: Stages,
    ways: Sequence[Sequence[Sharing]],
) -> Numbers:  # fmt: skip
    """KL of each of some ways for the totals, [ways, totals], geometric mean over texts.

    Each half of the texts runs with the splits that the other half makes.
    """
    found = []
    for half in range(2):
        mine = [i for i in range(len(texts)) if i % 2 == half]
        others = np.where(np.isin(np.arange(len(weights)), mine), 0, weights)
        others = others / others.sum()
        trials = [
            replace(trial, splits=_splits(trial.losses, others, one, asked.totals)) for one in ways
        ]
        names = [list(texts)[i] for i in mine]
        found.append(stages.kl_of_splits(STAGE, {name: texts[name] for name in names}, trials))
    return np.asarray(np.exp(np.log(np.concatenate(found)).mean(axis=0)))


def _splits(
    losses: Numbers, weights: Numbers, ways: Sequence[Sharing], totals: Sequence[float]
) -> list[Numbers]:
    both = zip(ways, totals, strict=True)
    return [way.split(weighed(losses, weights, total), total) for way, total in both]
