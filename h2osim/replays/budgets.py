"""What a replay is asked for: budgets, the first decode step, layers.

A budget is a number of tokens (64), a share of the text (0.05), or a share of its prompt
("50%prompt").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np

from h2osim.policies.parameters import resolve_window
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

Budget = float | str
_OF_PROMPT = "%prompt"


def budget_labels(budgets: Sequence[Budget]) -> list[float]:
    """Each budget as a number; UserError where some are shares of the prompt and others are not,
    so that a number could mean either.
    """
    shares = [prompt_share(budget) for budget in budgets]
    if None in shares and any(shares):
        raise UserError(
            f"budgets {', '.join(map(str, budgets))}: over several texts expected shares of the "
            "prompt alone, or none"
        )
    return [float(b if x is None else x) for b, x in zip(budgets, shares, strict=True)]


def budget_facts(budgets: Sequence[Budget], labels: Sequence[float]) -> dict[str, str]:
    """What the attributes of a result say of its budgets: where they are shares of the prompt."""
    shares = np.asarray(labels).dtype.kind == "f" and any(map(prompt_share, budgets))
    return {"budget_of": "prompt"} if shares else {}


def prompt_share(budget: Budget) -> Fraction | None:
    """The share of the prompt that ``"50%prompt"`` says, exact; None of other budgets."""
    if not isinstance(budget, str):
        return None
    try:
        share = Fraction(budget.removesuffix(_OF_PROMPT)) / 100
    except (ValueError, ZeroDivisionError):
        share = Fraction(-1)
    if not (budget.endswith(_OF_PROMPT) and 0 < share <= 1):
        raise UserError(
            f"budget {budget!r}: expected a share of the prompt above 0 up to 100%: 50%prompt"
        )
    return share


def budget_tokens(budget: Budget, n: int, p: int) -> int:
    """A budget in tokens, for a text of n tokens and a prompt of p.

    Whole numbers are tokens, others a fraction of n, text a share of p; never below 1.
    """
    if (share := prompt_share(budget)) is not None:
        return max(1, int(share * p))
    if isinstance(budget, (bool, np.bool_)) or not isinstance(budget, (int, float, np.number)):
        raise UserError(f"budget {budget!r}: expected tokens (64) or a fraction of n (0.05)")
    if isinstance(budget, (int, np.integer)):
        if 1 <= budget <= n:
            return int(budget)
        raise UserError(f"budget {budget}: expected 1 to {n} tokens for a trace of {n} tokens")
    if 0 < budget <= 1:
        return max(1, resolve_window(float(budget), n) if budget < 1 else n)
    raise UserError(
        f"budget {budget:g}: a fraction of n lies above 0 and up to 1.0; write tokens whole"
    )


def decode_start(trace: Trace, prompt_len: int | None) -> int:
    """The first decode step: as asked, else the trace's own, else 1."""
    if prompt_len is None:
        return trace.prompt_len or 1
    top = max(1, trace.n - 1)
    is_number = isinstance(prompt_len, (int, np.integer)) and not isinstance(prompt_len, bool)
    if not is_number or not 1 <= prompt_len <= top:
        raise UserError(
            f"prompt length {prompt_len}: expected 1 to {top}, so that a token of the trace's "
            f"{trace.n} is left to decode"
        )
    return int(prompt_len)


def chosen_layers(trace: Trace, layers: Iterable[int] | None) -> list[int]:
    """The layers to work on, in the trace's order."""
    wanted = list(trace.layers if layers is None else layers)
    missing = [layer for layer in wanted if layer not in trace.layers]
    if missing or not wanted:
        have = ", ".join(map(str, trace.layers))
        raise UserError(f"layer {missing[0] if missing else '(none)'}: {trace.name} has {have}")
    return [layer for layer in trace.layers if layer in wanted]
