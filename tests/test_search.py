"""Sharing out budgets, the open-loop stage and its store, and the page of a search."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from commands import Run, fails
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from h2osim.studies.search import page as which_policy
from h2osim.studies.search.asked import Search
from h2osim.studies.search.closed_loop import Stages, worth
from h2osim.studies.search.losses import SHARES, Found
from h2osim.studies.search.sharing import (
    GRID,
    Numbers,
    Sharing,
    lost,
    on_the_grid,
    split_budget,
    weighed,
)
from h2osim.studies.search.trials import Trial, open_loop, shared, split_rows
from h2osim.studies.search.tuning import tuned
from h2osim.support.errors import UserError

optuna = pytest.importorskip("optuna", reason="a search needs the extra `search` (optuna)")

WINNER = "two-speed:gamma=0.99,mix=0.5,value=1,recent=0.25,heads=max,join=max"


@st.composite
def convex(draw: st.DrawFn) -> np.ndarray:
    """Convex curves at SHARES and 1, where nothing is lost, as losses [1, budgets, 1, units]."""
    at = np.array([*SHARES, 1.0])
    units = draw(st.integers(1, 3))
    falls = st.lists(st.integers(0, 9), min_size=len(SHARES), max_size=len(SHARES))
    slopes = np.array([sorted(draw(falls), reverse=True) for _ in range(units)], float)
    drops = slopes * np.diff(at)
    return np.cumsum(drops[:, ::-1], axis=1)[:, ::-1].T[None, :, None, :]


@examples(60)
@given(convex(), st.sampled_from([0.01, 0.02, 0.1, 0.45, 0.7, 1.0]))
def test_budgets_are_shared_out_so_that_least_is_lost(losses: np.ndarray, mean: float) -> None:
    curves = on_the_grid(losses)[0]
    units = len(curves)
    split = split_budget(curves, mean)
    assert split.mean() == pytest.approx(mean)  # sums of thousandths in float64
    assert (split >= 0.01 - 1e-12).all() and (split <= 1 + 1e-12).all()
    # Of convex curves: no two units lose less together if one hands slots to the other.
    slots = np.rint(split * GRID).astype(int)
    fall = [one[k] - one[min(k + 1, GRID)] for one, k in zip(curves, slots, strict=True)]
    rise = [one[k - 1] - one[k] for one, k in zip(curves, slots, strict=True)]
    for a, b in itertools.permutations(range(units), 2):
        if slots[a] < GRID and slots[b] > 10:
            assert fall[a] <= rise[b] + 1e-9  # losses are rounded to a 2^-40th of the largest


def test_what_lies_above_the_hull_is_not_stopped_at() -> None:
    # Unit 0 gains nothing before 0.45, and then all; unit 1 gains a little at each.
    at = np.array([*SHARES, 1.0])
    one, two = np.where(at < 0.45, 10.0, 0.0), np.where(at < 1, 2 - at, 0.0)
    losses = np.stack([one, two], axis=1)[None, :-1, None]
    assert on_the_grid(losses)[0, :, [450, GRID]].tolist() == [[0, 1.55], [0, 0]]
    assert split_budget(on_the_grid(losses)[0], 0.23).tolist() == pytest.approx([0.45, 0.01])
    assert lost(losses, np.array([0.45, 0.01])).tolist() == pytest.approx([1.99])
    assert lost(losses, np.array([0.375, 0.01])).tolist() == pytest.approx([6.99])


def test_ways_to_share() -> None:
    """Of two layers with losses in proportion 16 to 1 over k: shares go as the root of the loss."""
    at = np.array(SHARES)
    losses = np.stack([16 * (1 / at - 1), 1 / at - 1], axis=1)[:, :, None]

    def ratio(way: Sharing) -> float:
        first, last = way.split(losses, 0.1).ravel()
        assert first + last == pytest.approx(0.2)
        return float(first / last)

    plain = ratio(Sharing())
    assert plain > 2  # 4, but for the steps of the curves
    assert 1 <= ratio(Sharing(power=0.5)) < plain
    assert ratio(Sharing(late=np.log(16))) == pytest.approx(1)
    first, last = Sharing(equal=0.5).split(losses, 0.1).ravel()
    assert (first - 0.05) / (last - 0.05) == pytest.approx(plain)


def test_each_text_counts_by_what_equal_budgets_lose() -> None:
    """A text of a thousand times the losses does not decide alone."""
    falling, half = np.linspace(1, 0.1, len(SHARES)), np.array([0.5, 0.5])
    one = np.stack([falling, 0 * falling], axis=1)
    losses = np.stack([1000 * one, one[:, ::-1]])[:, :, None, :]
    trial = shared("made", losses, [0.3], half)
    assert trial.splits[0].shape == (1, 2)
    assert trial.splits[0].sum() == pytest.approx(0.6)
    again = shared("made", losses[::-1] * np.array([1, 1e-3])[:, None, None, None], [0.3], half)
    assert np.sort(again.splits[0]) == pytest.approx(np.sort(trial.splits[0]))


def test_each_half_of_the_texts_runs_with_the_split_of_the_other() -> None:
    """And the tuned split is the best way's, made from all texts."""
    falling = np.linspace(1, 0.1, len(SHARES))
    one = np.stack([falling, 0.1 * falling], axis=1)[:, None]  # unit 0 matters to text a alone
    losses = np.stack([one, one[:, :, ::-1]])
    trial = Trial("made", 0.0, [], [], losses)
    seen: list[tuple[str, Numbers]] = []

    class Run:
        def kl_of_splits(
            self, stage: str, texts: dict[str, Any], trials: Sequence[Trial]
        ) -> Numbers:
            (name,), splits = texts, [one.splits[0] for one in trials]
            seen.append((name, splits[0]))
            # least where shares are not so far from equal
            return np.array([[[1 + abs(split.max() - 0.4)] for split in splits]])

    asked = Search("made", totals=(0.3,), tune=12, batch=5)
    half = {"a": 0.5, "b": 0.5}
    found, rows = tuned(asked, trial, half, {"a": [], "b": []}, cast(Stages, Run()))
    first = dict(seen[:2])
    assert first["a"][0, 1] > first["a"][0, 0] and first["b"][0, 0] > first["b"][0, 1]
    kl = [row["kl"] for row in rows]
    assert len(rows) == 12 and min(kl) < kl[0]
    best = rows[int(np.argmin(kl))]
    way = Sharing(best["power"], best["late"], best["equal"])
    whole = weighed(losses, np.array([0.5, 0.5]), 0.3)
    assert found.splits[0].tolist() == way.split(whole, 0.3).tolist()


def test_the_winner_answers_as_much_as_h2o_or_falls_least_behind() -> None:
    rows = []
    for policy, split, kl, answered in (
        ("h2o", "equal", 9.0, (1, 2)), ("a", "shared", 1.0, (2, 1)), ("b", "shared", 2.0, (1, 2)),
    ):  # fmt: skip
        for budget, count in zip((0.1, 0.2), answered, strict=True):
            here = {"policy": policy, "split": split, "budget": budget}
            rows.append({**here, "stage": "train", "kl": kl})
            rows += [
                {**here, "stage": "train answers", "kl": 100.0, "answer_logp": -kl,
                 "exact": float(i < count or (i, policy) == (3, "a")), "full_exact": float(i < 3)}
                for i in range(4)
            ]  # fmt: skip
    for objective, best in (("kl", "a"), ("answers", "a"), ("both", "b")):
        assert min("ab", key=lambda name: worth(rows, name, objective, "h2o")) == best
    assert worth(rows, "a", "both", "h2o") == (1.0, 0.0)
    assert worth(rows, "b", "both", "h2o")[0] == 0


def test_settings_are_proposed_measured_once_and_kept(tmp_path: Path) -> None:
    asked = Search("made", ("decay:gamma=0.5..0.9:0.1,recent=0|4", "tova"), trials=30, batch=5)
    calls: list[tuple[str, str]] = []

    def measure(policies: Sequence[str], names: Sequence[str]) -> Iterator[Found]:
        for name in reversed(names):  # they come as they are done, in any order
            calls.extend((policy, name) for policy in policies)
            worth = [2.0 if p == "tova" else 1 + abs(float(p[12:15]) - 0.7) for p in policies]
            curve = np.linspace(1, 0.1, len(SHARES))[:, None, None]
            scale = {"a": 1, "b": 3}[name]
            yield name, np.array([scale * w * curve for w in worth], np.float32)

    def run(key: str = "") -> list[Trial]:
        return open_loop(asked, {"a": 0.5, "b": 0.5}, measure, tmp_path / "open", key, None)

    found = run()
    assert len(found) == 30 and len(calls) == len(set(calls))
    assert min(found, key=lambda t: t.value).policy.startswith("decay:gamma=0.7")
    first, calls[:] = list(calls), []
    assert [t.policy for t in run()] == [t.policy for t in found] and not calls

    damaged = tmp_path / "open" / "00005" / "001.npz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    run()
    assert calls and set(calls) < set(first) and {name for _, name in calls} == {"b"}

    calls.clear()  # another search's files count as not there
    run("another")
    assert sorted(calls) == sorted(first)


def table() -> pd.DataFrame:
    """A made search: the winner loses a fifth of what h2o does, and KL goes with 1 over memory."""
    draw, rows = np.random.default_rng(0), []
    totals = (0.05, 0.1, 0.2)
    texts = [f"text {i}" for i in range(6)]
    level = {text: float(draw.lognormal()) for text in texts}
    for stage in ("train", "held out", "answers", "check writing"):
        for policy, split, factor in (
            ("h2o", "equal", 1.0), ("tova", "equal", 1.5), (WINNER, "shared", 0.2),
            (WINNER, "equal", 0.9),
        ):  # fmt: skip
            for budget in (*totals, 0.4):
                for text in texts:
                    kl = factor * level[text] * 0.05 / budget
                    rows.append({
                        "stage": stage, "text": text, "genre": "law", "tokens": 768,
                        "prompt_len": 256, "policy": policy, "split": split, "budget": budget,
                        "kl": kl, "exact": float(factor < 1), "full_exact": 1.0,
                        "answer_logp": -factor, "agreement": 10 / factor,
                    })  # fmt: skip
    for name in (WINNER, "two-speed:mix=0"):
        some: dict[str, Any] = {"stage": "open loop", "policy": name}
        rows += [some | {"budget": b, "predicted": b} for b in totals]
    trial = Trial(WINNER, 0.0, [], [np.full((3, 2), b) for b in totals], np.zeros(0))
    rows += split_rows(Search("made"), trial)
    for b in totals:
        tune: dict[str, Any] = {"stage": "tune", "budget": b}
        rows.append(tune | {"kl": 0.3, "power": 1.0, "late": 0.0, "equal": 0.0})
        rows.append(tune | {"kl": 0.27, "power": 0.7, "late": 0.2, "equal": 0.1})
        for policy, split, share, kl in (
            ("optimum of mass", "best", 0.01, 0.02), (WINNER, "shared", 0.03, np.nan),
        ):  # fmt: skip
            left: dict[str, Any] = {"stage": "left", "policy": policy, "split": split, "budget": b}
            left |= {"kl": kl, "mass_lost": share, "value_lost": 2 * share}
            rows += [left | {"text": t} for t in texts[:2]]
    made = pd.DataFrame(rows)
    return made.assign(model="made", winner=WINNER, command="h2osim search made")


def test_the_page_says_what_the_table_says(tmp_path: Path) -> None:
    page = tmp_path / "which-policy.md"
    which_policy.write(table().assign(made="On two machines."), page)
    text = page.read_text(encoding="utf-8")
    assert "```\n\nOn two machines.\n\nThe winner is" in text
    assert "| 10 % | 0.2 [0.2, 0.2] | 0.36, reached |" in text
    assert "| 10 % | 5 % | 0.4 [0.4, 0.4] |" in text  # half the memory: twice the KL of a fifth
    assert "a = max(row[h][j]" in text and "max(lasting[j], current[j]) * l1_norm" in text
    assert "| 10 % | 0.3 | 0.27 | 0.7 | 0.2 | 0.1 |" in text and "2 ways to" in text
    assert "On 2 of the held-out texts (text 0, text 1)" in text
    assert "| optimum of mass, best split | mass | 0.01 | 0.01 | 0.01 |" in text
    ours = table()
    ours = ours[ours["text"].isin(["text 0", "text 1"]) & (ours["policy"] == WINNER)]
    ours = ours[(ours["stage"] == "held out") & (ours["split"] == "shared")]
    kl = [np.exp(np.log(ours[ours["budget"] == b]["kl"]).mean()) for b in (0.05, 0.1, 0.2)]
    line = " | ".join(f"{x:.3g}" for x in kl)
    assert f"| the winner, shared budgets | KL | {line} |" in text
    assert "points of a hundred" in text and "+100 [100, 100] at 10 %" in text
    assert {path.name for path in (tmp_path / "which-policy").iterdir()} == {
        "memory.png", "split.png",
    }  # fmt: skip
    few = table()
    with pytest.raises(UserError, match="fewer than two held-out texts"):
        which_policy.write(few[few["text"].isin(["text 0"])], page)


def test_mistakes_are_one_line(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("words", encoding="utf-8")
    where = ["--store", "s", "-o", "t.csv", "--split", "b.json"]
    fails(run("search", "smollm2"), "--texts")
    fails(run("search", "smollm2", "--texts", "missing", *where), "missing", "NAME.txt")
    words = ["search", "smollm2", "--texts", str(folder), *where]
    fails(run(*words, "--train", "b"), "text 'b'", "some of a")
    fails(run(*words, "-b", "64"), "shares of a text")
    fails(run(*words, "--checks", "all", "--held", "a"), "--checks", "writing")
    fails(run(*words, "--by", "luck", "--held", "a"), "--by", "first-order")
    fails(run(*words, "-p", "two-speed:mix=2", "--held", "a"), "mix=2")
    fails(run(*words, "-p", "future", "--held", "a"), "future", "knows the future")
    fails(run(*words, "--held", "a"), "text a", "trained on")
    assert not (tmp_path / "s").exists()
