"""What tokens would have received after their eviction: the attention that a schedule lost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import fixed_from_bits
from h2osim.attention.triangle import row_slice
from h2osim.traces.unit import Unit

#: Rows that are read at a time.
_ROWS = 256


def lost_mass(unit: Unit, gone: NDArray[np.integer], prompt_len: int) -> NDArray[np.int64]:
    """The mass that each token did not give because it was evicted, of several schedules.

        lost[s, j] = sum of A[t, j] over decode steps t >= prompt_len with t > gone[s, j]

    gone: [schedules, n], the step after which token j is never attended again, n if it stays. The
    result has the same shape, in multiples of 2^-24, the rows of the unit's heads added. Over all
    tokens it is the unit's mass less what the schedule kept, to the last bit.
    """
    lost = np.zeros(gone.shape, np.int64)
    for block in unit.blocks(_ROWS):
        for t in range(max(block.start, prompt_len), block.stop):
            row = fixed_from_bits(block.bits[:, row_slice(t, block.first)]).sum(axis=0)
            lost[:, : t + 1] += np.where(gone[:, : t + 1] < t, row, 0)
    return lost
