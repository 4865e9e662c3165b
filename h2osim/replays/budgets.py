"""What a replay is asked for: budgets, the first decode step, layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from h2osim.policies.parameters import resolve_window
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

Budgets = float | Sequence[float] | Literal["all"]


def budget_list(budgets: Budgets, n: int) -> list[int]:
    """Budgets in tokens, as given and each once; ``"all"`` is 1 … n."""
    if isinstance(budgets, str):
        if budgets != "all":
            raise UserError(f"budgets {budgets!r}: expected numbers or 'all'")
        return list(range(1, n + 1))
    given = np.atleast_1d(np.asarray(budgets, object))
    tokens = list(dict.fromkeys(budget_tokens(b, n) for b in given))
    if not tokens:
        raise UserError("no budget given; expected tokens (64) or fractions of n (0.05)")
    return tokens


def budget_tokens(budget: float, n: int) -> int:
    """A budget in tokens: whole numbers are tokens, others a fraction of n (never below 1)."""
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
