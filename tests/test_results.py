"""Results carry what they mean: the schema, facts about policies, files, tables and figures.

docs/results.md is written from the schema, after it was changed, by

    python tests/test_results.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from commands import Run

import h2osim
from h2osim import Policy, Trace, UserError, replay, sweep, synth
from h2osim.replays import results
from h2osim.report import best, comparison, figures, files, frames
from h2osim.support.parameters import Param

TRACE = synth("powerlaw", 40, seed=3, heads=4, group_size=2, layers=2)

#: Two traces of one shape and two lengths.
ALIKE = [TRACE, synth("drift", 30, seed=1, heads=4, group_size=2, layers=2)]


def _keeps_late(pos: int, t: int, weight: float) -> float:
    return weight * pos - t


#: A policy as a notebook defines it: in no registry, under any name.
MINE = Policy(
    name="mine",
    summary="the newest",
    source="a notebook",
    rank=_keeps_late,
    params=(Param("weight", 1.0, "weight of the position", "float", 0.5, 4),),
)


def _newest(pos: int) -> float:
    return float(pos)


#: An online policy whose name in the library is that of a bound.
TOPK = Policy(name="topk", summary="the newest", source="a notebook", rank=_newest)


def optimum() -> xr.Dataset:
    return h2osim.optimum(TRACE, [5, 9])


FORMS: dict[str, Callable[[], xr.Dataset]] = {
    "replay": lambda: replay(TRACE, ["h2o", MINE, "topk"], [4, 0.5], step_recall=True),
    "beside": lambda: frames.with_optimum(
        replay(TRACE, ["h2o", "streaming"], [5, 9]),
        optimum(),
        replay(TRACE, "streaming", [5, 9])["recall"].isel(policy=0),
    ),
    "several": lambda: replay(ALIKE, ["h2o", MINE], [4, 0.5], step_recall=True),
    "optima": lambda: h2osim.optimum(ALIKE, [0.1, 0.5]),
    "splits": lambda: h2osim.allocate(ALIKE, 0.2, policies=["tova"]),
    "targets": lambda: h2osim.budget_for_recall(replay(ALIKE, ["tova", MINE], "all"), 0.7),
    "sweep": lambda: sweep([TRACE, synth("drift", 30)], "h2o:recent=0|2,scores=full|cached", "all"),
    "shares": lambda: sweep([TRACE, synth("drift", 30)], ["tova", MINE], [0.1, 0.5]),
    "optimum": optimum,
    "allocation": lambda: h2osim.allocate(TRACE, 30, policies=["tova", MINE]),
    "target": lambda: h2osim.budget_for_recall(replay(TRACE, ["tova", MINE], "all"), 0.7),
}


@pytest.fixture(scope="module", params=list(FORMS))
def result(request: pytest.FixtureRequest) -> xr.Dataset:
    return FORMS[request.param]()


# --- the schema -----------------------------------------------------------------------------


def test_every_result_keeps_to_the_table(result: xr.Dataset) -> None:
    results.check(result)
    for name in result.variables:
        if name in results.VARIABLES or name in results.COORDINATES:
            assert result[name].attrs["long_name"]


def spoiled() -> list[tuple[str, Callable[[xr.Dataset], xr.Dataset]]]:
    return [
        ("form", lambda r: r.assign_attrs(form="table")),
        ("without held", lambda r: r.drop_vars("held")),
        ("unknown variable more", lambda r: r.assign(more=1)),
        ("kept is float64", lambda r: r.assign(kept=r["kept"] * 1.0)),
        ("recall over", lambda r: r.assign(recall=r["recall"].transpose())),
        ("unknown coordinate odd", lambda r: r.assign_coords(odd=("budget", [1] * 2))),
        ("policy is", lambda r: r.assign_coords(policy=[0, 1])),
        ("without coordinates kind", lambda r: r.drop_vars("kind")),
        ("attribute n", lambda r: r.assign_attrs(n="40")),
        ("attribute text_sha256", lambda r: r.assign_attrs(text_sha256=None)),
    ]


@pytest.mark.parametrize(("words", "spoil"), spoiled(), ids=[words for words, _ in spoiled()])
def test_what_does_not_keep_to_the_table_is_named(
    words: str, spoil: Callable[[xr.Dataset], xr.Dataset]
) -> None:
    with pytest.raises(ValueError, match=words):
        results.check(spoil(replay(TRACE, ["h2o", "tova"], [4, 8])))


def test_recall_is_the_quotient_of_the_integers() -> None:
    found = replay(TRACE, ["h2o", "tova"], [4, 8])
    whole = np.broadcast_to(found["mass"].values[None, :, :, None], found["kept"].shape)
    pairs = zip(found["kept"].values.ravel(), whole.ravel(), strict=True)
    exact = [int(a) / int(b) for a, b in pairs]
    assert found["recall"].values.ravel().tolist() == exact
    mass = [int(u.row_masses()[1:].sum()) for u in TRACE.units()]
    assert found["mass"].values.ravel().tolist() == mass
    best = h2osim.allocate(TRACE, 4 * 4, policies=["optimum", "h2o"], share="group")
    loss = best["loss"].sel(split="equal").isel(budget=0)
    np.testing.assert_array_equal(loss.sel(policy="h2o"), 1 - found["recall"][0, :, :, 0])
    assert (loss.sel(policy="h2o") >= loss.sel(policy="optimum")).all()


def test_facts_of_each_policy_travel_with_it() -> None:
    found = replay(TRACE, ["h2o:recent=2", "topk", "future", "full", MINE], 4, engine="numba")
    assert found["kind"].values.tolist() == ["online", "bound", "oracle", "online", "online"]
    assert found["rule"].values.tolist() == ["h2o", "topk", "future", "full", "mine"]
    assert found["within_budget"].values.tolist() == [True, True, True, False, True]
    assert found["readmits"].values.tolist() == [False, True, False, False, False]
    assert found["windows"].values.tolist() == ["recent", "", "", "", ""]
    assert found["source_share"].values.tolist() == [""] * 5
    assert set(found["engine"].values) == {"numba"}
    params = [json.loads(text) for text in found["params"].values]
    assert params[0] == h2osim.all_policies()["h2o"].with_params(recent=2).values
    assert params[-1] == {"weight": 1.0}


def test_attributes_and_tokens_say_where_a_result_came_from(folder: Path) -> None:
    import hashlib

    trace = h2osim.open_trace("prose")
    assert trace.path is not None
    found = replay(trace, "recency", 64, layers=[trace.layers[0]])
    assert found.attrs["h2osim"] == h2osim.__version__
    digest = hashlib.sha256((trace.path / "trace.json").read_bytes()).hexdigest()
    assert (found.attrs["trace"], found.attrs["trace_sha256"]) == ("prose", digest)
    assert found.attrs["model"].startswith("SmolLM2")
    assert found.attrs["text_sha256"] == trace.manifest["text"]["sha256"]
    assert found["token"].values.tolist() == list(range(trace.n))
    assert found["token_text"].values.tolist() == trace.manifest["tokens"]["text"]
    assert "token_text" not in replay(TRACE, "recency", 4)
    # In memory, equal traces have equal digests and others do not.
    again, other = (synth("powerlaw", 40, seed=s, heads=4, group_size=2, layers=2) for s in (3, 4))
    digests = [replay(t, "recency", 4).attrs["trace_sha256"] for t in (TRACE, again, other)]
    assert digests[0] == digests[1] != digests[2]


# --- the page -------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "results.md"

HEAD = """# Results

<!-- Written by `python tests/test_results.py` from h2osim/replays/results.py; a test compares. -->

`replay`, `sweep`, `optimum`, `allocate`, `budget_for_recall` and `evaluate` return xarray Datasets
of the forms below; `--output FILE.nc` saves one whole (NetCDF 4, `xarray.open_dataset` reads it).
`.csv`, `.json` and `.parquet` hold a row for each place, with the attributes in every row and
without what has an entry for each token or step. Masses are integers; a recall is a quotient of two
of them, rounded once.
"""

SEVERAL = """\
`replay`, `optimum`, `allocate` and `budget_for_recall` on several traces (of the same layers and
units) give the same forms with a dimension `trace` before all others; what is an attribute of one
trace is then a coordinate on `trace`, as in a sweep. Where lengths differ, `budget` holds what was
asked for, and `tokens[trace, budget]` and `fraction[trace, budget]` what it comes to. What a trace
is too short for is NaN; `kept` and `evicted_at` are -1 there, `held` 0."""


def page() -> str:
    """What docs/results.md has to be."""

    def row(*cells: str) -> str:
        return f"| {' | '.join(cell.replace('|', ' or ') for cell in cells)} |"

    def entry(name: str, one: results.Variable) -> str:
        return row(f"`{name}`", one.dtype, one.unit, one.meaning)

    head = [row("name", "type", "unit", "meaning"), "|---|---|---|---|"]
    lines = [HEAD, "## Variables", "", *head]
    lines += [entry(name, one) for name, one in results.VARIABLES.items()]
    forms = [row("form", "variables and their dimensions"), "|---|---|"]
    lines += ["", "## Where they lie", "", *forms]
    for form, dims in results.FORMS.items():
        shapes = [f"`{name}[{', '.join(on)}]`" for name, on in dims.items()]
        lines.append(row(form, ", ".join(shapes)))
    optional = ", ".join(f"`{name}`" for name in sorted(results.OPTIONAL))
    lines += ["", f"Only where asked for: {optional}.", "", "## Coordinates", "", *head]
    lines += [entry(name, one) for name, (_, one) in results.COORDINATES.items()]
    names = ", ".join(f"`{name}`" for name in results.ATTRIBUTES)
    lines += ["", "## Attributes", "", f"{names}; unknown ones are empty.", ""]
    for form, beside in results.BESIDE.items():
        several = ", ".join(f"`{name}`" for name in sorted(beside))
        lines.append(f"Of {form} results these are coordinates instead: {several}.")
    lines += ["", "## Several traces", "", *SEVERAL.splitlines()]
    return "\n".join(lines) + "\n"


def test_the_page_says_what_the_schema_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python tests/test_results.py`"


# --- files ----------------------------------------------------------------------------------


def test_netcdf_gives_back_the_same(result: xr.Dataset, tmp_path: Path) -> None:
    path = files.save_results(result, tmp_path / "r.nc")
    back = xr.load_dataset(path)
    results.check(back)
    xr.testing.assert_identical(back, result)
    for name in result.variables:
        assert back[name].dtype.kind in (result[name].dtype.kind, "O"), name


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_rows_give_back_numbers_facts_and_attributes(
    result: xr.Dataset, ending: str, tmp_path: Path
) -> None:
    read: dict[str, Callable[[Path], pd.DataFrame]] = {
        "csv": lambda p: pd.read_csv(p, keep_default_na=False, na_values=["", "nan"]),
        "json": lambda p: pd.DataFrame(json.loads(p.read_text(encoding="utf-8"))),
        "parquet": pd.read_parquet,
    }
    back = read[ending](files.save_results(result, tmp_path / f"r.{ending}"))
    form = result.attrs["form"]
    dims = list(results.dims_of(form, next(iter(results.FORMS[form])), "trace" in result.dims))
    whole = back.set_index(dims).to_xarray()
    for name, variable in result.drop_dims(["token", "step"], errors="ignore").variables.items():
        if name in dims or name == "params":
            continue
        expected = result[name].broadcast_like(result[dims].coords.to_dataset()).transpose(*dims)
        found = whole[name].sel({dim: result[dim].values for dim in dims})
        if variable.dtype.kind in "OU":
            assert found.fillna("").values.tolist() == expected.values.tolist(), name
        else:
            np.testing.assert_array_equal(found.values, expected.values, str(name))
        if variable.dtype.kind in "iub":
            assert back[name].dtype.kind == variable.dtype.kind.replace("u", "i"), name
    for name, value in result.attrs.items():
        column = back[name] if isinstance(value, int | float) else back[name].astype(object)
        assert (column.where(column.notna(), "") == value).all(), name


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="results file"):
        files.save_results(optimum(), tmp_path / "r.xls")
    with pytest.raises(UserError, match="figure file"):
        files.save_figure(figures.recall_figure(replay(TRACE, MINE, 4)), tmp_path / "r.bmp")
    assert not list(tmp_path.iterdir())


def test_commands_leave_their_command_line(run: Run, folder: Path, tmp_path: Path) -> None:
    for words in (
        ("compare", folder, "-p", "tova", "-b", "4"),
        ("compare", folder, "-p", "tova", "-b", "4", "--optimum"),
        ("optimum", folder, "-b", "4"),
        ("allocate", folder, "--slots", "30"),
    ):
        path = tmp_path / "r.nc"
        assert run(*words, "-o", path).code == 0
        found = xr.load_dataset(path)
        results.check(found)
        assert found.attrs["command"].startswith(f"h2osim {words[0]} ")
        assert str(path) in found.attrs["command"]
    store = tmp_path / "s.zarr"
    assert run("sweep", folder, "-p", "tova", "-b", "4", "-o", store).code == 0
    assert h2osim.open_sweep(store).attrs["command"].startswith("h2osim sweep ")
    results.check(h2osim.open_sweep(store))


# --- policies that are in no registry -------------------------------------------------------


def shown(table: Any) -> dict[str, list[str]]:
    """A table's cells, row by row, by the policy's name."""
    columns = [list(map(str, column.cells)) for column in table.columns]
    place = [str(column.header) for column in table.columns].index("policy")
    return {columns[place][i]: [c[i] for c in columns] for i in range(len(columns[0]))}


def labels(figure: Any) -> list[str]:
    return [line.get_label() for line in figure.axes[0].get_lines()]


def test_a_policy_of_a_notebook_goes_all_the_way(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'h2osim[plot]'")
    found = replay(TRACE, [MINE, MINE.with_params(weight=2.0), "topk", "future"], [4, 8])
    rows = shown(comparison.comparison_table(found))
    assert rows["mine"][0] == rows["mine:weight=2.0"][0] == "1="  # both keep the newest
    assert rows["topk"][0] == rows["future"][0] == "–"
    assert rows["mine"][-1] == "" and rows["topk"][-1] == "bound"
    records = frames.comparison_records(found)
    assert [r["params"] for r in records if r["policy"] == "mine:weight=2.0"] == [
        {"weight": 2.0}
    ] * (len(records) // 4)
    assert sorted(labels(figures.recall_figure(found))) == sorted(
        ["mine", "mine:weight=2.0", "topk (bound)", "future (oracle)"]
    )
    every = replay(TRACE, [MINE], "all")
    assert {r["policy"] for r in frames.target_records(h2osim.budget_for_recall(every, 0.5))} == {
        "mine"
    }
    swept = best.summarise(sweep(TRACE, [MINE, MINE.with_params(weight=2.0), "topk"], [4, 8]))
    records = best.best_records(swept, 5)
    assert {one["policy"] for one in records} == {"mine", "mine:weight=2.0"}
    assert [axes.get_xlabel() for axes in figures.sweep_figure(swept).axes[:1]] == ["budget"]


def test_an_online_policy_named_topk_is_ranked_as_one(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'h2osim[plot]'")
    found = replay(TRACE, [TOPK, "recency", "future"], [4, 8])
    rows = shown(comparison.comparison_table(found))
    # The same rule as recency: equals share a rank, in the order in which they were asked for.
    assert [rows[name][0] for name in ("topk", "recency", "future")] == ["1=", "1=", "–"]
    assert rows["topk"][-1] == ""
    assert set(labels(figures.recall_figure(found))) == {"topk", "recency", "future (oracle)"}
    records = best.best_records(best.summarise(sweep(TRACE, [TOPK], [4])), 3)
    assert [one["policy"] for one in records] == ["topk"]
    saved = pd.read_csv(files.save_results(found, tmp_path / "r.csv"))
    assert set(saved[saved["policy"] == "topk"]["kind"]) == {"online"}


def test_figures_are_returned_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure", reason="needs matplotlib").Figure
    monkeypatch.chdir(tmp_path)
    made = [
        figures.recall_figure(replay(TRACE, MINE, "all"), "a title"),
        figures.prices_figure(optimum()),
        figures.allocation_figure(h2osim.allocate(TRACE, 30)),
        figures.attention_figure(Trace.from_scores(np.eye(6))),
    ]
    assert all(isinstance(one, figure) for one in made)
    assert not list(tmp_path.iterdir())
    for ending in files.PLOT_SUFFIXES:
        assert files.save_figure(made[0], tmp_path / f"f{ending}").stat().st_size


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
