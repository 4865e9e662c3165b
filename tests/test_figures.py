"""What figures show: bands, names beside the panels, lines told apart, differences, one scale."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, fails
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from trace_cases import random_trace

import h2osim
from h2osim import plot
from h2osim.report.best import summarise
from h2osim.report.figures.allocation import against_equal
from h2osim.report.figures.curves import lines_of
from h2osim.report.figures.drawing import line_style
from h2osim.report.figures.prices import smoothed, spans
from h2osim.report.figures.sweep import sweep_figure
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'h2osim[plot]'")

THIRTEEN = ["tova", "streaming", "recency", "random", "decay", "topk", "h2o"]
THIRTEEN += [f"h2o:recent={r}" for r in range(6)]


@pytest.fixture(scope="module")
def trace() -> Trace:
    return random_trace(24, 2, 4, 5, group_size=2)


def overlaps(figure: Any) -> list[str]:
    """Legends that lie on a panel, once the figure is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    pen = FigureCanvasAgg(figure)
    pen.draw()
    boxes = [one.get_window_extent() for one in figure.legends]
    for part in figure.subfigs:
        boxes += [one.get_window_extent() for one in part.legends]
    inside = [axes for axes in figure.axes if axes.get_legend() is not None]
    panels = [axes.get_window_extent() for axes in figure.axes if axes.get_visible()]
    assert boxes
    return [*map(str, inside), *(str(b) for b in boxes for p in panels if b.overlaps(p))]


@pytest.mark.parametrize("size", [None, (4.5, 5.5)])
def test_the_legend_is_never_on_the_curves(trace: Trace, size: tuple[float, float] | None) -> None:
    found = h2osim.replay(trace, THIRTEEN, [2, 20])
    assert not overlaps(plot.recall(found, size=size))


def test_nor_on_the_panels_of_other_figures(trace: Trace) -> None:
    assert not overlaps(plot.prices(h2osim.optimum(trace, [4, 8])))
    from h2osim.guarantees.verify import over_time

    series = {text: over_time(trace, text, 8, proved=True) for text in ("h2o", "tova")}
    assert not overlaps(plot.guarantees(series))


def test_thirteen_lines_differ_in_grey() -> None:
    """In marker and dashes, which are no matter of colour."""
    styles = [line_style(i) for i in range(13)]
    assert len({style["marker"] for style in styles}) == 13
    assert len({(style["marker"], str(style["linestyle"])) for style in styles}) == 13
    for one, other in itertools.pairwise(styles):
        assert one["linestyle"] != other["linestyle"] and one["color"] != other["color"]


def test_bands_hold_the_middle_half_or_the_interval(trace: Trace) -> None:
    found = h2osim.replay(trace, ["h2o", "tova"], [4, 8])
    units = found["recall"].values.reshape(2, -1, 2)
    for i, line in enumerate(lines_of(found, "recall")):
        np.testing.assert_array_equal(line.mean, units[i].mean(axis=0))
        ends = np.quantile(units[i], [0.25, 0.75], axis=0)
        np.testing.assert_array_equal([line.low, line.high], ends)
        assert (line.low < line.high).all()
    others = [random_trace(24, 2, 4, s, group_size=2) for s in (6, 7)]
    several = h2osim.replay([trace, *others], ["h2o"], [4, 8])
    (line,) = lines_of(several, "recall")
    means = several["recall"].mean(["layer", "unit"]).values.reshape(3, 2)
    assert (means.min(axis=0) <= line.low).all() and (line.high <= means.max(axis=0)).all()


@examples(60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12))
def test_smoothing_is_a_mean_of_neighbours(values: list[int], width: int) -> None:
    found = smoothed(np.array([values]), width)[0]
    w = min(width, len(values))
    for t in range(len(values)):
        near = values[max(0, t - (w - 1) // 2) : t + w // 2 + 1]
        # differences of running sums below 300, each rounded to a float64
        assert found[t] == pytest.approx(sum(near) / len(near), abs=1e-12)


@examples(60)
@given(st.integers(1, 40), st.integers(1, 12))
def test_spans_cover_every_step_once(steps: int, most: int) -> None:
    found = spans(np.eye(steps), most)
    assert found.shape == (steps, min(steps, most))
    sizes = 1 / found.max(axis=0)
    # whole numbers, but for the rounding of 1 / size
    assert sizes.sum() == pytest.approx(steps) and np.ptp(sizes) < 1 + 1e-9


def test_shares_are_set_against_equal_ones() -> None:
    found = against_equal(np.array([[8, 4], [2, 2]]))
    np.testing.assert_array_equal(found, [[1, 0], [-1, -1]])
    assert against_equal(np.array([[2, 0]]))[0, 1] == -np.inf


def test_a_recording_of_many_units_fits_a_page() -> None:
    many = random_trace(12, 30, 9, group_size=3)
    for figure in (
        plot.prices(h2osim.optimum(many, [3])),
        plot.allocation(h2osim.allocate(many, [0.25])),
    ):
        width, height = figure.get_size_inches()
        assert width <= 12 and height <= 12


def test_a_sweep_has_one_scale_and_no_ring_on_equal_cells(trace: Trace) -> None:
    texts = [f"h2o:recent={r}" for r in (0, 4)] + [f"streaming:sinks={s}" for s in (0, 1)]
    found = h2osim.sweep([trace], texts, [4, 24])
    figure = plot.sweep(found)
    images = [one for axes in figure.axes for one in axes.get_images()]
    assert len({image.get_clim() for image in images}) == 1
    whole = summarise(h2osim.sweep([trace], texts, [24]))  # nothing is ever evicted
    panels = [axes for axes in sweep_figure(whole).axes if axes.get_images()]
    assert len(panels) == 2 and not any(axes.get_lines() for axes in panels)
    assert all(axes.get_lines() for axes in figure.axes if axes.get_images())


def test_a_figures_look_can_be_asked_for(trace: Trace) -> None:
    found = h2osim.replay(trace, ["h2o"], [2, 4])
    figure = plot.recall(found, title="mine", size=(5, 3), x="log", y=(0.2, 0.9))
    assert figure.get_suptitle() == "mine"
    assert figure.get_size_inches().tolist() == [5, 3]
    assert figure.axes[0].get_xscale() == "log" and figure.axes[0].get_ylim() == (0.2, 0.9)
    assert plot.recall(found, title="").get_suptitle() == ""
    with pytest.raises(UserError, match="x: found 'lin'"):
        plot.recall(found, x="lin")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--plot-size", "3x4"), "found no --plot"),
        (("--plot", "a.svg", "--plot-size", "big"), "--plot-size: found 'big'"),
        (("--plot", "a.svg", "--plot-size", "3x400"), "each 1 to 100"),
        (("--plot", "a.svg", "--plot-axes", "z=log"), "--plot-axes: found 'z=log'"),
        (("--plot", "a.svg", "--plot-axes", "x=3:2"), "FROM:TO"),
        (("--plot", "a.svg", "--plot-axes", "y=-1e308:1e308"), "FROM:TO"),
        (("--plot", "a.svg", "--plot-axes", "y=log,y=0:2"), "expected above 0"),
    ],
)
def test_mistakes_end_in_a_line_before_any_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(run("compare", "no-such-trace", *words), part)
    assert not list(tmp_path.iterdir())


def test_the_command_draws_as_asked(run: Run, trace: Trace, tmp_path: Path) -> None:
    trace.save(tmp_path / "t")
    for ending, head in (("svg", b"<?xml"), ("pdf", b"%PDF")):
        path = tmp_path / f"f.{ending}"
        look = ["--plot-size", "5x3", "--plot-title", "Its name"]
        look += ["--plot-axes", "x=log,x=1:9,y=0:1"]
        ended = run("compare", tmp_path / "t", "-b", "2,4", "--plot", path, *look)
        assert ended.code == 0 and f"wrote {path}" in ended.err
        assert path.read_bytes().startswith(head)
    assert "Its name" in (tmp_path / "f.svg").read_text(encoding="utf-8")


def test_titles_are_text_and_warnings_are_lines(run: Run, trace: Trace, tmp_path: Path) -> None:
    """A name may hold what would be a broken formula, and bytes that are no text."""
    trace.save(tmp_path / "t")
    file = tmp_path / "a.svg"
    words = ("compare", tmp_path / "t", "--plot", file)
    ended = run(*words, "--plot-title", "$\\frac{$ \udc80")
    assert (ended.code, ended.err) == (0, f"wrote {file}\n")
    ended = run(*words, "--plot-title", "\u65e5", "--plot-size", "1x1")
    err = ended.err
    assert ended.code == 0 and err.count("\n") == 3 and err.endswith(f"wrote {file}\n")
    assert f"{file}: constrained_layout not applied" in err and f"{file}: Glyph 26085" in err
