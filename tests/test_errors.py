"""Output and attention error: engines against the definition, and that against a brute force."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from commands import Run, fails
from drawing import BUNDLED, can_be_inclusive, configured, inclusive, long_but
from error_cases import valued, valued_for
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, qk_traces, traces

import h2osim
from h2osim.attention.fixed_point import UNIT
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.replays import execute
from h2osim.replays.measures import PASSES
from h2osim.replays.plan import plan_work
from h2osim.replays.replaying import replay
from h2osim.replays.results import ERRORS, check
from h2osim.support.errors import UserError
from h2osim.traces import unit
from h2osim.traces.eight_bit import from_eight_bits, to_eight_bits
from h2osim.traces.trace import Trace

POLICIES = sorted(all_policies())
INCLUSIVE = [name for name in POLICIES if can_be_inclusive(all_policies()[name])]
#: Measures that between them give every variable.
MEASURES = ("error", "attention-error", "residual-error")
SHARES = st.sampled_from(["group", "head", "layer"])


def measured(trace: Trace, policy: Any, budgets: Any, **options: Any) -> xarray.Dataset:
    """All errors of a replay in one Dataset."""
    has = all(one.has_residual for one in trace.units())
    found = [replay(trace, policy, budgets, measure=m, **options) for m in MEASURES[: 2 + has]]
    for one in found:
        check(one)
    return xarray.merge([one.drop_attrs() for one in found], compat="override")


def assert_close(expected: xarray.Dataset, found: xarray.Dataset, names: list[str]) -> None:
    for name in (name for name in names if name in expected):
        np.testing.assert_allclose(
            found[name].values, expected[name].values, rtol=1e-7, atol=1e-12, err_msg=name
        )


def both_ways(names: Any) -> list[str]:
    return [*names, *(f"{name}_step" for name in names)]


# --- the engines -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", long_but(POLICIES, "h2o", "nacl", "random", "tova"))
def test_numba_measures_as_the_definition_says(name: str) -> None:
    policy = all_policies()[name]

    @examples(12)
    @given(st.data(), valued_for(policy, min_n=2, max_n=14), SHARES)
    def run(data: st.DataObject, trace: Trace, share: str) -> None:
        one = data.draw(configured(policy))
        budgets = data.draw(st.lists(st.integers(1, trace.n), min_size=1, max_size=2, unique=True))
        options: dict[str, Any] = {
            "share": share, "prompt_len": data.draw(st.integers(1, trace.n - 1)),
            "step_errors": True,
        }  # fmt: skip
        expected = measured(trace, one, budgets, engine="naive", **options)
        found = measured(trace, one, budgets, engine="numba", **options)
        assert_close(expected, found, both_ways(ERRORS))
        np.testing.assert_array_equal(found.evicted_at.values, expected.evicted_at.values)

    run()


@pytest.mark.parametrize("name", long_but(INCLUSIVE, "decay", "tova", "topk"))
def test_one_pass_measures_every_budget(name: str) -> None:
    policy = all_policies()[name]

    @examples(12)
    @given(st.data(), valued_for(policy, min_n=2, max_n=14), SHARES)
    def run(data: st.DataObject, trace: Trace, share: str) -> None:
        heads = max(len(one.heads) for one in trace.units(share))
        one = data.draw(inclusive(policy, heads))
        options: dict[str, Any] = {
            "share": share, "prompt_len": data.draw(st.integers(1, trace.n - 1))
        }
        curve = measured(trace, one, "all", **options)
        each = measured(trace, one, range(1, trace.n + 1), step_errors=True, **options)
        assert curve.one_pass.all() and not each.one_pass.any()
        assert_close(each, curve, list(ERRORS))
        for found in (curve, each):
            assert (found.isel(budget=-1)[[e for e in ERRORS if e in found]].to_array() == 0).all()

    run()


@pytest.mark.parametrize("rows", [1, 3])
def test_blocks_of_rows_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    @examples(8)
    @given(qk_traces(values=True, min_n=2, max_n=12))
    def run(trace: Trace) -> None:
        policies = ["decay:scores=full,recent=2", "h2o", "topk"]
        expected = measured(trace, policies, "all")
        with monkeypatch.context() as patched:
            patched.setattr(unit, "BLOCK_ROWS", rows)
            patched.setattr("h2osim.replays.tasks.BLOCK_ROWS", rows)
            assert_close(expected, measured(trace, policies, "all"), list(ERRORS))

    run()


# --- the definition --------------------------------------------------------------------------


def brute_force(
    trace: Trace, found: xarray.Dataset, share: str, p: int
) -> Iterator[tuple[dict[str, int], dict[str, Any]]]:
    """Errors from who was there when: square float64 matrices, a formula a line."""
    for one in trace.units(share):
        rows = [np.asarray(one.head_rows(t)) * UNIT for t in range(trace.n)]
        a = np.zeros((len(one.heads), trace.n, trace.n))
        for t, row in enumerate(rows):
            a[:, t, : t + 1] = row
        a /= a.sum(axis=2, keepdims=True)
        v = np.repeat(one.values().astype(float), len(one.heads) // len(one.kv), axis=0)
        layer = list(trace.layers).index(one.layer)
        for b in range(found.sizes["budget"]):
            gone = found.evicted_at.values[0, layer, one.index, b]
            there = gone[None, :] >= np.arange(trace.n)[:, None]
            left = np.where(there, a, 0)
            mass = left.sum(axis=2, keepdims=True)
            left = np.divide(left, mass, out=np.zeros_like(left), where=mass > 0)
            o, o_s = (a @ v)[:, p:], (left @ v)[:, p:]
            squared, power = ((o - o_s) ** 2).sum(axis=2), (o**2).sum(axis=2)
            yield (
                {"policy": 0, "layer": layer, "unit": one.index, "budget": b},
                {
                    "squared": squared.sum(axis=1), "power": power.sum(axis=1),
                    "output_error_abs": np.sqrt(squared).mean(),
                    "attention_error": ((a - left)[:, p:] ** 2).sum(axis=2).mean(),
                },
            )  # fmt: skip


@examples(60)
@given(
    valued(traces(min_n=2, max_n=12)) | qk_traces(values=True, min_n=2, max_n=12),
    st.sampled_from(["h2o", "streaming:sinks=1", "tova", "decay:scores=full,recent=2", "random"]),
    SHARES,
    st.data(),
)
def test_the_definition_is_the_brute_force(
    trace: Trace, policy: str, share: str, data: st.DataObject
) -> None:
    p = data.draw(st.integers(1, trace.n - 1))
    options: dict[str, Any] = {"prompt_len": p, "share": share, "engine": "naive"}
    found = measured(trace, policy, list(range(1, trace.n + 1)), **options)
    for at, expected in brute_force(trace, found, share, p):
        here = found.isel(at)
        for name in ("output_error_abs", "attention_error"):
            # the engine sums what is missing; closer than 1e-7, since every row keeps much mass
            np.testing.assert_allclose(here[name], expected[name], rtol=1e-9, atol=1e-11)
        squared, power = expected["squared"], expected["power"]
        if (power > 1e-18 * (1 + squared)).all():
            relative = (squared / power).mean()
            # as above
            np.testing.assert_allclose(here.output_error, relative, rtol=1e-9, atol=1e-11)


def test_two_tokens_by_hand() -> None:
    """Row 1 = (1/4, 3/4), v = (0, 4): o = 3; budget 1 of recency keeps both, row 2 loses one."""
    scores = np.array([[1, 0, 0], [0.25, 0.75, 0], [0.5, 0.25, 0.25]])
    trace = Trace.from_scores(scores, v=np.array([[[0.0], [4.0], [8.0]]]))
    for engine in ("naive", "numba"):
        found = measured(trace, "recency", 1, engine=engine, step_errors=True)
        # row 2 attends 1 and 2, half each: o_S = 6 against o = 3; o of row 1 is 3
        assert found.output_error.item() == 9 / (9 + 9)
        assert found.output_error_abs.item() == 3 / 2
        # (1/2)^2 + (1/4 - 1/2)^2 twice, over two steps
        assert found.attention_error.item() == (0.25 + 0.0625 * 2) / 2
        assert found.output_error_step.values.ravel().tolist() == [0, 1]
        assert found.attention_error_step.values.ravel().tolist() == [0, 0.375]


def test_what_has_no_mass_left_gives_nothing() -> None:
    """Attended keys without mass: o_S = 0, so the whole output is lost."""
    scores = np.zeros((4, 4))
    scores[:, 0] = 1
    trace = Trace.from_scores(scores, v=np.ones((1, 4, 2)), w_o=np.ones((1, 2, 1)), x_norm=[1] * 4)
    for engine in ("naive", "numba"):
        found = measured(trace, "recency", [1, 4], engine=engine)
        # budget 1: row 1 still has token 0, rows 2 and 3 have lost it
        np.testing.assert_allclose(found.output_error.values.ravel(), [2 / 3, 0], rtol=1e-15)
        np.testing.assert_allclose(found.attention_error.values.ravel(), [2 / 3, 0], rtol=1e-15)
        # W_o o = 2 is lost in both, from a stream of 1
        np.testing.assert_allclose(found.residual_error.values.ravel(), [8 / 3, 0], rtol=1e-15)


def test_heads_of_a_layer_take_the_values_of_their_own_group() -> None:
    """Four heads in two groups that share one cache: only the second group's values differ."""
    row = np.array([[1, 0], [0.5, 0.5]])
    scores = np.stack([row, np.eye(2), row, np.eye(2)])
    scores = np.pad(scores, ((0, 0), (0, 1), (0, 1)))
    scores[:, 2] = [0.5, 0.25, 0.25]
    v = np.array([[1, 1, 1], [0, 4, 8]])[None, :, :, None]
    found = measured(Trace.from_scores(scores, group_size=2, v=v), "recency", 1, share="layer")
    # heads 0 and 1 lose nothing; 2 has o = 2, 3 and head 3 has o = 4, 3; in row 2 both get 6
    expected = (0 + 0 + 9 / (4 + 9) + 9 / (16 + 9)) / 4
    # four quotients and their mean, each rounded
    np.testing.assert_allclose(found.output_error.item(), expected, rtol=1e-12)


def test_an_output_of_zero() -> None:
    """Values 1 and -1 that cancel: losing one is beyond any share of 0; nothing lost is 0."""
    scores = np.tril(np.ones((2, 2))) / np.arange(1, 3)[:, None]
    scores = np.vstack([np.hstack([scores, np.zeros((2, 1))]), [0.5, 0.5, 0]])
    trace = Trace.from_scores(scores, v=np.array([[[1.0], [-1.0], [0.0]]]), prompt_len=2)
    for engine in ("naive", "numba"):
        found = measured(trace, "recency", [1, 3], engine=engine)
        np.testing.assert_array_equal(found.output_error.values.ravel(), [np.nan, 0])


@examples(20)
@given(traces(min_n=2, max_n=10), st.sampled_from(["h2o", "topk", "streaming:sinks=1"]))
def test_attention_error_is_output_error_with_unit_vectors_as_values(
    trace: Trace, policy: str
) -> None:
    layers = len(trace.layers), len(trace.kv_heads)
    v = np.broadcast_to(np.eye(trace.n), (*layers, trace.n, trace.n))
    bits = np.stack([trace.tensor(layer, "scores") for layer in trace.layers])
    unit_vectors = Trace.from_packed(bits, group_size=trace.group_size, v=v)
    each = measured(unit_vectors, policy, [1, 2], step_errors=True, share="head")
    # engines' own tolerance: h2osim/engines/errors.py
    np.testing.assert_allclose(
        each.attention_error_step, each.output_error_abs_step**2, rtol=1e-7, atol=1e-12
    )


@examples(20)
@given(valued(traces(min_n=3, max_n=12)))
def test_the_mean_of_the_steps_is_the_run(trace: Trace) -> None:
    found = measured(trace, ["h2o", "tova"], [1, 2], step_errors=True)
    for name in (name for name in ERRORS if name in found):
        # the mean of rounded quotients against the quotient of sums
        np.testing.assert_allclose(
            found[f"{name}_step"].mean("step"), found[name], rtol=1e-12, atol=1e-15
        )


# --- real traces, and mistakes ---------------------------------------------------------------


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_values_are_those_of_the_norms(name: str) -> None:
    """Eight bits: no number is off by more than its vector's largest / 254."""
    trace = h2osim.open_trace(name)
    for one in trace.units():
        values = one.values().astype(np.float64)
        assert values.shape == (1, trace.n, 64)
        norms = np.sqrt((values**2).sum(axis=2))[0]
        largest = np.abs(values).max(axis=2)[0]
        stored = trace.tensor(one.layer, "v_norm2")[0]
        # 64 numbers, each off by largest / 254 at most, and norms of float32
        assert (np.abs(norms - stored) <= 8 * largest / 254 + 1e-4).all()


def test_tova_keeps_more_mass_than_h2o_and_loses_more_of_the_output() -> None:
    found = replay(h2osim.open_trace("prose"), ["h2o", "tova"], [0.2], measure="both")
    recall, error = (found[v].mean(["layer", "unit"]).values for v in ("recall", "output_error"))
    assert recall[1] > recall[0] and error[1] > error[0]


def test_eight_bits() -> None:
    rng = np.random.default_rng(0)
    v = rng.standard_normal((2, 5, 7)).astype(np.float32) * np.float32(3)
    v[0, 0] = 0
    numbers, scale = to_eight_bits(v)
    again = from_eight_bits(numbers, scale)
    assert numbers.dtype == np.int8 and again.dtype == np.float32
    assert np.abs(numbers).max() == 127 and (again[0, 0] == 0).all()
    limit = np.abs(v).max(axis=2, keepdims=True) / 254
    # scale and product are rounded to float32
    assert (np.abs(again - v) <= limit * (1 + 1e-5)).all()


def test_values_in_eight_bits_go_through_a_file(tmp_path: Path) -> None:
    trace = h2osim.open_trace("chat")
    trace.save(tmp_path / "again")
    again = h2osim.open_trace(tmp_path / "again")
    for one, other in zip(trace.units(), again.units(), strict=True):
        np.testing.assert_array_equal(one.values(), other.values())


BARE = Trace.from_scores(np.eye(3), name="bare")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "error"}, "measure error: trace bare has no values"),
        ({"measure": "both"}, "measure both: trace bare has no values"),
        ({"measure": "kl"}, "unknown measure 'kl'; expected one of recall, error, both"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replay(BARE, "recency", 1, **options)


def test_scores_are_enough_for_the_attention_error() -> None:
    assert replay(BARE, "recency", 1, measure="attention-error").attention_error.item() == 0


def test_a_sweep_measures_what_a_replay_does(tmp_path: Path) -> None:
    """In memory, and into a store that is continued; another measure is another sweep."""
    trace = h2osim.open_trace("chat")
    grid, budgets = "decay:gamma=.9..1:.05,h2o:recent=0..16:16,scores=full", [8, 40, 383]
    options: dict[str, Any] = {"layers": [2, 9], "measure": "error"}
    swept = h2osim.sweep(trace, grid, budgets, **options)
    check(swept)
    replayed = replay(trace, swept.policy.values.tolist(), budgets, **options)
    expected = replayed.output_error.values.reshape(swept.output_error.shape)
    # batches of other sizes may sum a row in another order
    np.testing.assert_allclose(swept.output_error, expected, rtol=1e-12, atol=1e-15)
    store = tmp_path / "s"
    stored = h2osim.sweep(trace, grid, budgets, store, chunk=(2, 1), **options)
    (store / "output_error" / "c" / "0" / "1" / "0").write_bytes(b"")  # its chunk is done again
    again = h2osim.sweep(trace, grid, budgets, store, chunk=(2, 1), **options)
    for found in (stored, again):
        # as above
        np.testing.assert_allclose(found.output_error, expected, rtol=1e-12, atol=1e-15)
        np.testing.assert_array_equal(found.recall, swept.recall)
    with pytest.raises(UserError, match="another sweep: measure is error, asked for is None"):
        h2osim.sweep(trace, grid, budgets, store, chunk=(2, 1), layers=[2, 9])


def test_a_sweep_finds_the_least_error(run: Run, tmp_path: Path) -> None:
    words = ["sweep", "chat", "--policies", "decay:gamma=.8..1:.05", "--budgets", "40"]
    ended = run(*words, "--measure", "error", "--format", "json", "--best", "5")
    errors = [record["output_error"] for record in json.loads(ended.out)]
    assert len(errors) == 5 and errors == sorted(errors)
    table = run(*words, "--measure", "attention-error", "--plot", tmp_path / "p.png").out
    assert "attention error" in table and (tmp_path / "p.png").stat().st_size


def test_compare_ranks_by_what_was_measured(run: Run, tmp_path: Path) -> None:
    words = ["compare", "prose", "--policies", "h2o,tova", "--budgets", "20%"]
    plain, both = run(*words).out, run(*words, "--measure", "both").out
    assert plain.index("tova") < plain.index("h2o") and both.index("h2o") < both.index("tova")
    assert "ranked by output error" in " ".join(both.split())
    assert "recall of the attention mass" in both
    BARE.save(tmp_path / "bare")
    bare = ["compare", str(tmp_path / "bare"), "--budgets", "1", "--measure"]
    fails(run(*bare, "error"), "has no values", "attention-error")
    assert run(*bare, "attention-error").code == 0
    fails(run(*words, "--measure", "both", "--target-recall", "0.9"), "--target-recall")


def test_chunks_are_as_long_as_the_measure_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured sets the size of a sweep's chunks, and progress goes to their sum."""
    trace = h2osim.open_trace("prose")
    many = [parse(f"decay:gamma=0.{g}") for g in range(100, 356)]
    recall, error = (plan_work([trace], many, [0.1], measure=m) for m in ("recall", "error"))
    assert np.array_equal(error.seconds, PASSES["error"] * recall.seconds)
    numba = execute.ENGINES["numba"]
    chunks = numba.cut(error, 1)
    assert max(map(chunks.chunk_seconds, range(chunks.chunks))) <= numba.seconds
    monkeypatch.setattr(execute, "_REPORT", 0.0)
    heard: list[float] = []
    h2osim.replay(
        BARE, "h2o", [1, 2], measure="attention-error",
        progress=lambda done, total, word: heard.append(done / total),
    )  # fmt: skip
    assert heard[-2] == pytest.approx(1, rel=1e-9)  # the last before the end, a float64 sum
