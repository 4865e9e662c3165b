"""Rules that see keys, values and queries: engines agree, and what is missing is named at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawing import BUNDLED
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, qk_traces
from vector_rules import ASKED, CAOTE, KEYDIFF, PAIRS, RULES

import h2osim
from h2osim.policies import inputs
from h2osim.policies.arithmetic import dot, products, products_with
from h2osim.policies.declaration import Policy
from h2osim.policies.to_cuda import rules_text
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace


def gone(trace: Trace, policies: Any, budgets: Any, **options: Any) -> Any:
    return h2osim.replay(trace, policies, budgets, **options)["evicted_at"].values


@examples(40)
@given(
    trace=qk_traces(values=True, min_n=2, max_n=20),
    k=st.integers(1, 8),
    share=st.sampled_from(["head", "group", "layer"]),
)
def test_numba_evicts_what_the_definition_evicts(trace: Trace, k: int, share: str) -> None:
    rules = [*RULES, ASKED.with_params(heads="max"), KEYDIFF.with_params(when="prompt")]
    by_hand, compiled = (
        gone(trace, rules, [min(k, trace.n), trace.n // 2], share=share, engine=engine)
        for engine in ("naive", "numba")
    )
    assert np.array_equal(by_hand, compiled)


@pytest.mark.nightly
@pytest.mark.skipif("prose" not in BUNDLED, reason="no bundled trace prose")
def test_the_values_of_a_real_trace() -> None:
    trace = h2osim.open_trace("prose")
    rule, how = CAOTE.with_params(when="every:64"), {"layers": trace.layers[:1], "prompt_len": 400}
    by_hand, compiled = (gone(trace, rule, 0.2, engine=e, **how) for e in ("naive", "numba"))
    assert np.array_equal(by_hand, compiled) and (compiled < trace.n).mean() > 0.5


def keys(*vectors: Any) -> Trace:
    """One head of these keys in two dimensions; attention is even."""
    k = np.array(vectors, float)[None, None]
    return Trace.from_qk(np.zeros_like(k), k, scale=1.0, v=k)


def test_the_mean_is_of_what_is_cached_with_the_newest_token() -> None:
    # Directions: two along x, then y, then y. In step 2 the mean of the three is (2/3, 1/3): the
    # oldest of the two along x goes. Then (1/3, 2/3): of the two along y the older one goes.
    trace = keys((1, 0), (5, 0), (0, 2), (0, 3))
    for engine in ("naive", "numba"):
        for recent, expected in ((0, [2, 4, 3, 4]), (2, [2, 3, 4, 4])):
            # with a window the lone x goes once it is protected no longer
            rule = KEYDIFF.with_params(recent=recent)
            assert gone(trace, rule, 2, engine=engine)[0, 0, 0, 0].tolist() == expected


def test_eviction_error_by_hand() -> None:
    # Even attention of 1/3 on values 0, 3 and 9: the output is 4, and value 3 is nearest to it.
    trace = keys((0, 0), (3, 0), (9, 0))
    assert gone(trace, CAOTE, 2)[0, 0, 0, 0].tolist() == [3, 2, 3]


def test_products_are_added_in_order() -> None:
    rng = np.random.default_rng(1)
    x, cached = rng.standard_normal((9, 5)) * 1e8, np.array([0, 3, 4, 8], np.uint32)
    pairs, row = products(x, cached), products_with(x, cached, x[8])
    for i, a in enumerate(cached):
        assert row[i] == dot(x[a], x[8])
        assert all(pairs[i, j] == dot(x[a], x[b]) for j, b in enumerate(cached))


def test_what_is_missing_is_named_before_anything_starts() -> None:
    half = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    with pytest.raises(UserError) as error:
        h2osim.replay(Trace.from_scores(half, name="bare"), ["h2o", ASKED], 2)
    assert str(error.value) == (
        "policy asked: trace bare has no queries, key norms (layer 0); record it with h2osim "
        "record … --store qk"
    )
    with pytest.raises(UserError, match=r"keydiff|unlike the mean: trace bare has no keys"):
        h2osim.replay([Trace.from_scores(half, name="bare")], KEYDIFF, 2)


def test_a_stepper_is_fed_vectors() -> None:
    rng = np.random.default_rng(2)
    n, heads = 12, 2
    trace = Trace.from_qk(
        rng.standard_normal((1, heads, n, 3)), rng.standard_normal((1, 1, n, 3)), scale=0.5
    )
    unit = trace.units()[0]
    made = {name: make(unit, {}) for name, make in ASKED.given.items()}
    stepper = h2osim.Stepper(
        ASKED, [3, 4], prompt_len=2, heads=heads,
        inputs={"length": made["length"], "query": lambda start, stop: made["query"][start:stop]},
    )  # fmt: skip
    rows = [unit.head_rows(t) * 2.0**-24 for t in range(n)]
    for row in rows:
        stepper.step([row, row])
    found = gone(trace, ASKED, [3, 4], prompt_len=2)[0, 0, 0]
    assert np.array_equal(stepper.evicted_at, np.where(found == n, n, found))
    with pytest.raises(UserError, match=r"policy pairs: a step takes its vectors key from outside"):
        h2osim.Stepper(PAIRS, 3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"needs": ("cheese",)}, "needs 'cheese'; expected some of keys, values"),
        ({"vector_state": {"x": "key"}}, "vector_state x is as wide as 'key'; expected one of"),
        ({"inputs": {"t": inputs.key_norm}}, "the name t has two meanings"),
        ({"state": ("key_now",), "vectors": {"key": inputs.key}}, "key_now has two meanings"),
        ({"vectors": {"key": inputs.key}, "inclusive": True}, "vectors can not go with inclusive"),
    ],
)
def test_declarations_that_make_no_sense(fields: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Policy(name="x", summary="", source="", rank=lambda pos: pos, **fields)


def test_an_input_of_another_shape_is_refused() -> None:
    flat = Policy(
        name="flat", summary="", source="", rank=KEYDIFF.rank, params=KEYDIFF.params,
        vectors={"key_direction": lambda unit, values: np.zeros(unit.n)},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"input key_direction: found shape \[2\], expected \[2, w"):
        h2osim.replay(keys((1, 0), (0, 1)), flat, 1)


def test_the_gpu_refuses_vectors_by_name() -> None:
    with pytest.raises(UserError, match=r"asked: its rules see vectors \(query, asked, drift\)"):
        rules_text(ASKED)
