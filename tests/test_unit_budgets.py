"""Budgets by unit: tokens of a share, scaling, the file, and every command that takes them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import cuda_shim
import numpy as np
import pytest
from commands import Run, fails
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_cases import random_trace

import h2osim
from h2osim import UnitBudgets, UserError, read_budgets, replay, sweep, write_budgets
from h2osim.optima.certificate import save_certificate
from h2osim.replays.budget_file import at_mean
from h2osim.replays.budgets import budget_tokens
from h2osim.replays.results import check
from h2osim.sweeps.identity import budgets_from, plain_budgets

TRACE = random_trace(40, 2, 4, 3, group_size=2)
SPLIT = np.array([[3, 20], [9, 1]])
SHARES = UnitBudgets("by hand", np.array([[0.05, 0.3], [0.1, 0.15]]), (0, 1))


# --- tokens, scaling, mixing -----------------------------------------------------------------

SHARE = st.floats(1e-6, 1.0)


@given(
    shares=st.lists(st.lists(SHARE, min_size=3, max_size=3), min_size=1, max_size=4),
    n=st.integers(2, 5000),
)
@settings(deadline=None)
def test_shares_take_the_memory_of_equal_ones(shares: list[list[float]], n: int) -> None:
    budgets = UnitBudgets("b", np.array(shares))
    found = budgets.resolve("", "group", range(len(shares)), 3, n)
    equal = budget_tokens(budgets.mean, n, n)
    assert found.sum() == found.size * equal and ((found >= 1) & (found <= n)).all()
    if (budgets.budgets * equal >= 1).all():  # nobody is below a token: proportions to a token
        ideal = budgets.budgets * found.sum() / budgets.budgets.sum()
        if ideal.max() <= n:
            assert np.abs(found - ideal).max() < 1 + 1e-6


@given(
    shares=st.lists(st.lists(SHARE, min_size=2, max_size=2), min_size=1, max_size=4),
    mean=st.one_of(SHARE, st.integers(1, 4000)),
)
@settings(deadline=None)
def test_scaling_reaches_the_mean_asked_for(shares: list[list[float]], mean: float) -> None:
    scaled = UnitBudgets("b", np.array(shares)).scaled(mean)
    assert scaled.in_tokens == isinstance(mean, int)
    # a fill level found by bisection: exact to the last bits of float64; whole tokens are exact
    assert scaled.mean == pytest.approx(mean, rel=0 if isinstance(mean, int) else 1e-9)
    order = np.argsort(np.ravel(shares), kind="stable")
    assert (np.diff(scaled.budgets.ravel()[order]) >= -scaled.in_tokens).all()


def test_a_mean_between_two_splits_is_their_mixture() -> None:
    low, high = SHARES, SHARES.scaled(0.45)
    between = at_mean([low, high], 0.2)
    third = (0.2 - 0.15) / (0.45 - 0.15)
    # a product and a sum of float64 numbers
    assert np.allclose(between.budgets, (1 - third) * low.budgets + third * high.budgets)
    assert (
        between.mean == 0.2 and at_mean([low, high], 0.15).budgets.tolist() == low.budgets.tolist()
    )
    assert at_mean([low, high], 0.05).budgets.tolist() == low.scaled(0.05).budgets.tolist()
    assert at_mean([low, high], 0.6).budgets.tolist() == high.scaled(0.6).budgets.tolist()
    assert at_mean([low, high], 8).budgets.sum() == 8 * 4


def test_several_totals_in_a_file_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_budgets(path, [SHARES.scaled(0.4), SHARES])
    found = read_budgets(path)
    assert [one.mean for one in found] == [0.15, 0.4] and found[0].layers == (0, 1)
    assert (found[0].budgets == SHARES.budgets).all()
    content = json.loads(path.read_text())
    for change, said in (
        (content["splits"][:1] * 2, "two splits of the mean 0.4"),
        ([*content["splits"][:1], {"total": 4, "budgets": [[1, 1], [1, 1]]}], "expected one kind"),
        ([], "splits"),
    ):
        path.write_text(json.dumps(content | {"splits": change}))
        with pytest.raises(UserError, match=said):
            read_budgets(path)


# --- replays, sweeps, the optimum ------------------------------------------------------------


def by_hand(policy: str, engine: str, budgets: np.ndarray, **options: Any) -> dict[str, Any]:
    """Each unit replayed at its own budget alone."""
    runs = {
        int(k): replay(TRACE, policy, int(k), engine=engine, **options) for k in np.unique(budgets)
    }
    return {
        name: np.array(
            [[runs[int(k)][name].values[0, i, j, 0] for j, k in enumerate(row)]
             for i, row in enumerate(budgets)]
        )
        for name in ("kept", "held", "evicted_at")
    }  # fmt: skip


POLICIES = ["h2o:recent=2,scores=full", "h2o", "tova"]


@pytest.mark.parametrize("engine", ["naive", "numba", "cuda"])
def test_each_unit_is_replayed_at_its_own_budget(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stack (many budgets), direct (few), the definition, and the kernels compiled for the CPU."""
    if engine == "cuda":
        if cuda_shim.COMPILER is None:
            pytest.skip("no C++ compiler to stand in for a GPU")
        from h2osim import cuda
        from h2osim.cuda import chunks

        monkeypatch.setattr(chunks, "devices", lambda: (cuda_shim.Shim(),))
        monkeypatch.setattr(cuda, "devices", lambda: (cuda_shim.Shim(),))
    many = [SPLIT, 5, SPLIT[::-1].copy(), SHARES, *range(6, 20)]
    for budgets in (many[:2], many if engine != "naive" else many[:4]):
        found = replay(TRACE, POLICIES, budgets, engine=engine, prompt_len=6)
        check(found)
        assert found["split"].values.tolist()[:2] == ["array 0", "equal"]
        assert found["budget"].values.tolist()[:2] == [8, 5]
        assert (found["slots"][:, :, 0] == SPLIT).all() and (found["slots"][:, :, 1] == 5).all()
        for b in [b for b in (0, 2, 3) if b < len(budgets)]:
            slots = found["slots"].values[:, :, b]
            for i, policy in enumerate(POLICIES):
                expected = by_hand(policy, "naive", slots, prompt_len=6)
                for name, values in expected.items():
                    np.testing.assert_array_equal(found[name].values[i, :, :, b], values, policy)


def test_an_array_of_one_number_is_that_budget() -> None:
    found = replay(TRACE, ["h2o", "tova"], [np.full((2, 2), 7), 7, 0.2])
    assert found["budget"].values.tolist() == [7, 7, 8]
    np.testing.assert_array_equal(found["evicted_at"][..., 0, :], found["evicted_at"][..., 1, :])


def test_several_traces_take_shares_of_their_own_length() -> None:
    other = random_trace(23, 2, 4, 5, group_size=2)
    found = replay([TRACE, other], ["tova"], [0.15, SHARES, 5])
    check(found)
    assert found["split"].values.tolist() == ["equal", "by hand", "equal"]
    assert found["budget"].values.tolist() == [0.15, 0.15, 5.0]
    assert found["tokens"].values.tolist() == [[6, 6, 5], [3, 3, 5]]
    for i, trace in enumerate((TRACE, other)):
        alone = replay(trace, ["tova"], [0.15, SHARES, 5])
        np.testing.assert_array_equal(found["slots"][i], alone["slots"])
        np.testing.assert_array_equal(found["kept"][i], alone["kept"])
    tokens = replay([TRACE, other], ["tova"], [SPLIT, 8])
    assert tokens["budget"].values.tolist() == [8, 8]


def test_a_sweep_keeps_budgets_by_unit_and_goes_on(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    grid = "h2o:recent=1|2,scores=full|cached"
    budgets: list[Any] = [SHARES, 5, SPLIT]
    found = sweep(TRACE, grid, budgets, store)
    check(found)
    expected = replay(TRACE, found["policy"].values.tolist(), budgets)
    np.testing.assert_array_equal(found["kept"].values, expected["kept"].values.reshape(4, 4, 3))
    assert found["split"].values.tolist() == ["by hand", "equal", "array 2"]
    assert found["tokens"].values[:, 2].tolist() == SPLIT.ravel().tolist()
    assert (sweep(TRACE, grid, budgets, store)["kept"] == found["kept"]).all()
    with pytest.raises(UserError, match="budgets"):
        sweep(TRACE, grid, [SHARES, 5, SPLIT + 1], store)
    again = budgets_from(json.loads(json.dumps(plain_budgets(budgets))))
    assert plain_budgets(again) == plain_budgets(budgets)


def test_the_optimum_under_a_split_is_that_of_each_unit(tmp_path: Path) -> None:
    best = h2osim.optimum(TRACE, [SPLIT, 4], prompt_len=6)
    check(best)
    for (i, row), j in product(enumerate(SPLIT), range(2)):
        alone = h2osim.optimum(TRACE, int(row[j]), prompt_len=6)
        for name in ("kept", "bound", "evicted_at"):
            np.testing.assert_array_equal(best[name][i, j, 0], alone[name][i, j, 0])
    path = save_certificate(best, TRACE, tmp_path / "c.cert")
    checked = h2osim.certify(path, TRACE)
    assert [one.budget for one in checked] == [3, 4, 20, 4, 9, 4, 1, 4]
    assert sum(one.kept for one in checked[::2]) == int(best["kept"][:, :, 0].sum())
    best["slots"][0, 0, 0] = 2  # the schedule holds three
    with pytest.raises(UserError, match="at most 2"):
        h2osim.certify(save_certificate(best, TRACE, path), TRACE)
    with pytest.raises(UserError, match="engine=cuda brackets all units at one budget"):
        h2osim.optimum(TRACE, [SPLIT], engine="cuda")


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.ones((3, 2), int), "3 rows, expected a row for each of the 2 layers 0, 1"),
        (np.ones((2, 3), int), "3 units a layer, expected 2"),
        (np.full((2, 2), 41), "budget 41: expected 1 to 40 tokens"),
        (np.full((2, 2), "x"), "expected numbers"),
        ([[1, 2], [3]], "expected numbers"),
    ],
)
def test_what_does_not_fit_is_one_line(array: Any, said: str) -> None:
    for call in (
        lambda: replay(TRACE, "tova", [array]),
        lambda: sweep(TRACE, "tova", [array]),
        lambda: h2osim.optimum(TRACE, [array]),
    ):
        with pytest.raises(UserError, match=said) as error:
            call()
        assert "\n" not in str(error.value)


# --- the commands ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("by_unit")
    TRACE.save(where / "t")
    write_budgets(where / "b.json", [SHARES, SHARES.scaled(0.4)])
    write_budgets(where / "other.json", UnitBudgets("o", SPLIT, (0, 1), "Another-Model"))
    return where


def test_every_command_takes_the_file(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    asked = f"@{folder / 'b.json'},@{folder / 'b.json'}:25%,6"
    for words in (
        ("compare", "-p", "h2o,tova", "--optimum"),
        ("optimum",),
        ("sweep", "-p", "tova"),
    ):
        command, *rest = words
        ended = run(command, folder / "t", *rest, "-b", asked)
        assert ended.code == 0, ended.err
        assert max(map(len, ended.out.splitlines())) <= 80 and "b" in ended.out.split()
    rows = json.loads(run("compare", folder / "t", "-p", "tova", "-b", asked, "-f", "json").out)
    assert len(rows) == 4 * 4
    place = [(r["budget"], r["split"], r["slots"]) for r in rows if r["layer"] == r["unit"] == 0]
    assert place == [(6, "b", 2), (16, "b", 5), (10, "b", 3), (6, "equal", 6)]
    best = json.loads(run("optimum", folder / "t", "-b", asked, "-f", "json").out)
    for row in rows:
        (one,) = (
            r for r in best if all(r[k] == row[k] for k in ("layer", "unit", "budget", "split"))
        )
        assert row["recall"] <= one["recall"] and row["slots"] == one["slots"]


def test_a_file_that_does_not_fit_ends_in_one_line(run: Run, folder: Path) -> None:
    other = f"@{folder / 'other.json'}"
    named = random_trace(12, 2, 4, 3, group_size=2)
    named.manifest["model"] = {"name": "This-Model"}
    named.save(folder / "named")
    fails(
        run("compare", folder / "named", "-b", other), "made for model Another-Model", "This-Model"
    )
    fails(run("compare", folder / "t", "--share", "head", "-b", f"@{folder / 'b.json'}"), "2 units")
    fails(
        run("optimum", folder / "t", "-b", f"@{folder / 'none.json'}"), "none.json", "No such file"
    )
    fails(
        run("sweep", folder / "t", "-p", "tova", "-b", f"@{folder / 'b.json'}:x"), "'x' is no bud"
    )
    fails(run("verify", folder / "t", "-b", other), "is no budget")
