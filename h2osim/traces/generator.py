"""What a generator of synthetic traces is: its parameters, random numbers and arithmetic.

The same seed gives the same bits on every machine: random numbers are the raw 64-bit words of
PCG64 (whose stream NumPy guarantees, unlike that of its distributions), everything else is IEEE
addition, multiplication and division in a fixed order; the powers come from the decimal module,
not from the machine's libm, and sums from `add.accumulate`, not from a pairwise `sum` that depends
on the vector unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.support.parameters import Param, values_of

Value = int | float
HeadRows = Callable[[int, int], NDArray[np.float64]]
"""rows(start, stop) -> float64 [stop - start, stop]: rows start ... stop-1, zeros above the
diagonal; called for consecutive ranges from 0 on."""


@dataclass(frozen=True)
class Generator:
    """A family of traces.

    make(n, source, values) -> HeadRows makes one head; source is that head's random numbers. sized
    has the defaults that depend on n. heads (values) gives the number of heads where the instance
    fixes it (they share one cache then); prompt_len (values) the prompt's length where decoding
    starts later than at token 1; least (values) the fewest tokens the instance needs.
    """

    name: str
    summary: str
    make: Callable[[int, RandomSource, Mapping[str, Value]], HeadRows]
    params: tuple[Param, ...] = ()
    sized: Mapping[str, Callable[[int], Value]] = field(default_factory=dict)
    heads: Callable[[Mapping[str, Value]], int] | None = None
    prompt_len: Callable[[Mapping[str, Value]], int] | None = None
    least: Callable[[Mapping[str, Value]], int] = lambda values: 1

    @property
    def doc(self) -> str:
        """What it makes, at length."""
        return (self.make.__doc__ or "").strip()

    def values(self, n: int, given: Mapping[str, Any]) -> dict[str, Value]:
        """All parameters, the defaults filled in; UserError for one that does not exist."""
        sized = {name: default(n) for name, default in self.sized.items()}
        return values_of(self.params, {**sized, **given}, f"generator {self.name}")


class RandomSource:
    """The random numbers of one head: PCG64 seeded with (seed, layer, head, stream)."""

    def __init__(self, seed: int, layer: int, head: int) -> None:
        self.head = head
        self._raw = np.random.PCG64([seed, layer, head])

    def uniform(self, *shape: int) -> NDArray[np.float64]:
        """Numbers in [0, 1), multiples of 2^-53."""
        words = self._raw.random_raw(math.prod(shape))
        return (words >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53

    def below(self, limit: int, *shape: int) -> NDArray[np.int64]:
        """Whole numbers 0 ... limit-1 (uniform up to 2^-53 limit)."""
        return (self.uniform(*shape) * limit).astype(np.int64)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """0 ... n-1 in random order."""
        return np.argsort(self._raw.random_raw(n), kind="stable")


def powers(n: int, exponent: float) -> NDArray[np.float64]:
    """r^-exponent for r = 1 ... n."""
    return np.array([power(r, -exponent) for r in range(1, n + 1)])


def power(base: int, exponent: float) -> float:
    """base^exponent, correctly rounded but for the rarest cases, and the same everywhere."""
    return float(Context(prec=25).power(Decimal(base), Decimal(exponent)))


def normalised(weights: NDArray[np.float64], start: int) -> NDArray[np.float64]:
    """Weights [rows, columns] cut at the diagonal, each row divided by its sum.

    A row without weight goes to its own token.
    """
    rows, columns = weights.shape
    t, j = np.arange(start, start + rows)[:, None], np.arange(columns)[None, :]
    cut = np.where(j <= t, weights, 0.0)
    total = np.add.accumulate(cut, axis=1)[:, -1:]
    cut = np.where(total > 0, cut, j == t)
    result: NDArray[np.float64] = cut / np.where(total > 0, total, 1.0)
    return result
