"""What each unit's evictions cost the prediction, to first order, measured on the uncompressed run.

If only one unit evicts and its output moves by d_t in step t, KL(full || evicted) of all steps adds
up to 1/2 E[(g' J d)^2] (see :mod:`h2osim.closed_loop.uncompressed`); with the errors of different
steps taken as independent this is 1/2 E[sum_t (g'J_t d_t)^2]. It has the unit of the closed loop's
KL, so the losses of units in different layers can be added up and weighed against each other, which
their errors cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from h2osim.closed_loop.uncompressed import Uncompressed
from h2osim.models.rows import softmax_blocks

AT_ONCE = 16  # evictions whose masks stand in memory side by side


def unit_kl(run: Uncompressed, evictions: Sequence[NDArray[np.int32]]) -> NDArray[np.float64]:
    """First-order KL a token of each unit's evictions alone, nats [evictions, layers, units].

    evictions: the step after which each token is never attended again, int32 [layers, units, n],
    units being KV groups. With a the row, G_t what is attended and r its mass, the slope is

        g' d = sum_{j in G_t} a_j (g' v_j) / r - g' o,

    so one product of rows [a_j (g' v_j), a_j] with the masks gives all heads, probes and evictions.
    """
    steps, probes = len(run.entropy), len(run.gradients[0])
    units = run.calls[0].layer.kv_heads
    found = np.zeros((len(evictions), len(run.calls), units))
    for index, call in enumerate(run.calls):
        device = call.v.device
        lasts = torch.from_numpy(np.stack([one[index] for one in evictions])).to(device)
        for block in softmax_blocks(call):
            heads, rows, width = block.p.shape
            here = slice(block.start - call.start, block.start - call.start + rows)
            keys = slice(block.first - call.origin, block.first - call.origin + width)
            p = block.p.view(units, -1, rows, width)
            g = run.gradients[index][:, here].view(probes, rows, units, heads // units, -1)
            fetched = torch.einsum("krghd,gwd->gkhrw", g.to(p), call.v[:, keys].to(p))
            # [units, rows, (probes and mass) x heads, width]
            weights = torch.cat([fetched * p[:, None], p[:, None]], dim=1)
            weights = weights.permute(0, 3, 1, 2, 4).reshape(units, rows, -1, width)
            t = torch.arange(block.start, block.start + rows, device=device)[:, None]
            whole = _slope(weights.sum(3, keepdim=True), probes)
            for first in range(0, len(evictions), AT_ONCE):
                some = lasts[first : first + AT_ONCE, :, None, block.first :][..., :width] >= t
                seen = weights @ some.permute(1, 2, 3, 0).to(weights)
                lost = (_slope(seen, probes) - whole).square().sum((1, 2))  # [units, evictions]
                found[first : first + AT_ONCE, index] += lost.double().T.cpu().numpy()
    return found / (2 * steps * probes)


def _slope(sums: torch.Tensor, probes: int) -> torch.Tensor:
    """The slopes g' o_S of a unit's heads together, [units, rows, probes, evictions]; 0 if r is."""
    found = sums.unflatten(2, (probes + 1, -1))
    mass = found[:, :, -1:]
    return torch.where(mass > 0, found[:, :, :-1] / mass, 0).sum(3)
