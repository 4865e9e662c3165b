"""What an engine is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from h2osim.policies.declaration import Configured
from h2osim.policies.inputs import checked
from h2osim.support.errors import UserError
from h2osim.traces.unit import Unit


@dataclass(frozen=True)
class Job:
    """One unit replayed under one policy at one budget.

    ``budget`` is k in tokens, ``prompt_len`` is p; decoding is the steps p … n-1.
    """

    unit: Unit
    configured: Configured
    budget: int
    prompt_len: int

    @cached_property
    def scalars(self) -> dict[str, int | float]:
        """The values every rule may name, besides those of a token or a step."""
        heads = len(self.unit.heads)
        return scalars(self.configured, self.budget, self.prompt_len, heads, self.unit.n)

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """The policy's inputs, float64 each: numbers [n], and vectors [n, width]."""
        policy, n = self.configured.policy, self.unit.n
        values, found = {**self.scalars, **self.configured.arrays}, {}
        for name, make in policy.given.items():
            try:
                made = make(self.unit, values)
            except UserError:
                raise
            except Exception as error:  # whatever the user's function raises, it is one line
                why = f"{type(error).__name__}: {error}"
                raise UserError(f"policy {policy.name}: its input {name}: {why}") from error
            shape = (n, None) if name in policy.vectors else (n,)
            found[name] = checked(made, policy.name, name, shape)
        return found


def scalars(configured: Configured, k: int, p: int, heads: int, n: int) -> dict[str, int | float]:
    """The values that rules may name in every step: the parameters at budget k, and the sizes."""
    return {**configured.numbers(k), "k": k, "p": p, "n": n, "heads": heads}
