"""The stages of a search that run the model: settings and their splits in force, and baselines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.studies.search.asked import Search
from h2osim.studies.search.trials import Trial
from h2osim.studies.texts import listed
from h2osim.support.progress import Progress
from h2osim.sweeps.evaluation import evaluate
from h2osim.sweeps.identity import plain_budgets

if TYPE_CHECKING:
    import xarray

TRAIN, ASKED = "train", "train answers"
"""The stages that choose the winner: texts, and prompts with an answer."""


def worth(
    rows: Sequence[Mapping[str, Any]], policy: str, objective: str, base: str
) -> tuple[float, float]:
    """What a finalist lost, small is good: by how many answers it falls short, then what else.

    That is the mean of log KL, or of the answers' -log p. Only ``both`` looks at how many answers
    there are: it is the largest lead, over budgets, of the policy ``base`` with equal budgets, as a
    number of prompts.
    """
    mine = [row for row in rows if row["policy"] == policy and row["split"] == "shared"]
    if objective == "answers":
        asked = [row["answer_logp"] for row in mine if row["stage"] == ASKED]
        return 0.0, -float(np.mean(asked))
    kl = float(np.mean(np.log([row["kl"] for row in mine if row["stage"] == TRAIN])))
    if objective == "kl":
        return 0.0, kl
    theirs = [row for row in rows if row["policy"] == base and row["split"] == "equal"]
    ahead = [
        _answered(theirs, budget) - _answered(mine, budget)
        for budget in {row["budget"] for row in mine}
    ]
    return float(max(0, *ahead)), kl


def _answered(rows: Sequence[Mapping[str, Any]], budget: float) -> int:
    """How many prompts are answered at a budget, of those that the full cache answers."""
    return sum(
        row["exact"] == 1 and row["full_exact"] == 1
        for row in rows
        if row["stage"] == ASKED and row["budget"] == budget
    )


@dataclass
class Stages:
    """Runs the model with policies and their splits in force; each stage has its own store."""

    asked: Search
    store: Path
    jobs: int
    dask: str | None
    progress: Progress | None

    def budgets(self, trial: Trial, model: str = "") -> list[UnitBudgets]:
        """A trial's splits, one for each total."""
        made = f"h2osim search: {trial.policy}, by {self.asked.by}"
        return [
            UnitBudgets(f"{total:g} of {trial.policy}", split, (), model, "group", made)
            for total, split in zip(self.asked.totals, trial.splits, strict=True)
        ]

    def run(
        self, stage: str, texts: Mapping[str, Any], trials: Sequence[Trial], tasks: bool = False,
        parts: bool = False, prompt_len: int | None = None, generate: int = 0,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Rows of a stage: baselines with equal budgets, trials with their splits.

        Passes of each trial, and of the baselines, have a store of their own: another winner does
        not run the baselines again. parts: also each trial with equal budgets, and the first
        baseline with each split and at twice the totals. tasks: the texts are prompts with answers.
        """
        totals = list(self.asked.totals)
        base = self.asked.baselines
        if not parts and stage != "answers":
            base = base[:1]
        more = [2 * t for t in totals if 2 * t not in totals and 2 * t < 1] if parts else []
        prompt = None if tasks else prompt_len or self.asked.prompt_len
        equal = {(j, b) for j in range(len(base)) for b in range(len(totals))}
        equal |= {(0, len(totals) + b) for b in range(len(more))}
        rows = self._passes(stage, texts, base, [*totals, *more], equal, prompt, generate)
        for trial in trials:
            rows += self.of_trial(stage, texts, trial, prompt, parts, generate)
        return rows

    def of_trial(
        self, stage: str, texts: Mapping[str, Any], trial: Trial, prompt_len: int | None,
        parts: bool = False, generate: int = 0,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Rows of a trial with its splits; parts: as :meth:`run` has them."""
        totals, splits = list(self.asked.totals), self.budgets(trial)
        if not parts:
            return self._passes(stage, texts, [trial.policy], splits, None, prompt_len, generate)
        policies = list(dict.fromkeys([trial.policy, self.asked.baselines[0]]))
        shared = range(len(totals), 2 * len(totals))
        only = {(j, b) for j in range(len(policies)) for b in shared}
        only |= {(0, b) for b in range(len(totals))}
        return self._passes(stage, texts, policies, [*totals, *splits], only, prompt_len, generate)

    def kl_of_splits(
        self, stage: str, texts: Mapping[str, Any], trials: Sequence[Trial]
    ) -> NDArray[np.float64]:
        """KL [texts, trials, totals] of trials that have one policy and different splits."""
        budgets = [
            replace(one, name=f"{i}: {one.name}")
            for i, trial in enumerate(trials)
            for one in self.budgets(trial)
        ]
        prompt = self.asked.prompt_len
        rows = self._passes(stage, texts, [trials[0].policy], budgets, None, prompt, 0)
        return np.array([row["kl"] for row in rows]).reshape(len(texts), len(trials), -1)

    def _passes(
        self, stage: str, texts: Mapping[str, Any], policies: Sequence[str],
        budgets: Sequence[Any], only: set[tuple[int, int]] | None, prompt_len: int | None,
        generate: int,
    ) -> list[dict[str, Any]]:  # fmt: skip
        about = [list(texts), policies, sorted(only or ()), plain_budgets(budgets), prompt_len]
        digest = sha256(json.dumps([*about, generate, self.asked.device]).encode()).hexdigest()[:8]
        found = evaluate(
            self.asked.model, texts, policies, budgets, only=only, device=self.asked.device,
            prompt_len=prompt_len, generate=generate, jobs=self.jobs, dask=self.dask,
            store=self.store / f"{stage.replace(' ', '-')}-{digest}", progress=self.progress,
        )  # fmt: skip
        return list(_rows(stage, found))

    def check(self, held: Mapping[str, str], winner: Trial, tokenizer: Any) -> Iterator[Any]:
        """Other prompts, lengths and cuts of the held-out texts, and what the model writes."""
        chain = [int(x) for text in held.values() for x in tokenizer(text)["input_ids"]]
        n, p = self.asked.tokens, self.asked.prompt_len

        def pieces(length: int, most: int, first: int = 0) -> dict[str, list[int]]:
            starts = range(first, len(chain) - length + 1, length)[:most]
            return {f"tokens {i} on": chain[i : i + length] for i in starts}

        for check, stage, texts, prompt_len, generate in (
            ("prompts", "check prompt 64", pieces(n, 8), 64, 0),
            ("prompts", "check prompt 512", pieces(n + 256, 8), 512, 0),
            ("cuts", "check other cuts", pieces(n, 12, n // 2), p, 0),
            ("lengths", "check 2048 tokens", pieces(2048, 4), p, 0),
            ("lengths", "check 4096 tokens", pieces(4096, 2), p, 0),
            ("writing", "check writing", pieces(p, 4), p, 64),
        ):
            if check not in self.asked.checks:
                continue
            yield from self.run(stage, texts, [winner], prompt_len=prompt_len, generate=generate)


def _rows(stage: str, found: xarray.Dataset) -> Iterator[dict[str, Any]]:
    genres = {one.name: one.genre for one in listed()}
    names = [name for name in ("kl", "top1", "recall", "exact", "answer_logp", "agreement")
             if name in found]  # fmt: skip
    for i, text in enumerate(found.text.values.tolist()):
        for j, policy in enumerate(found.policy.values.tolist()):
            for b, split in enumerate(found.split.values.tolist()):
                values = {name: float(found[name].values[i, j, b]) for name in names}
                if np.isnan(values["kl"]):
                    continue
                full = {name: float(found[name].values[i]) for name in ("full_exact",)
                        if name in found}  # fmt: skip
                yield {
                    "stage": stage, "text": text, "genre": genres.get(text, ""),
                    "tokens": int(found.n.values[i]), "prompt_len": int(found.prompt_len.values[i]),
                    "policy": policy, "split": "equal" if split == "equal" else "shared",
                    "budget": round(float(found.budget.values[b]), 6), **values, **full,
                }  # fmt: skip
