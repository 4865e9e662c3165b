"""What is in a trace: the facts `h2osim info` shows, and a picture of a unit.

All shares are of exact fixed-point mass. A layer's numbers are over all its recorded heads, rows
and visible entries (j <= t, and within the sliding window if there is one).

* *sparsity*: the share of entries smaller than 1 % of the largest entry of their row;
* *zeros*: the share of entries that are exactly 0. A softmax is never 0, so in a trace recorded
  from a model these were flushed to zero by float16 (below 2^-25) or by float32 before;
* four shares of mass that add up to 1: *sinks*, on the first 4 tokens; *recent*, on the newest 32
  (the row's own token included, sinks aside); *heavy*, on the heavy hitters beyond both; *rest*.
  Heavy hitters are, for every head, the tenth of its tokens (rounded up; sinks aside) that receive
  the most mass from rows at least 32 later, the older first among equals;
* *lost*: by how much rounding to float16 changed the sum of a row (before minus after), the mean
  and the largest size, where the sums before were kept;
* *exponent*: a where the r-th most attended token (sinks aside) receives about r^-a: minus the
  slope of a least-squares line through log mass against log rank, over the first half of ranks;
* *no token*: the mean mass of a row that a learned sink takes; the shares above, as recall, are of
  the mass on tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import ONE
from h2osim.attention.softmax import BLOCK_ROWS, RowMaker
from h2osim.support.machine import cores
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

SINKS = 4
RECENT = 32
HEAVY_SHARE = 0.1


@dataclass(frozen=True)
class LayerFacts:
    """The numbers of one layer; see the module's definitions. None: not known or not defined.

    layer: model index. file, bytes: None in memory. entries: visible ones, all heads. flushed:
    entries that rounding made zero; known where a softmax was recorded.
    """

    layer: int
    file: str | None
    bytes: int | None
    window: int | None
    entries: int
    sparsity: float
    zeros: float
    flushed: int | None
    sinks: float
    recent: float
    heavy: float
    rest: float
    lost_mean: float | None
    lost_max: float | None
    exponent: float | None
    no_token: float | None = None


@dataclass(frozen=True)
class TraceFacts:
    """What the manifest says, and the numbers of every layer (see `LayerFacts`)."""

    name: str
    path: str | None
    created_by: str | None
    command: str | None
    model: str | None
    architecture: str | None
    text: str | None
    license: str | None
    n: int
    prompt_len: int | None
    stores: tuple[str, ...]
    tensors: tuple[str, ...]
    heads: int
    kv_heads: int
    group_size: int
    head_dim: int | None
    bytes: int | None
    layers: tuple[LayerFacts, ...]

    def record(self) -> dict[str, Any]:
        """As plain values for JSON; shares are not rounded."""
        return asdict(self)


def describe(trace: Trace, layers: tuple[int, ...] | None = None) -> TraceFacts:
    """The facts of a trace; `layers`: of these layers only, by default of all.

    Reads (a qk store: makes) every row once. The layers are checked on the way (`check_layer`), so
    a UserError says what is wrong with a bad one.
    """
    chosen = trace.layers if layers is None else layers
    for layer in chosen:
        trace.layer_entry(layer)
    workers = max(1, min(len(chosen), cores()))
    with ThreadPoolExecutor(workers) as pool:
        numbers = tuple(pool.map(lambda layer: _layer_facts(trace, layer), chosen))
    model = trace.manifest["model"] or {}
    text = trace.manifest["text"] or {}
    sizes = [entry.get("bytes") for entry in trace.manifest["layers"]]
    return TraceFacts(
        name=trace.name,
        path=None if trace.path is None else str(trace.path),
        created_by=trace.manifest["created_by"],
        command=trace.manifest["command"],
        model=model.get("name"),
        architecture=model.get("architecture"),
        text=text.get("name"),
        license=text.get("license"),
        n=trace.n,
        prompt_len=trace.prompt_len,
        stores=trace.stores,
        tensors=tuple(sorted({t for layer in trace.layers for t in trace.tensors(layer)})),
        heads=len(trace.heads),
        kv_heads=len(trace.kv_heads),
        group_size=trace.group_size,
        head_dim=trace.manifest["head_dim"],
        bytes=None if trace.path is None else sum(sizes),
        layers=numbers,
    )


def heatmap(unit: Unit, cells: int = 256) -> NDArray[np.float64]:
    """A unit's attention for looking at: float64 [c, c] with c = min(cells, n), in [0, 1].

    Cell (a, b) is the largest mean over the unit's heads of A[t, j], t in a's rows and j in b's
    columns (row t is in cell t * c // n): max-pooling, since a mean would hide single heavy
    columns. NaN above the diagonal.
    """
    if cells < 1:
        raise ValueError(f"cells {cells}, expected at least 1")
    from h2osim.attention import row_loops

    size = min(cells, unit.n)
    pooled = np.zeros((size, size), dtype=np.int64)
    for block in unit.blocks():
        row_loops.pool_rows(
            block.bits, block.first, block.start, block.stop, unit.n, pooled
        )
    picture = pooled / (ONE * len(unit.heads))
    picture[np.triu_indices(size, 1)] = np.nan
    return picture


def _layer_facts(trace: Trace, layer: int) -> LayerFacts:
    from h2osim.attention import row_loops

    trace.check_layer(layer)
    heads, n = len(trace.heads), trace.n
    entry = trace.layer_entry(layer)
    window = entry.get("window")
    counts = np.zeros((heads, 3), dtype=np.int64)
    masses = np.zeros((heads, 3), dtype=np.int64)
    columns = np.zeros((heads, n), dtype=np.int64)
    late = np.zeros((heads, n), dtype=np.int64)
    lost_total, lost_max, known = 0.0, 0.0, True
    for start, stop, bits, before in _blocks(trace, layer):
        sums = np.empty((heads, stop - start), dtype=np.int64)
        row_loops.describe_rows(
            bits, start, start, stop, window or 0, SINKS, RECENT,
            counts, masses, columns, late, sums,
        )  # fmt: skip
        if before is None:
            known = False
        else:
            lost = before - sums / ONE
            lost_total += float(lost.sum())
            lost_max = max(lost_max, float(np.abs(lost).max()))
    entries, under, zeros = (int(x) for x in counts.sum(axis=0))
    total, to_sinks, to_recent = (int(x) for x in masses.sum(axis=0))
    to_heavy = _heavy_mass(late)
    recorded = "lse" in trace.tensors(layer) or "scores" not in trace.stores
    return LayerFacts(
        layer=layer,
        file=entry.get("file"),
        bytes=entry.get("bytes"),
        window=window,
        entries=entries,
        sparsity=under / entries,
        zeros=zeros / entries,
        flushed=zeros if recorded else None,
        sinks=to_sinks / total,
        recent=to_recent / total,
        heavy=to_heavy / total,
        rest=(total - to_sinks - to_recent - to_heavy) / total,
        lost_mean=lost_total / (heads * n) if known else None,
        lost_max=lost_max if known else None,
        exponent=_exponent(columns),
        no_token=_no_token(trace, layer),
    )


def _no_token(trace: Trace, layer: int) -> float | None:
    """Mean mass of a row on no token, where a learned sink takes it and the sums were kept."""
    if not trace.layer_entry(layer).get("sink") or "row_sum" not in trace.tensors(layer):
        return None
    return 1 - float(trace.tensor(layer, "row_sum").mean(dtype=np.float64))


def _blocks(
    trace: Trace, layer: int
) -> Iterator[tuple[int, int, NDArray[np.uint16], NDArray[np.float32] | None]]:
    """start, stop, patterns [H, packed] and sums before rounding [H, rows] of a layer's rows."""
    if "scores" in trace.stores:
        known = "row_sum" in trace.tensors(layer)
        row_sum = trace.tensor(layer, "row_sum") if known else None
        yield 0, trace.n, trace.tensor(layer, "scores"), row_sum
        return
    entry = trace.layer_entry(layer)
    maker = RowMaker(
        trace.tensor(layer, "k"),
        group_size=trace.group_size,
        scale=entry["scale"],
        softcap=entry.get("softcap"),
        window=entry.get("window"),
    )
    queries = trace.tensor(layer, "q")
    for start in range(0, trace.n, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, trace.n)
        rows = maker.make(queries[:, start:stop], start)
        yield start, stop, rows.bits, rows.row_sum


def _heavy_mass(late: NDArray[np.int64]) -> int:
    """Mass that each head's heavy hitters get from rows at least RECENT later, summed."""
    n = late.shape[1]
    many = min(math.ceil(HEAVY_SHARE * n), max(n - SINKS, 0))
    # which of two equals is taken makes no difference to the sum
    return int(np.sort(late[:, SINKS:], axis=1)[:, n - min(SINKS, n) - many :].sum())


def _exponent(columns: NDArray[np.int64]) -> float | None:
    """Minus the slope of log mass against log rank, the mean over heads; None for short traces."""
    ranked = -np.sort(-columns[:, SINKS:], axis=1)
    ranked = ranked[:, : ranked.shape[1] // 2]
    if ranked.shape[1] < 2 or (ranked <= 0).any():
        return None
    x = np.log(np.arange(1, ranked.shape[1] + 1))
    y = np.log(ranked.astype(np.float64)).mean(axis=0)
    x -= x.mean()
    return float(-(x * y).sum() / (x * x).sum())
