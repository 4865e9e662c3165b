"""What tests of policies share: parameters drawn from a policy's own declaration, and its data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import strategies as st
from strategies import qk_traces, sixteenth_traces, softmax_traces

from h2osim.policies.declaration import Configured, Policy
from h2osim.support.errors import UserError
from h2osim.support.parameters import Param
from h2osim.traces.catalogue import bundled_traces
from h2osim.traces.recorded import check_recorded
from h2osim.traces.trace import Trace

#: Names of the traces under version control (not the user's own in traces/local).
BUNDLED = [name for name, place in bundled_traces().items() if place.parent.name != "local"]


def values_of(param: Param) -> st.SearchStrategy[Any]:
    """Values that a parameter accepts: those at its borders, and small ones."""
    if param.choices:
        return st.sampled_from([one.replace("every:m", "every:3") for one in param.choices])
    if param.kind == "arrays":
        return st.just("")  # none: what a file has to hold is each policy's own
    low, high = param.low, param.high
    if param.kind == "float":
        top = min(high, low + 4)
        return st.sampled_from([low, top, (low + top) / 2]) | st.floats(low, top)
    tokens = st.integers(int(max(low, 1)), int(min(high, max(12, low))))
    if param.kind == "window":
        shares = [share for share in (0.0, 0.1, 0.3, 0.5, 0.9) if low <= share <= high]
        return st.sampled_from(shares) | tokens
    return st.just(int(low)) | tokens


@st.composite
def configured(draw: st.DrawFn, policy: Policy) -> Configured:
    """A policy with its defaults, or with some parameters drawn."""
    chosen = [param for param in policy.takes if draw(st.booleans())]
    return policy.with_params(**{param.name: draw(values_of(param)) for param in chosen})


def traces_for(policy: Policy, **sizes: Any) -> st.SearchStrategy[Trace]:
    """Traces of every kind that has the data the policy needs."""
    needs = asks(policy)
    norms = bool(needs)
    with_rows = sixteenth_traces(norms=norms, **sizes) | softmax_traces(norms=norms, **sizes)
    with_keys = qk_traces(values=norms, **sizes)
    return with_rows | with_keys if needs <= NORMS else with_keys


#: What traces that are drawn as rows can have.
NORMS = {"value_norms", "key_norms"}


def asks(policy: Policy) -> set[str]:
    """The recorded data that a policy may read, whatever its parameters."""
    return {"value_norms"} if callable(policy.needs) else {*policy.needs}


def runs_on(policy: Policy, trace: Trace) -> bool:
    """Whether a trace has what a policy may read."""
    try:
        check_recorded(trace, trace.layers[0], asks(policy), policy.name)
    except UserError:
        return False
    return True


def can_be_inclusive(policy: Policy, heads: int = 3) -> bool:
    """Whether some parameters make the policy inclusive for a unit of several heads."""
    return policy.with_params(**_fixed(policy)).inclusive(heads)


@st.composite
def inclusive(draw: st.DrawFn, policy: Policy, heads: int) -> Configured:
    """A policy with parameters that make it inclusive (T7) for units of this many heads."""
    one = draw(configured(policy))
    if one.inclusive(heads):
        return one
    fixed = _fixed(policy)
    if "recent" in fixed:
        fixed["recent"] = draw(st.integers(0, 6))
    alike = policy.rank_cache is None and ("scores" in fixed or policy.update is None)
    left_out = {"heads"} if alike else {"heads", "when"}
    kept = {name: value for name, value in one.values.items() if name not in left_out}
    one = policy.with_params(**{**kept, **fixed})
    assert one.inclusive(heads)
    return one


def _fixed(policy: Policy) -> dict[str, Any]:
    """The shared parameters as T7 wants them: recorded rows, a window that does not grow with k."""
    wanted = {"scores": "full", "recent": 2}
    return {param.name: wanted[param.name] for param in policy.params if param.name in wanted}


def long_but(names: Iterable[str], *quick: str) -> list[Any]:
    """Cases of which each takes a second or more: all but these run with the long tests."""
    return [
        pytest.param(name, marks=() if name in quick else pytest.mark.nightly) for name in names
    ]
