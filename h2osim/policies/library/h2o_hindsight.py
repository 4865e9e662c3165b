"""H2O that scores by the attention of the whole text: its local statistic made global."""

from h2osim.policies.arithmetic import guarded_score
from h2osim.policies.declaration import Policy
from h2osim.policies.inputs import total
from h2osim.policies.parameters import shared


def init(total: float) -> float:
    return total


POLICY = Policy(
    name="h2o-hindsight",
    summary="oracle: H2O by the attention that a token receives in the whole text",
    source="arXiv 2306.14048, section 4.1 (the global statistic)",
    params=(shared("recent", 0.5), shared("sinks", 0)),
    inputs={"total": total},
    state=("score",),
    init=init,
    rank=guarded_score,
    oracle=True,
    notes="Evicts step by step as `h2o` does, so it differs from `h2o:scores=full` by the "
    "statistic alone; `h2o-global` chooses its columns once, before the first step.",
)
