"""How far the residual errors of a layer's units, added up, are from the error of the whole layer.

    python tests/measure_residual.py TRACE

TRACE is recorded with ``h2osim record … --residual``. Units evict for themselves (``share=group``).
Prints, for each budget, the mean over layers of both and their quotient, for all policies, and the
rank correlation over the policies of their means without the two lowest layers.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.stats import spearmanr

import h2osim
from h2osim.attention.triangle import unpack

POLICIES = ["h2o", "tova", "streaming:sinks=4", "decay:gamma=.95", "h2o-mean", "recency"]
BUDGETS = [0.05, 0.1, 0.2]


def whole_layer(unit: h2osim.traces.unit.Unit, gone: np.ndarray, p: int) -> float:
    """Mean of |W_o (o - o_S)|^2 / |x|^2 over decode steps; gone [heads, n]: when tokens left."""
    n, group = unit.n, len(unit.heads) // len(unit.kv)
    bits = unit.trace.tensor(unit.layer, "scores")
    a = np.stack([unpack(one.view(np.float16)) for one in bits]).astype(np.float64)
    a /= a.sum(axis=2, keepdims=True)
    left = np.where(gone[:, None, :] >= np.arange(n)[None, :, None], a, 0)
    mass = left.sum(axis=2, keepdims=True)
    left = np.divide(left, mass, out=np.zeros_like(left), where=mass > 0)
    d = (left - a) @ np.repeat(unit.values().astype(np.float64), group, axis=0)
    moved = np.einsum("htd,hdw->tw", d, unit.projections().astype(np.float64))
    streams = unit.residual_norms().astype(np.float64) ** 2
    return float(((moved**2).sum(axis=1) / streams)[p:].mean())


def main(name: str) -> None:
    """Print the comparison for one recording."""
    trace = h2osim.open_trace(name)
    p = trace.n // 4
    found = h2osim.replay(trace, POLICIES, BUDGETS, prompt_len=p, measure="residual-error")
    added = found["residual_error"].sum("unit").transpose("policy", "layer", "budget").values
    whole = np.zeros_like(added)
    for i, layer, b in np.ndindex(*whole.shape):
        gone = np.repeat(found["evicted_at"].values[i, layer, :, b], trace.group_size, axis=0)
        whole[i, layer, b] = whole_layer(trace.units("layer")[layer], gone, p)
    for b, budget in enumerate(BUDGETS):
        rank = spearmanr(added[:, 2:, b].mean(axis=1), whole[:, 2:, b].mean(axis=1)).statistic
        print(f"budget {budget:g}: rank correlation {rank:.2f}")
        for policy, one, other in zip(POLICIES, added[..., b], whole[..., b], strict=True):
            a, w = one.mean(), other.mean()
            print(f"  {policy:20} units {a:.3g}  layer {w:.3g}  units / layer {a / w:.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
