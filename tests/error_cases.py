"""Traces with values, for tests of output and attention error."""

from __future__ import annotations

from typing import Any

import numpy as np
from drawing import NORMS, asks
from hypothesis import strategies as st
from strategies import qk_traces, traces

from h2osim.policies.declaration import Policy
from h2osim.traces.trace import Trace


@st.composite
def valued(draw: st.DrawFn, without: st.SearchStrategy[Trace]) -> Trace:
    """A trace with values: multiples of 1/4, some of them 0 throughout, or as a model has them."""
    trace = draw(without)
    stored = trace.tensors(trace.layers[0])
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (len(trace.layers), len(trace.kv_heads), trace.n, draw(st.integers(1, 3)))
    v = rng.standard_normal(shape) * draw(st.sampled_from([0.0, 1.0, 100.0]))
    more: dict[str, Any] = {
        name: np.stack([trace.tensor(layer, name) for layer in trace.layers])
        for name in ("scores", "row_sum", "v_norm1", "v_norm2", "k_norm2")
        if name in stored
    }
    size = len(trace.heads), shape[-1], draw(st.integers(1, 5))
    return Trace.from_packed(
        more.pop("scores"), group_size=trace.group_size, prompt_len=trace.prompt_len,
        v=np.round(v * 4) / 4, w_o=rng.standard_normal((len(v), *size)),
        x_norm=rng.random((len(v), trace.n)) + 0.5, **more,
    )  # fmt: skip


def valued_for(policy: Policy, **sizes: Any) -> st.SearchStrategy[Trace]:
    """Traces of every kind that has the data the policy needs, with values."""
    needs = asks(policy)
    with_keys = qk_traces(values=True, **sizes)
    rows = valued(traces(norms=bool(needs), **sizes))
    return rows | with_keys if needs <= NORMS else with_keys
