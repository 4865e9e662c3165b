"""Tables of a recording of 30 layers × 3 KV groups × 3 heads fit 80 columns."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, fails

import h2osim
from h2osim import Trace, synth

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
    ("allocate", "--slots", "900", "-p", MANY.removesuffix(",snapkv,topk") + ",optimum"),
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
