"""The page of `h2osim report`: what tokens were worth, packed arrays, names that attack."""

from __future__ import annotations

import base64
import html.parser
import json
import re
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, fails
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, sixteenth_traces
from trace_cases import random_trace

import h2osim
from h2osim import cli
from h2osim.report.page import gather as gathering
from h2osim.report.page.data import page_data
from h2osim.report.page.gather import Contents, gather, over_time, prices
from h2osim.report.page.losses import lost_mass
from h2osim.report.page.packing import packed, rounded
from h2osim.report.page.render import require_libraries
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

POLICIES = ["h2o", "tova"]
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<b>",
    "\u2028",
    "{{ 7 * 7 }}",
    "${x}",
    "\n",
    '"',
    "<!--",
]


def hostile(n: int = 24, **more: Any) -> Trace:
    """A trace whose name and tokens would run if they were not text."""
    words = [HOSTILE[j % len(HOSTILE)] for j in range(n)]
    tokens = {"ids": list(range(n)), "text": words}
    name = "<img src=x onerror=alert(1)>"
    return random_trace(n, 2, 4, group_size=2, name=name, tokens=tokens, **more)


# --- what an eviction lost ------------------------------------------------------------------


@examples(40)
@given(sixteenth_traces(min_n=3, max_n=14), st.data())
def test_what_tokens_would_have_received_is_what_the_schedule_lost(trace: Trace, data: Any) -> None:
    """Token by token by the definition, and together the mass less what was kept: to the bit."""
    p = data.draw(st.integers(1, trace.n - 1), "prompt")
    budgets = [1, max(1, trace.n // 2)]
    found = h2osim.replay(trace, ["h2o:recent=1"], budgets, prompt_len=p)
    for u, unit in enumerate(trace.units()):
        at = divmod(u, found.sizes["unit"])
        gone = found["evicted_at"].values[(0, *at)]
        lost = lost_mass(unit, gone, p)
        whole, kept = int(found["mass"].values[at]), found["kept"].values[(0, *at)]
        assert lost.sum(axis=1).tolist() == (whole - kept).tolist()
        assert lost_mass(unit, np.full((1, trace.n), -1), p).sum() == whole  # nothing is kept
        rows = [unit.row(t) for t in range(trace.n)]
        for s in range(len(gone)):
            for j in range(trace.n):
                later = range(max(p, int(gone[s, j]) + 1, j), trace.n)
                assert lost[s, j] == sum(int(rows[t][j]) for t in later)


@pytest.fixture(scope="module")
def found() -> Contents:
    several = [
        random_trace(n, 2, 4, seed, group_size=2, name=f"t{n}") for seed, n in ((1, 20), (2, 26))
    ]
    return gather(several, [*POLICIES, "topk"], [3, 8])


def test_rasters_are_of_the_replays_and_the_optimum(found: Contents) -> None:
    # topk attends again to what it evicted
    assert found.schedules == [*POLICIES, "offline optimum"]
    assert found.budgets == [0, 1] and len(found.units) == 4
    for i, raster in enumerate(found.rasters):
        one, best = found.of_trace(i)
        n = found.traces[i].n
        for s, name in enumerate(POLICIES):
            mine = one["evicted_at"].sel(policy=name).values.reshape(4, 2, -1)[..., :n]
            np.testing.assert_array_equal(raster.gone[:, s], mine.transpose(1, 0, 2))
            lost = (one["mass"] - one["kept"].sel(policy=name)).values.reshape(4, 2).T / 2**24
            np.testing.assert_array_equal(raster.lost[:, s].sum(-1), lost)
        missed = (best["mass"] - best["kept"]).values.reshape(4, 2).T / 2**24
        np.testing.assert_array_equal(raster.lost[:, -1].sum(-1), missed)
        np.testing.assert_array_equal(raster.received.sum(-1), one["mass"].values.ravel() / 2**24)


def test_what_is_shown_over_time_is_of_the_text_alone(found: Contents) -> None:
    """Steps of the longer text are not in the shorter one's means."""
    for i in range(2):
        steps = found.of_trace(i)[0]["step_recall"].mean(["layer", "unit"])
        shown = over_time(found, i, "recall")
        assert shown.shape == (3, 2, found.traces[i].n - 1)  # few steps: each is a span
        values = steps.transpose("policy", "budget", "step").values[..., : found.traces[i].n - 1]
        np.testing.assert_array_equal(shown, values)
        assert np.isfinite(prices(found, i)).all()


def test_a_large_recording_keeps_the_middle_budget_and_some_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = random_trace(12, 5, 4, group_size=1)
    monkeypatch.setattr(gathering, "ROOM", 2 * 12 * 7)  # two schedules of 12 tokens in 7 units
    some = gather(many, ["h2o"], [2, 3, 5])
    assert some.budgets == [1]
    assert len(some.units) == 7 and some.units[0] == (0, 0) and some.units[-1] == (4, 3)
    assert some.rasters[0].gone.shape == (1, 2, 7, 12)


# --- packing --------------------------------------------------------------------------------


def unpack(made: dict[str, Any]) -> np.ndarray:
    """As unpacking.js does."""
    dtype = np.dtype(made["type"]).newbyteorder("<")
    planes = zlib.decompress(base64.b64decode(made["data"]))
    bytes_ = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, -1).T
    return np.ascontiguousarray(bytes_).view(dtype).reshape(made["shape"])


@examples(60)
@given(st.lists(st.integers(0, 2**17), min_size=1, max_size=40))
def test_whole_numbers_come_back(values: list[int]) -> None:
    array = np.array([values], np.int32)
    np.testing.assert_array_equal(unpack(packed(array)), array)


@examples(60)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40))
def test_fractions_come_back_to_a_four_thousandth(values: list[float]) -> None:
    array = np.array([values])
    back = unpack(packed(array))
    np.testing.assert_array_equal(back, rounded(array))
    np.testing.assert_allclose(back, array, rtol=2.0**-12)  # 11 bits of the fraction, to nearest


# --- the page -------------------------------------------------------------------------------

needs_libraries = pytest.mark.skipif(
    not all(map(find_spec, ("jinja2", "vl_convert"))),
    reason="needs jinja2 and vl-convert-python: pip install 'h2osim[report]'",
)


class Elements(html.parser.HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    hostile().save(folder / "t")
    words = ["report", str(folder / "t"), "-o", str(folder / "r.html"), "-b", "3,8"]
    assert cli.run(words) == 0
    return (folder / "r.html").read_text(encoding="utf-8")


@needs_libraries
def test_names_and_tokens_are_text_and_nothing_else(page: str) -> None:
    found = Elements(page)
    assert found.tags.count("script") == 4 and "img" not in found.tags and "b" not in found.tags
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    read = json.loads(found.scripts[0])
    assert read["traces"][0]["tokens"][: len(HOSTILE)] == HOSTILE
    assert "<img src=x" not in page and "49" not in Elements(page).scripts[1]


@needs_libraries
def test_the_page_loads_nothing(page: str) -> None:
    found = Elements(page)
    assert {"link", "script", "style"} <= set(found.tags)
    loads = [value for name, value in found.attributes if name in ("src", "href", "srcset")]
    assert all(value and value.startswith(("#", "data:")) for value in loads)
    assert "default-src 'none'" in page and len(page.encode()) < 2_000_000


@needs_libraries
def test_the_page_says_where_its_numbers_are_from(page: str) -> None:
    assert "h2osim report" in page and "sha256" in page
    assert "There is no output error here" in page
    assert re.search(r"the most of the 3 policies\s+compared", page)


def test_files_hold_every_number(found: Contents) -> None:
    made = page_data(found)
    text = zlib.decompress(base64.b64decode(made["files"]["policies.csv"]["data"])).decode()
    head, *rows = text.splitlines()
    assert head.startswith("trace,policy,params,layer,unit,budget") and len(rows) == 2 * 3 * 4 * 2
    assert [line["policy"] for line in made["curves"]][::2] == [
        "h2o", "tova", "topk (bound)", "offline optimum",
    ]  # fmt: skip
    assert made["units"][1] == {"layer": 0, "unit": 1, "heads": [2, 3]}


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "--output"),
        (("-o", "r.txt"), "expected one of .html"),
        (("-o", "no/r.html"), "the folder no does not exist"),
        (("-o", "r.html", "-b", "all"), "name a few budgets"),
        (("-o", "r.html", "-p", "h20"), "h20"),
        (("-o", "r.html", "--layers", "x"), "--layers"),
        (("-o", "r.html"), "no-such-trace"),
    ],
)
def test_mistakes_end_in_a_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(run("report", "no-such-trace", *words), part)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'h2osim\[report\]'"):
        require_libraries()


@needs_libraries
def test_one_token_is_refused_and_a_title_may_be_no_text(run: Run, tmp_path: Path) -> None:
    random_trace(1, 1, 1, name="one").save(tmp_path / "one")
    random_trace(9, 1, 1, name="nine").save(tmp_path / "nine")
    file = tmp_path / "r.html"
    ended = run("report", tmp_path / "nine", tmp_path / "one", "-o", file)
    fails(ended, "trace one: found 1 token, expected 2 or more")
    assert not file.exists()
    file.symlink_to(file)  # a link to itself is replaced
    ended = run("report", tmp_path / "nine", "-o", file, "-b", "2", "--title", "a \udc80")
    assert ended.code == 0
    assert "<h1>a \\udc80</h1>" in file.read_text(encoding="utf-8")
