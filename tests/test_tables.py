"""Tables of a recording of 30 layers × 3 KV groups × 3 heads fit 80 columns."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, fails
from rich.console import Console
from rich.table import Table

import h2osim
from h2osim import Trace, synth
from h2osim.report.by_place import by_tables
from h2osim.report.layouts import Name, in_parts, plain_table

LAYERS, GROUPS = 30, 3


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two texts of one model."""
    root = tmp_path_factory.mktemp("full")
    rng = np.random.default_rng(0)
    for seed, name in enumerate(("first", "second")):
        made = synth("powerlaw", 40, seed=seed, heads=9, group_size=3, layers=LAYERS)
        bits = np.stack([made.tensor(layer, "scores") for layer in made.layers])
        values = rng.standard_normal((LAYERS, GROUPS, 40, 2))
        trace = Trace.from_packed(bits, group_size=3, v=values, name=name)
        trace.save(root / name)
    return root


MANY = "h2o:recent=8,scores=full,tova,streaming:sinks=4,decay:gamma=.98,recency,snapkv,topk"
COMMANDS = [
    ("compare", "-p", MANY, "-b", "5%,10%,20%,40%"),
    ("compare", "-p", MANY, "-b", "5%,10%,20%,30%,40%", "--measure", "both", "--optimum"),
    ("compare", "-p", MANY, "-b", "5%,10%", "--by", "layer"),
    ("compare", "-p", "h2o,tova", "-b", "5%,10%", "--by", "unit"),
    ("compare", "-p", MANY, "-b", "5%,10%", "--by", "step"),
    ("compare", "-p", MANY, "--target-recall", "0.9"),
    ("optimum", "-b", "2,4,6,8,12,16,24,32"),
    ("optimum", "-b", "4,8", "--by", "unit", "--output-error"),
    ("allocate", "--slots", "900", "-p", "h2o:recent=8,scores=full,tova,recency,streaming,optimum"),
    ("verify", "-b", "4"),
    ("verify", "-b", "4", "--details"),
    ("info",),
    ("sweep", "-p", "h2o:recent=0..16:4,scores=full|cached", "-b", "10%,20%"),
]
#: What is left of a policy's name where it breaks amid a word.
PIECES = {name[at:] for name in MANY.split(",") for at in range(1, len(name))} - {
    part for name in MANY.split(",") for part in re.findall("[^:=]+", name)
}
#: Where rows are units, or a page is long by its nature.
LONG = {"unit", "--details", "info"}


def cases() -> Iterator[Any]:
    """Every command on one trace, and on two: most of these with the long tests."""
    for words in COMMANDS:
        for several in (False, True):
            quick = not several or words[0] in ("optimum", "allocate")
            marks = [] if quick else [pytest.mark.nightly]
            yield pytest.param(words, several, marks=marks, id=f"{' '.join(words)[:40]} {several}")


@pytest.mark.parametrize(("words", "several"), list(cases()))
def test_it_fits(
    run: Run, full: Path, words: tuple[str, ...], several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command, *rest = words
    if command == "verify":
        rest += ["--layers", "0,1,2"]
    ended = run(command, full if several else full / "first", *rest)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert max(map(len, (line.rstrip() for line in lines))) <= 80
    assert "…" not in ended.out and "━┳━┳━┳━┳" not in ended.out
    assert "││" not in ended.out  # a column without room
    for line in lines:  # a name goes on behind a sign, not amid a word
        ended_at = [cell.strip() for cell in line.split("│") if re.search("[a-z]", cell)]
        assert not [cell for cell in ended_at if cell in PIECES], line
    if not LONG.intersection(words):
        assert len(lines) <= 150


@pytest.mark.parametrize("words", [("policies",), ("traces",), ("synth",)])
def test_lists_fit(run: Run, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = run(*words).out
    assert max(map(len, out.splitlines())) <= 80 and "…" not in out
    assert len(out.splitlines()) <= 150 or words == ("synth",)


def test_bounds_are_means_over_units_then_traces(run: Run, full: Path) -> None:
    found = h2osim.optimum(h2osim.traces.catalogue.open_traces([full]), [4, 8])
    rows = [line.split("│")[1:-1] for line in run("optimum", full, "-b", "4,8").out.splitlines()]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if row}
    means = found["recall"].mean(("layer", "unit"))
    assert cells["all"] == [f"{x:.4f}"[1:] for x in means.mean("trace").values]
    layer = found["recall"].sel(layer=17).mean(("trace", "unit")).values
    assert cells["17"] == [f"{x:.4f}"[1:] for x in layer]
    low, high = means.values.min(axis=0), means.values.max(axis=0)  # two traces: their ends
    assert cells["95 % from"] == [f"{x:.4f}"[1:] for x in low]
    assert cells["to"] == [f"{x:.4f}"[1:] for x in high]
    assert len(cells) == 3 + LAYERS
    by = run("optimum", full, "-b", "4", "--by", "trace").out
    assert "first" in by and "second" in by
    fails(run("optimum", full / "first", "-b", "4", "--by", "trace"), "expected several")


def test_slots_of_layers_are_those_of_their_units(run: Run, full: Path) -> None:
    policies = ["optimum", "tova"]
    found = h2osim.allocate(h2osim.open_trace(full / "first"), 900, policies=policies)
    found = found.isel(budget=0)
    out = run("allocate", full / "first", "--slots", "900", "-p", "optimum,tova").out
    rows = [line.split("│")[1:-1] for line in out.splitlines()]
    layers = {
        row[0].strip(): [int(x) for x in row[1:]]
        for row in rows
        if len(row) == 7 and row[0].strip().isdecimal()
    }
    assert len(layers) == LAYERS
    of = found["slots"].sum("unit")
    best = [of.sel(policy=name, split="best", layer=7).item() for name in ("optimum", "tova")]
    rules = ("equal", "pyramid", "reverse-pyramid", "adakv")
    rest = [of.sel(policy="optimum", split=rule, layer=7).item() for rule in rules]
    assert layers["7"] == best + rest


def test_allocate_and_info_and_verify_take_several(run: Run, full: Path) -> None:
    two = json.loads(run("allocate", full, "--slots", "900", "-f", "json").out)
    for name in ("first", "second"):
        one = json.loads(run("allocate", full / name, "--slots", "900", "-f", "json").out)
        own = [r for r in two if r["trace"] == name]
        assert [r["slots"] for r in one if r["split"] == "best"] == [
            r["slots"] for r in own if r["split"] == "oracle"
        ]
        for rule in ("equal", "adakv"):
            assert [{"trace": name} | r for r in one if r["split"] == rule] == [
                r for r in own if r["split"] == rule
            ]
    facts = json.loads(run("info", full, "-f", "json").out)
    assert [one["name"] for one in facts] == ["first", "second"]
    words = ("-b", "4", "--layers", "0", "-f", "json")
    lines = json.loads(run("verify", full, *words).out)
    first = json.loads(run("verify", full / "first", *words).out)
    assert [{"trace": "first"} | line for line in first] == [
        line for line in lines if line["trace"] == "first"
    ]
    slots = ("allocate", full, "--slots", "900")
    fails(run(*slots, "--plot", full / "x.png"), "expected one")
    short = synth("powerlaw", 5, heads=9, group_size=3, layers=LAYERS).save(full.parent / "short")
    fails(run("allocate", full / "first", short, "--slots", "900"), "total 900", "to 450")


def test_what_the_optimum_is_of_is_said(run: Run, full: Path) -> None:
    words = ("compare", full / "first", "-b", "8", "--optimum")
    assert "is not known" not in run(*words).out
    said = " ".join(run(*words, "--measure", "error").out.split())
    assert "recall of the attention mass, against the offline optimum; what output error" in said


# --- layouts --------------------------------------------------------------------------------


def printed(shown: Any, width: int) -> list[str]:
    screen = Console(width=width, file=io.StringIO())
    with screen.capture() as capture:
        screen.print(shown)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_names_break_behind_their_signs() -> None:
    name = Name("h2o-mean:recent=32,scores=full")
    assert printed(name, 80) == ["h2o-mean:recent=32,scores=full"]
    assert printed(name, 20) == ["h2o-mean:recent=32,", "scores=full"]
    assert printed(name, 10) == ["h2o-mean:", "recent=32,", "scores=", "full"]
    assert printed(name, 7) == ["h2o-", "mean:", "recent=", "32,", "scores=", "full"]


def test_what_is_too_wide_comes_in_parts() -> None:
    def table(some: Any) -> Table:
        made = plain_table(None)
        for i in some:
            made.add_column("wide" * 3 + str(i), no_wrap=True)
        return made

    parts = list(in_parts(Console(width=40), range(5), table))
    assert [[str(c.header)[-1] for c in part.columns] for part in parts] == [
        ["0", "1"], ["2", "3"], ["4"]
    ]  # fmt: skip


def test_a_title_may_be_wider_than_its_table() -> None:
    made = plain_table("three words above", "and five words beneath it")
    made.add_column("x")
    lines = printed(made, 80)
    assert lines[0] == "three words above" and lines[-1] == "and five words beneath it"
    assert made.title == "three words above"


def test_a_layers_row_has_a_column_a_policy(full: Path) -> None:
    found = h2osim.replay(h2osim.open_trace(full / "first"), ["recency", "tova"], [4, 8])
    lines = printed(by_tables(Console(width=80), found, "layer", "recall"), 80)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    means = found["recall"].mean("unit").transpose("budget", "layer", "policy").values
    got = [row[2:] for row in rows if row]  # tova first, which keeps more
    for row, (recency, tova) in zip(got, means.reshape(-1, 2), strict=True):
        assert [cell.split()[0] for cell in row] == [f"{x:.3f}"[1:] for x in (tova, recency)]
