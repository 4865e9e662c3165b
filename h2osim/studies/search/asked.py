"""What a search is asked for, and all that can be wrong about it before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from h2osim.closed_loop.evaluating import configure
from h2osim.closed_loop.prompts import TASKS, Task
from h2osim.policies.declaration import Configured, Policy
from h2osim.studies.search.losses import MEASURES
from h2osim.support.errors import UserError
from h2osim.sweeps.grid import axes, setting

BASELINES = ("h2o", "tova", "streaming:sinks=4", "snapkv:window=16,when=always")
"""SnapKV in every step: as published it evicts once, and then holds more than the budget."""
SPACE = (
    "two-speed:gamma=0.95|0.98|0.985|0.99|0.995|1,fast=0|0.5|0.8|0.9|0.95,mix=0..0.75:0.125,"
    "join=sum|max,prior=0|4|16|64,value=0|0.5|1,recent=0.1|0.15|0.2|0.25|0.3|0.4,sinks=0|1|4,"
    "heads=sum|max"
)
OBJECTIVES = ("kl", "answers", "both", "open-loop")
CHECKS = ("prompts", "cuts", "lengths", "writing")
DEPTHS = (0.1, 0.5, 0.9)
"""Where in a prompt the answer stands."""

Axes = tuple[str, Policy, dict[str, list[str]]]


@dataclass(frozen=True)
class Search:
    """What is searched and how.

    spaces: grids of policies. totals: mean budgets as shares of a text. by: the measure of the open
    loop, one of ``losses.MEASURES``. objective: what chooses among the ``finalists``: ``kl`` of
    the closed loop on the training texts, ``answers``: the log-probability of training prompts'
    answers, ``both``: KL, of those that answer as many training prompts as the first baseline,
    ``open-loop``: nothing but the first stage. answers: what training prompts count in the open
    loop; the texts count 1 - answers. batch: settings measured at a time. tune: settings of the
    winner's split that are tried in the closed loop. task_seeds: prompts with an answer of each
    kind and depth. checks: what else is run of the held-out texts, some of CHECKS. left: on how
    many held-out texts it is worked out what is left to win.
    """

    model: str
    spaces: tuple[str, ...] = (SPACE,)
    totals: tuple[float, ...] = (0.05, 0.1, 0.2)
    baselines: tuple[str, ...] = BASELINES
    by: str = "first-order"
    objective: str = "kl"
    trials: int = 100
    batch: int = 8
    finalists: int = 6
    answers: float = 0.0
    tune: int = 0
    tokens: int = 768
    prompt_len: int = 256
    seed: int = 0
    task_seeds: int = 6
    checks: tuple[str, ...] = ()
    left: int = 0
    device: str = "cpu"

    def choices(self) -> list[Axes]:
        """Of each grid the policy's name, the policy, and the values of its parameters."""
        return [axes(space) for space in self.spaces]

    def plain(self) -> list[Configured]:
        """The grids' policies, with the defaults of the parameters that are searched."""
        return [setting(name, policy, {}) for name, policy, _ in self.choices()]

    def tasks(self, first: int) -> dict[str, Task]:
        """Prompts with an answer, as long as the texts' prompts, of seeds from ``first`` on."""
        tasks = [
            Task(kind, self.prompt_len, depth, seed)
            for kind in TASKS
            for depth in DEPTHS
            for seed in range(first, first + self.task_seeds)
        ]
        return {task.name: task for task in tasks}

    def check(self, train: Mapping[str, Any], held: Mapping[str, Any]) -> None:
        """UserError for what does not exist, or texts that are not apart."""
        known = {"by": (self.by, MEASURES), "objective": (self.objective, OBJECTIVES)}
        for word, (given, names) in known.items():
            if given not in names:
                raise UserError(f"--{word}: found {given!r}, expected one of {', '.join(names)}")
        plain = {one.text: one for one in self.plain()}
        configure([*(one for one in self.baselines if one not in plain), *plain.values()])
        if unknown := set(self.checks) - set(CHECKS):
            raise UserError(f"--checks: {min(unknown)!r}, expected some of {', '.join(CHECKS)}")
        if both := set(train.values()) & set(held.values()):
            name = next(name for name, text in held.items() if text in both)
            raise UserError(f"text {name}: held out and trained on; expected other texts")
        if not train or not held:
            raise UserError(f"{len(train)} training and {len(held)} held-out texts: expected some")
        if self.tune and len(train) < 2:
            raise UserError("--tune: 1 training text, expected at least two")
        if not 0 <= self.answers < 1:
            raise UserError(f"--answers {self.answers:g}: expected a share from 0 to below 1")
