"""Tuning a split where it counts: in the closed loop, on the training texts.

What units lose to first order is added up as if their errors were small and knew nothing of each
other. Where little memory is left neither holds, and a few numbers (:class:`Sharing`) say how to
depart from it. Optuna proposes them for each total, the split that is in force on one half of the
training texts is made from the other half's losses, so that none is favoured for fitting the texts
it is measured on, and the winner's split is made from all.
"""

from __future__ import annotations

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
    import optuna

    studies = []
    for _ in asked.totals:
        studies.append(optuna.create_study(sampler=optuna.samplers.TPESampler(seed=asked.seed)))
        studies[-1].enqueue_trial(asdict(Sharing()))
    each = np.array(list(weights.values()))
    rows: list[dict[str, Any]] = []
    for _ in range(asked.tune):
        asks = [study.ask() for study in studies]
        ways = [_way(ask) for ask in asks]
        found = _closed_loop(asked, trial, each, texts, stages, ways)
        for study, ask, way, total in zip(studies, asks, ways, asked.totals, strict=True):
            kl = [row["kl"] for row in found if np.isclose(row["budget"], total)]
            study.tell(ask, float(np.mean(np.log(kl))))
            rows.append({"stage": STAGE, "policy": trial.policy, "split": "shared",
                         "budget": total, "kl": float(np.exp(np.mean(np.log(kl)))),
                         **asdict(way)})  # fmt: skip
    best = [Sharing(**study.best_params) for study in studies]
    return replace(trial, splits=_splits(trial.losses, each, best, asked.totals)), rows


def _way(ask: Any) -> Sharing:
    return Sharing(
        **{
            name: ask.suggest_float(name, low, high, step=step)
            for name, (low, high, step) in SPACE.items()
        }
    )


def _closed_loop(
    asked: Search, trial: Trial, weights: Numbers, texts: Mapping[str, Any], stages: Stages,
    ways: Sequence[Sharing],
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of the training texts, each half with the splits that the other half makes."""
    rows = []
    for half in range(2):
        mine = [i for i in range(len(texts)) if i % 2 == half]
        others = np.where(np.isin(np.arange(len(weights)), mine), 0, weights)
        splits = _splits(trial.losses, others / others.sum(), ways, asked.totals)
        names = [list(texts)[i] for i in mine]
        some = {name: texts[name] for name in names}
        rows += stages.of_trial(STAGE, some, replace(trial, splits=splits), asked.prompt_len)
    return rows


def _splits(
    losses: Numbers, weights: Numbers, ways: Sequence[Sharing], totals: Sequence[float]
) -> list[Numbers]:
    both = zip(ways, totals, strict=True)
    return [way.split(weighed(losses, weights, total), total) for way, total in both]
