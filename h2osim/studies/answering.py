"""Which measure orders policies as the answers to prompts do: the retrieval tasks of a study.

Only prompts that the full cache answers count: the others have no answer to lose. The sample is the
prompt. As loss the answer's log-probability is compared prompt by prompt; exact match, which is yes
or no, as the share of prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from h2osim.report.statistics import Interval, mean_interval
from h2osim.studies.correlating import Cube, cube, logs, mean_order, measured, spearman
from h2osim.studies.fidelity import GOOD, kind_of

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Answers:
    """The prompts in numbers, [prompts, policies, budgets], policies as in the table.

    kinds: of the prompts. asked: how many of each kind there were, answered by the full cache or
    not. lost: nats of the answer's log-probability that the full cache has more. wrong: 1 where the
    answer is not what the model would write. losses: by measure, on the prompt's own uncompressed
    run, large is bad; ``kl`` is the closed loop's on the prompt.
    """

    kinds: NDArray[np.str_]
    asked: dict[str, int]
    policies: list[str]
    budgets: list[float]
    lost: Cube
    wrong: Cube
    losses: dict[str, Cube]
    good: NDArray[np.bool_]

    def interval(self, measure: str, budget: int, kind: str | None = None) -> Interval:
        """Spearman's correlation of a measure with what the answer lost, mean over prompts.

        Over the good policies; of one kind of prompt, or of all.
        """
        some = self.kinds == kind if kind else np.ones_like(self.kinds, bool)
        loss, lost = (x[some][:, self.good] for x in (self.losses[measure], self.lost))
        return mean_interval(spearman(loss, lost)[:, budget])

    def with_accuracy(self, measure: str, budget: int) -> Interval:
        """Spearman's correlation of a measure's geometric mean with the share of wrong answers."""
        loss = logs(self.losses[measure][:, self.good, budget])
        return mean_order(loss, self.wrong[:, self.good, budget])

    def accuracy(self, kind: str) -> NDArray[np.float64]:
        """Share of a kind's prompts that are answered, [policies, budgets]."""
        found: NDArray[np.float64] = 1 - self.wrong[self.kinds == kind].mean(axis=0)
        return found

    def ordered(self) -> list[str]:
        """Measures, that of the largest mean correlation with what answers lost first."""
        means = {
            name: float(spearman(x[:, self.good], self.lost[:, self.good]).mean())
            for name, x in self.losses.items()
        }
        return sorted(means, key=lambda name: -means[name])


def answers(frame: pandas.DataFrame, texts: Cube) -> Answers:
    """From the rows of the study's table that are of prompts; texts: KL of the closed loop there.

    The geometric mean of the latter over texts stands among the measures as ``kl on the texts``.
    """
    names = list(frame["text"].unique())
    kinds = np.array([kind_of(name) for name in names])
    right = cube(frame, "full_exact")[:, 0, 0] == 1
    losses = measured(frame) | {"kl": cube(frame, "kl")}
    losses["kl on the texts"] = np.broadcast_to(
        np.exp(logs(texts).mean(axis=0)), losses["kl"].shape
    )
    policies = list(frame["policy"].unique())
    return Answers(
        kinds[right], {kind: int((kinds == kind).sum()) for kind in dict.fromkeys(kinds.tolist())},
        policies, list(frame["budget"].unique()),
        (cube(frame, "full_answer_logp") - cube(frame, "answer_logp"))[right],
        1 - cube(frame, "exact")[right], {name: x[right] for name, x in losses.items()},
        np.isin(policies, GOOD),
    )  # fmt: skip
