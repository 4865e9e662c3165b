"""Rules in NumPy or PyTorch that rank all cached tokens at once, with weights from a file."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# Rules are written as a user writes them.

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, qk_traces
from vector_rules import ASKED

import h2osim
from h2osim.policies import inputs
from h2osim.policies.arithmetic import accumulate
from h2osim.policies.declaration import INF, Policy
from h2osim.policies.parameters import shared
from h2osim.policies.to_cuda import rules_text
from h2osim.support.errors import UserError
from h2osim.support.parameters import Param
from h2osim.sweeps.identity import policies_of
from h2osim.traces.trace import Trace


def h2o_ranks(positions, t, score, recent):
    return np.where(t - positions < recent, INF, score)


def same_as_h2o(head_scores, positions, t, recent):
    return np.where(t - positions < recent, INF, head_scores.sum(axis=0))


BY_STATE = Policy(
    name="by state", summary="", source="test", params=(shared("recent", 2),), state=("score",),
    update=accumulate, rank_batch=h2o_ranks, scores="cached",
)  # fmt: skip
BY_HEADS = Policy(
    name="by heads", summary="", source="test", params=(shared("recent", 2),),
    rank_batch=same_as_h2o, scores="cached",
)  # fmt: skip


def everything(
    positions, head_row, head_scores, memory, key, key_now, key_mean, length, length_now,
    length_mean, seen, asked, t, k, p, heads,
):  # fmt: skip
    m = len(positions)
    assert key.shape == (m, len(key_now)) and len(key_mean) == len(key_now)
    assert head_row.shape == head_scores.shape == (heads, m) and length.shape == seen.shape == (m,)
    assert asked.shape[0] == m and positions[-1] == t and (np.diff(positions) > 0).all()
    assert np.array_equal(key[-1], key_now) and length[-1] == length_now
    assert np.allclose(key.mean(axis=0), key_mean) and np.isclose(length.mean(), length_mean)
    memory["steps"] = memory.get("steps", 0) + 1
    assert memory["steps"] <= t + 1
    return key @ key_mean + memory["steps"]


def last_query(query_now):
    return 0.0, query_now


EVERYTHING = Policy(
    name="everything", summary="", source="test", state=("seen",), vector_state={"asked": "query"},
    vectors={"key": inputs.key, "query": inputs.query}, inputs={"length": inputs.key_norm},
    needs=("keys", "queries"), init=last_query, rank_batch=everything,
)  # fmt: skip


@examples(20)
@given(
    trace=qk_traces(values=True, min_n=2, max_n=14),
    k=st.integers(1, 6),
    share=st.sampled_from(["head", "group", "layer"]),
)
def test_a_batched_rule_decides_as_the_same_rule_token_by_token(
    trace: Trace, k: int, share: str
) -> None:
    rules: Any = ["h2o:recent=2", BY_STATE, BY_HEADS, EVERYTHING]
    slow, fast = (
        h2osim.replay(trace, rules, min(k, trace.n), share=share, engine=engine)
        for engine in ("naive", "numba")
    )
    gone = slow["evicted_at"].values
    assert np.array_equal(gone[0], gone[1])
    if share == "head":  # else the sums over heads are added in another order
        assert np.array_equal(gone[0], gone[2])
    for name in ("evicted_at", "kept", "mass", "held"):
        assert np.array_equal(slow[name], fast[name])
    assert fast["engine"].values.tolist() == ["numba", "batch", "batch", "batch"]
    assert slow["engine"].values.tolist() == ["naive", "batch", "batch", "batch"]


def test_errors_are_measured_too() -> None:
    rng = np.random.default_rng(3)
    trace = Trace.from_qk(*rng.standard_normal((2, 1, 2, 12, 4)), scale=0.5,
                          v=rng.standard_normal((1, 2, 12, 4)))  # fmt: skip
    found = h2osim.replay(trace, ["h2o:recent=2", BY_STATE], 4, measure="error", engine="numba")
    assert np.array_equal(*found["output_error"].values)


RULE = '''
import numpy as np
from h2osim.policies import inputs
from h2osim.policies.declaration import Policy
from h2osim.support.parameters import Param

def gate(unit, values):
    return inputs.key(unit, values) @ values["weights"]["w"]

def rank(gate):
    return gate

POLICY = Policy(
    name="gated", summary="a linear probe of the key", source="test",
    params=(Param("weights", "", "w [width]", "arrays"),),
    inputs={"gate": gate}, needs=("keys",), rank=rank,
)
'''


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    file, weights, other = (tmp_path / name for name in ("mine.py", "w.npz", "other.npz"))
    file.write_text(RULE)
    np.savez(weights, w=np.array([1.0, 0.0]))
    np.savez(other, w=np.array([0.0, 1.0]))
    k = np.array([[5, 1], [2, 9], [3, 8], [7, 7]], float)[None, None]
    trace = Trace.from_qk(np.zeros_like(k), k, scale=1.0)
    texts = [f"{file}:weights={weights}", f"{file}:weights={other}"]
    found = h2osim.replay(trace, texts, 2)
    assert found["evicted_at"].values[:, 0, 0, 0].tolist() == [[4, 2, 3, 4], [2, 4, 4, 3]]
    assert found["policy"].values.tolist() == texts
    with pytest.raises(UserError, match=r"gated: weights=no\.npz: No such file.*expected a .npz"):
        h2osim.replay(trace, f"{file}:weights=no.npz", 2)
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"bad\.npz: expected a .npz file of arrays"):
        h2osim.replay(trace, f"{file}:weights={tmp_path / 'bad.npz'}", 2)


def test_a_sweep_knows_weights_by_their_content(tmp_path: Path) -> None:
    policy = Policy(
        name="x", summary="", source="", rank=lambda pos: pos,
        params=(Param("weights", "", "", "arrays"),),
    )  # fmt: skip

    def known(name: str, values: list[float]) -> object:
        np.savez(tmp_path / name, w=np.array(values))
        return policies_of([policy.with_params(weights=str(tmp_path / name))])["parameters"]

    assert known("a.npz", [1, 2]) == known("b.npz", [1, 2]) != known("a.npz", [1, 3])


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda positions: np.zeros(2), r"found shape \[2\], expected \[3\]"),
        (lambda positions: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda positions: "none", "found dtype <U4, expected a float dtype"),
        (lambda positions: np.full(len(positions), np.nan), "gives NaN in step 2"),
    ],
)
def test_what_a_batched_rule_gets_wrong_is_one_line(rule: Any, said: str) -> None:
    wrong = Policy(name="wrong", summary="", source="", rank_batch=rule)
    rows = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    for engine in ("naive", "numba"):
        with pytest.raises(UserError, match=said) as error:
            h2osim.replay(Trace.from_scores(rows), wrong, 2, engine=engine)
        assert "step 2" in str(error.value) and "\n" not in str(error.value)


def test_a_batched_rule_is_marked() -> None:
    with pytest.raises(UserError, match="rank_batch runs in Python, whatever the engine"):
        rules_text(BY_STATE)
    with pytest.raises(TypeError, match="exactly one of rank, rank_cache and rank_batch"):
        Policy(name="x", summary="", source="", rank=lambda pos: pos, rank_batch=h2o_ranks)
    with pytest.raises(TypeError, match="rank asks for weights"):
        Policy(name="x", summary="", source="", rank=lambda weights: 0.0,
               params=(Param("weights", "", "", "arrays"),))  # fmt: skip
    assert ASKED.rank_batch is None


# --- ranks that are no numbers, in rules that are compiled ----------------------------------------


def nan_later(pos: int, t: int) -> float:
    return INF - INF if t == 3 else float(pos)


def nan_cache(positions: Any, ranks: Any, t: Any) -> None:
    for i in range(len(positions)):
        ranks[i] = INF - INF if t == 3 else 0.0


def by_age(pos: int, t: int) -> float:
    return 1.0 / (t - pos)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank": nan_later}, "rank gives NaN in step 3, which has no place in an order"),
        ({"rank": nan_later, "inclusive": True}, "rank gives NaN in step 3"),
        ({"rank_cache": nan_cache}, "rank_cache gives NaN in step 3"),
        ({"rank": by_age}, "rank divides by zero in step 2"),
    ],
)
def test_nan_and_divisions_by_zero_are_named_with_rule_and_step(fields: Any, said: str) -> None:
    policy = Policy(name="wrong", summary="", source="", **fields)
    rows = np.tril(np.ones((6, 6))) / np.arange(1, 7)[:, None]
    for engine in ("naive", "numba"):
        for budgets in (2, "all") if "inclusive" in fields else (2,):
            with pytest.raises(UserError, match=f"policy wrong: {said}"):
                h2osim.replay(Trace.from_scores(rows), policy, budgets, engine=engine)
