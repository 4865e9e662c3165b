"""What a notebook shows: objects as HTML, results as pandas tables, bars of long calls."""

from __future__ import annotations

import io
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from trace_cases import random_trace

import h2osim
from h2osim.policies.registry import find
from h2osim.support import bars

TRACE = random_trace(16, 2, 4, group_size=2)


# --- objects --------------------------------------------------------------------------------


def test_objects_show_their_facts() -> None:
    shown = TRACE._repr_html_()
    for part in ("Trace t0", "16", "4 in 2 KV heads", "memory"):
        assert part in shown
    policy = find("h2o")
    for param in policy.takes:
        assert f"<td>{param.name}</td>" in policy._repr_html_()
    budgets = h2osim.UnitBudgets("mine", np.array([[3, 5], [7, 9]]), layers=(0, 1))
    assert "<tr><td>1</td><td>7</td><td>9</td></tr>" in budgets._repr_html_()


def test_names_of_others_are_text() -> None:
    tokens = {"ids": [0] * 16, "text": ["<script>"] * 16}
    evil = random_trace(16, 1, 1, name="<b>x</b>", tokens=tokens)
    assert "<script>" not in evil._repr_html_() and "<b>x" not in evil._repr_html_()


def test_a_figure_is_an_image() -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'h2osim[plot]'")
    figure = h2osim.plot.recall(h2osim.replay(TRACE, "h2o", [3, 8]), size=(5, 3))
    image, shown = figure._repr_png_()
    assert image.startswith(b"\x89PNG") and shown == {"width": 360, "height": 216}
    assert int.from_bytes(image[16:20]) == 720  # its own width in pixels
    assert pickle.loads(pickle.dumps(figure)).get_size_inches().tolist() == [5, 3]


# --- tables ---------------------------------------------------------------------------------


def test_a_result_reads_as_a_table() -> None:
    found = h2osim.replay(TRACE, ["h2o", "tova"], [3, 8])
    table = h2osim.frame(found)
    assert table.index.names == ["policy", "layer", "unit", "budget"]
    assert list(table.columns) == ["recall", "kept", "held", "mass", "kind"]
    assert table.loc[("tova", 1, 0, 8), "recall"] == found["recall"].sel(
        policy="tova", layer=1, unit=0, budget=8
    )
    assert table.attrs["trace"] == "t0" and table.attrs["trace_sha256"]
    means = table["recall"].unstack("budget").groupby("policy").mean()
    np.testing.assert_allclose(means, found["recall"].mean(["layer", "unit"]), rtol=1e-15)


def test_other_results_are_tables_too() -> None:
    others = [TRACE, random_trace(20, 2, 4, 1, group_size=2)]
    several = h2osim.frame(h2osim.replay(others, "h2o", [0.25]))
    assert several.index.names == ["trace", "policy", "layer", "unit", "budget"]
    assert several["tokens"].unique().tolist() == [4, 5]
    assert h2osim.frame(h2osim.optimum(TRACE, [3])).index.names == ["layer", "unit", "budget"]
    split = h2osim.frame(h2osim.allocate(TRACE, [0.5]))
    assert split.index.names == ["policy", "split", "budget", "layer", "unit"]
    assert split["slots"].groupby("split").sum().nunique() == 1


@pytest.mark.parametrize("make", ["replay", "optimum", "allocate", "sweep"])
def test_every_result_says_where_it_is_from(make: str) -> None:
    found = {
        "replay": lambda: h2osim.replay(TRACE, "h2o", [3]),
        "optimum": lambda: h2osim.optimum(TRACE, [3]),
        "allocate": lambda: h2osim.allocate(TRACE, [0.5]),
        "sweep": lambda: h2osim.sweep([TRACE], ["h2o"], [3]),
    }[make]()
    known = {**found.attrs, **{name: one.values for name, one in found.coords.items()}}
    assert found.attrs["h2osim"] == h2osim.__version__
    assert {"form", "trace", "trace_sha256", "model", "text", "text_sha256", "n", "share"} <= set(
        known
    )


# --- bars -----------------------------------------------------------------------------------


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a bar is drawn on."""
    from rich.console import Console

    drawn = io.StringIO()
    terminal = Console(file=drawn, force_terminal=True, width=80, _environ={})
    monkeypatch.setattr(bars, "_console", lambda: terminal)
    yield drawn
    h2osim.progress_bars(None)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that runs the cells of a notebook, as IPython shows it."""
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)


def test_no_bar_outside_notebooks_unless_asked_for(screen: io.StringIO) -> None:
    assert not bars.in_notebook()
    h2osim.replay(TRACE, "h2o", [3])
    assert not screen.getvalue()
    h2osim.progress_bars(True)
    h2osim.replay(TRACE, "h2o", [3])
    assert "replaying" in screen.getvalue()


def test_a_bar_in_notebooks_unless_turned_off(screen: io.StringIO, notebook: None) -> None:
    assert bars.in_notebook()
    h2osim.optimum(TRACE, [3])
    assert "solving" in screen.getvalue()
    h2osim.progress_bars(False)
    before = screen.getvalue()
    h2osim.optimum(TRACE, [3])
    assert screen.getvalue() == before


def test_a_callback_takes_the_place_of_the_bar(screen: io.StringIO, notebook: None) -> None:
    seen = []
    h2osim.replay(TRACE, "h2o", [3], progress=lambda done, total, what: seen.append(what))
    assert seen and not screen.getvalue()


def test_one_bar_at_a_time(screen: io.StringIO, notebook: None) -> None:
    """A long call that makes others shows its own."""

    @bars.with_bar
    def outer(progress: Any = None) -> None:
        progress(1, 2, "outside")
        h2osim.replay(TRACE, "h2o", [3])

    outer()
    assert "outside" in screen.getvalue() and "replaying" not in screen.getvalue()
    h2osim.replay(TRACE, "h2o", [3])  # the next has one again
    assert "replaying" in screen.getvalue()


def test_a_mistake_ends_the_bar(screen: io.StringIO, notebook: None) -> None:
    with pytest.raises(h2osim.UserError):
        h2osim.replay(TRACE, "h20", [3])
    h2osim.replay(TRACE, "h2o", [3])
    assert "replaying" in screen.getvalue()


def test_functions_with_bars_stay_functions() -> None:
    assert pickle.loads(pickle.dumps(h2osim.replay)) is h2osim.replay
    assert (h2osim.replay.__doc__ or "").startswith("Replay recorded attention")
