"""Budgets by unit that are decided at the end of each prompt, from its rows and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from h2osim.optima.split_rules import adakv_split
from h2osim.optima.splitting import best_split
from h2osim.replays.budgets import budget_tokens
from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.support.errors import UserError
from h2osim.traces.unit import Unit

Ints = NDArray[np.int64]
#: The policy whose errors on the prompt are split: all its budgets come from one pass.
PREDICTING = "h2o:recent=8,scores=full"
RULES = ("adakv", "predicted-error")


@dataclass(frozen=True, eq=False)
class PromptBudgets(UnitBudgets):
    """``adakv`` or ``predicted-error`` at a mean; ``budgets`` holds the mean alone, [[mean]].

    ``adakv``: as :func:`~h2osim.optima.split_rules.adakv_split`. ``predicted-error``: the output
    error of :data:`PREDICTING` on the prompt, whose second half stands for the steps to come, at
    every budget; k of a text's n tokens lose what k p / n of the prompt's p lose, and the losses
    are split on their hulls.
    """

    at_prompt: ClassVar[bool] = True

    @classmethod
    def of(cls, rule: str, mean: float) -> PromptBudgets:
        """The rule at a mean: tokens (64), or a share of the text (0.05)."""
        if rule not in RULES:
            raise UserError(f"budgets {rule!r}: expected one of {', '.join(RULES)}")
        return cls(rule, np.array([[mean]]))

    def resolve(self, model: str, share: str, layers: Sequence[int], units: int, n: int) -> Ints:
        """UserError: there is no prompt yet."""
        raise UserError(
            f"budgets {self.name}: decided at the end of a running model's prompt; only evaluate "
            "takes them"
        )

    def decide(self, units: Sequence[Unit], layers: int, n: int) -> Ints:
        """Tokens int64 [layers, units] for a text of n tokens, from units of its prompt, by layer.

        They add up to what equal budgets of the mean have.
        """
        p, count = units[0].n, len(units)
        mean = int(self.budgets[0, 0]) if self.in_tokens else float(self.budgets[0, 0])
        total = count * budget_tokens(mean, n, p)
        if self.name == "adakv":
            split = adakv_split(units, total, layers, p, n)
        else:
            at = np.maximum(1, np.arange(n + 1) * p // n)
            loss = np.stack([_errors(unit)[at - 1] for unit in units])
            scale = max(float(loss.max()), 1e-300) * 2.0**-40
            split, _ = best_split(np.rint(-loss / scale).astype(np.int64), total, "hull")
        return split.reshape(layers, -1)


def _errors(unit: Unit) -> NDArray[np.float64]:
    """The output error at budgets 1 … p of a prompt's second half."""
    from h2osim.engines.errors import OUTPUT, Outputs
    from h2osim.engines.request import Job
    from h2osim.engines.stack import StackRun
    from h2osim.policies.text import parse

    start = max(1, unit.n // 2)
    outputs = Outputs(unit, start, OUTPUT[:1])
    run = StackRun(Job(unit, parse(PREDICTING), unit.n, start), (), outputs)
    for block in unit.blocks(rows=outputs.rows_at_a_time()):
        outputs.read(block)
        run.feed(block)
    return np.nan_to_num(run.result().errors.of[OUTPUT[0]])
