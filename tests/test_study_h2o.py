"""The study of the H2O paper's findings: fits, counts, removals, numbers, page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Run, fails
from scipy import stats

import h2osim
from h2osim.attention.fixed_point import round_to_bits
from h2osim.attention.triangle import pack
from h2osim.report.statistics import paired_p
from h2osim.studies import h2o_numbers, h2o_page, markdown, texts
from h2osim.studies.h2o import (
    BUDGETS,
    COUNTS,
    FACTS,
    GLOBAL,
    HEAVY,
    HINDSIGHT,
    KINDS,
    LOCAL,
    POLICIES,
    RECENT,
    SHARES,
    H2OFindings,
    prompt_scores,
    removal,
)  # fmt: skip
from h2osim.studies.scores import (
    LEAST,
    _log_integral,
    accumulated,
    by_item,
    late_sparsity,
    plausible,
    tail,
    together,
)  # fmt: skip
from h2osim.studies.tasks import read_table, write_table
from h2osim.support.bundled import traces
from h2osim.support.errors import UserError
from h2osim.traces.description import describe
from h2osim.traces.trace import Trace

# --- accumulated scores and co-occurrence -----------------------------------------------------


def test_scores_are_added_over_heads_rows_and_places() -> None:
    rows = (
        np.array([[[16, 0, 0], [12, 4, 0], [8, 4, 4]], [[16, 0, 0], [0, 16, 0], [0, 0, 16]]]) / 16
    )
    scores = accumulated(Trace.from_scores(rows))
    assert scores.tolist() == [[52 / 16, 24 / 16, 20 / 16]]
    assert by_item([7, 3, 7], scores).tolist() == [[24 / 16, 72 / 16]]


def test_late_rows_are_counted_as_the_description_counts_all_rows() -> None:
    # Entries below 1 % of the largest: the last of row 2, the second of row 3.
    rows = np.zeros((1, 4, 4))
    rows[0, :2, 0] = 1
    rows[0, 2, :3] = [128 / 256, 127 / 256, 1 / 256]
    rows[0, 3] = [200 / 256, 1 / 256, 50 / 256, 5 / 256]
    trace = Trace.from_scores(rows)
    assert late_sparsity(trace) == [2 / 7]
    whole = describe(trace).layers[0]
    assert whole.sparsity * whole.entries == 2 + 1  # and the zero in row 1


def test_pairs_within_the_window_are_counted_from_both_sides() -> None:
    # a b a c, window 2: a-b, b-a, a-c and b-c; a-a is no pair of different items.
    pairs, others = together([1, 2, 1, 3], window=2)
    assert pairs.tolist() == [3, 3, 2]
    assert others.tolist() == [2, 2, 2]
    assert together([5, 5, 5])[0].tolist() == [0]
    brute = np.random.default_rng(0).integers(0, 6, 40)
    pairs, others = together(brute, window=3)
    for i, item in enumerate(np.unique(brute)):
        near = [
            b for x, a in enumerate(brute) for y, b in enumerate(brute)
            if a == item != b and abs(x - y) <= 3
        ]  # fmt: skip
        assert (pairs[i], others[i]) == (len(near), len(set(near)))


# --- fits -------------------------------------------------------------------------------------


def draw(kind: str, count: int = 3000) -> np.ndarray:
    draws = np.random.default_rng(5)
    if kind == "power law":
        return (1 - draws.random(count)) ** (-1 / 1.5)
    return draws.lognormal(1.0, 0.8, count) if kind == "log-normal" else draws.random(count)


@pytest.mark.parametrize(
    "a, b", [(1, 0.5), (2, 1e-3), (-1, 0.5), (3, 0), (2, 1e-12), (1.5, 1e-8), (-3, 0.1)]
)
def test_the_integral_is_that_of_quadrature(a: float, b: float) -> None:
    from scipy.integrate import quad

    wanted = quad(lambda y: np.exp(-a * y - b * y * y), 0, 200, limit=2000, points=[1, 10, 50])[0]
    assert _log_integral(a, b) == pytest.approx(np.log(wanted), abs=1e-9)


def test_the_integral_near_the_power_law_is_its_first_two_terms() -> None:
    assert _log_integral(1.0, 1e-10) == pytest.approx(-2e-10, rel=1e-6, abs=0)


def test_the_integral_diverges_where_nothing_falls_off() -> None:
    assert _log_integral(-1.0, 0.0) == np.inf


def test_a_power_law_is_found_and_not_rejected() -> None:
    found = tail(draw("power law"))
    assert found["alpha"] == pytest.approx(2.5, abs=0.1)  # standard error .03
    assert found["nested"] > 0.05 and found["p"] > 0.05 and found["tail"] > 0.5


def test_a_log_normal_is_found_and_the_power_law_rejected() -> None:
    values = draw("log-normal")
    found = tail(values, whole=True)
    assert (found["mu"], found["sigma"]) == pytest.approx((1.0, 0.8), abs=0.06)
    assert found["xmin"] == pytest.approx(values.min()) and found["tail"] == 1
    assert found["ratio"] < -10 and found["p"] < 1e-6 and found["nested"] < 1e-6
    assert tail(draw("log-normal", 800))["nested"] < 0.05


def test_the_tail_begins_where_the_distance_is_least() -> None:
    values = draw("log-normal", 400)  # where the distance lies below a step, not above it
    logs = np.sort(np.log(values))

    def distance(start: float) -> float:
        y = logs[logs >= start] - start
        return float(stats.kstest(y, stats.expon(scale=y.mean()).cdf).statistic)

    best = min(logs[: len(logs) - LEAST + 1], key=distance)
    found = tail(values)
    assert found["xmin"] == pytest.approx(np.exp(best))
    assert found["tail"] == (logs >= best).mean()
    assert found["alpha"] == pytest.approx(1 + 1 / (logs[logs >= best] - best).mean())


def test_the_likelihoods_are_those_of_scipy_and_the_largest() -> None:
    values = draw("log-normal", 400)
    found = tail(values)
    x = np.maximum(values[values >= found["xmin"] * (1 - 1e-12)], found["xmin"])

    def log_normal(mu: float, sigma: float) -> np.ndarray:
        logs = np.log(x)
        cut = (np.log(found["xmin"]) - mu) / sigma
        density = stats.truncnorm(cut, np.inf, loc=mu, scale=sigma).logpdf(logs)
        return np.asarray(density - logs)

    power = stats.pareto(found["alpha"] - 1, scale=found["xmin"]).logpdf(x)
    best = log_normal(found["mu"], found["sigma"])
    for mu, sigma in [(1.02, 1), (0.98, 1), (1, 1.02), (1, 0.98)]:
        assert log_normal(found["mu"] * mu, found["sigma"] * sigma).sum() < best.sum()
    nearer = power - best
    ratio = nearer.sum() / (nearer.std() * np.sqrt(len(x)))
    assert found["ratio"] == pytest.approx(ratio, rel=1e-6)
    assert found["p"] == pytest.approx(2 * stats.norm.sf(abs(ratio)), rel=1e-4)
    assert found["nested"] == pytest.approx(stats.chi2.sf(-2 * nearer.sum(), 1) / 2, rel=1e-4)


def test_made_power_laws_are_plausible_and_log_normals_are_not() -> None:
    assert plausible(draw("power law", 200), 40) > 0.1
    assert plausible(draw("uniform", 400), 40) < 0.1
    lumps = np.repeat(draw("power law", 40), 10)  # in steps, which no draw from a density has
    assert plausible(lumps, 40) == 0


def test_zeros_are_no_part_of_a_distribution() -> None:
    values = draw("power law", 300)
    assert tail(np.concatenate([np.zeros(9), values])) == tail(values)


# --- removals ---------------------------------------------------------------------------------


def prompt(p: int = 8, n: int = 12) -> Any:
    """A decoder's prompt: one layer of two units of two heads; column sums fall, two are equal."""
    rows = np.zeros((4, p, p))
    for t in range(p):
        rows[:, t, 0] = 1 if t < 2 else 0.5
        rows[:2, t, 1 if t % 2 else min(2, t)] += 0 if t < 2 else 0.5
        rows[2:, t, t] += 0 if t < 2 else 0.5
    bits = np.stack([pack(one) for one in round_to_bits(rows)])
    inner = SimpleNamespace(rows={3: bits}.get, layers=(3,), units=lambda layer: 2)
    return SimpleNamespace(prompt=inner, prompt_len=p, n=n)


def test_heavy_hitters_are_the_largest_sums_of_the_unit_the_older_first() -> None:
    decoder = prompt()
    scores = prompt_scores(decoder, 3) / 2**24
    assert scores.tolist() == [[10, 3, 3, 0, 0, 0, 0, 0], [10, 0, 1, 1, 1, 1, 1, 1]]

    def gone(removed: str, share: float, seed: int = 0) -> list[list[int]]:
        (masks,) = removal(decoder, removed, share, [seed]).values()
        assert masks.dtype == np.int32 and set(masks.ravel()) <= {7, 12}
        return [np.flatnonzero(unit < 12).tolist() for unit in masks]

    assert gone("heavy", 0.25) == [[0, 1], [0, 2]]
    assert gone("heavy", 0.01) == [[0], [0]]
    assert gone("heavy but the first", 0.25) == [[1, 2], [2, 3]]
    drawn = [gone("random", 0.25, seed) for seed in range(40)]
    assert all(len(unit) == 2 and max(unit) < 8 for one in drawn for unit in one)
    assert {j for one in drawn for unit in one for j in unit} == set(range(8))
    assert any(one[0] != one[1] for one in drawn) and gone("random", 0.25, 3) == drawn[3]
    spared = [gone("random but the first", 0.5, seed) for seed in range(40)]
    assert {j for one in spared for unit in one for j in unit} == set(range(1, 8))


def test_every_part_is_done_once() -> None:
    study = H2OFindings("none")
    assert len(study.parts()) == len(set(study.parts())) == 5
    removals = study._removals()
    assert len(removals) == len(set(removals)) == len(SHARES) * (2 + 2 * study.draws)


# --- numbers and page -------------------------------------------------------------------------


def table(count: int = 12) -> pd.DataFrame:
    """A made study: everything as the paper says, but that recency is no worse than H2O."""
    draws, rows = np.random.default_rng(0), []
    factors = {HEAVY: 3.0, RECENT: 1.0, HINDSIGHT: 0.5, GLOBAL: 1.0}
    for one in texts.listed()[:count]:
        known = {"model": "made", "tokens": 768, "prompt_len": 256, "text": one.name}
        for layer in (0, 1, -1):
            facts = {name: draws.uniform(0.8, 0.9) for name in FACTS}
            facts |= {"sparsity": 0.9 + 0.06 * layer, "late": 0.97, "item_whole": -3.0}
            facts |= {"item_ratio": -3.0 if layer == 1 else -1.0, "item_nested": 0.01 + layer}
            facts |= {"plausible": 0.5 if layer < 0 else np.nan}
            rows.append(known | {"finding": "layer", "layer": layer} | facts)
        for item in range(12340, 12420):
            numbers = {name: float(item - 12339) for name in (*COUNTS, "score")}
            rows.append(known | {"finding": "item", "item": item, "word": "w"} | numbers)
        for policy in POLICIES:
            for budget in BUDGETS:
                kl = factors.get(policy, 1.0) * float(draws.lognormal(0, 0.01))
                found = {"policy": policy, "budget": budget, "kl": kl}
                rows.append(
                    known | {"finding": "policy", "recall": 0.9, "output_error": kl} | found
                )
        for kind in KINDS:
            for share in SHARES:
                for again in range(3 if kind.startswith("random") else 1):
                    kl = (9.0 if kind.startswith("heavy") else 1.0) * 2.0 ** (again - 1)
                    kl *= float(draws.lognormal(0, 0.01)) * (2 if kind.startswith("heavy") else 1)
                    found = {"removed": kind, "share": share, "draw": again, "kl": kl}
                    rows.append(known | {"finding": "removal"} | found)
    return pd.DataFrame(rows)


def test_numbers_come_from_their_rows(tmp_path: Path) -> None:
    write_table(table(), tmp_path / "t.csv")
    found = h2o_numbers.find(read_table(tmp_path / "t.csv", H2OFindings.columns))
    assert found.layers == [0, 1] and found.budgets == list(BUDGETS)
    assert found.shares == list(SHARES) and found.at_20 == BUDGETS.index(0.2)
    assert found.layer_means("sparsity")[0] == pytest.approx([0.9, 0.96])
    assert found.overall("sparsity").mean == pytest.approx(0.84)
    assert found.removed["heavy"].shape == (12, len(SHARES))
    assert np.allclose(found.removed["random"], 1, rtol=0.03)  # the draws' geometric mean
    nearer, farther = found.favoured("item")
    assert (nearer.mean, farther.mean) == (0.5, 0)
    assert found.favoured("item", "whole")[0].mean == 1
    assert found.favoured("item", "nested")[0].mean == 0.5
    pooled = found.pooled()
    assert pooled["score"].tolist() == [12.0 * (item + 1) for item in range(80)]
    correlated = found.pooled_correlation()
    assert (correlated.mean, correlated.low, correlated.high) == pytest.approx((1, 1, 1))


def test_comparisons_are_paired_and_corrected() -> None:
    found = h2o_numbers.find(table())
    rules = found.against("h2o", (RECENT, HEAVY))
    assert {one.verdict for one in rules[RECENT]} == {"tie"}
    assert {one.verdict for one in rules[HEAVY]} == {"more"}
    assert {one.verdict for one in found.against(LOCAL, (HINDSIGHT,))[HINDSIGHT]} == {"less"}
    removed = found.heavy_against_random()
    assert {one.verdict for ratios in removed.values() for one in ratios} == {"more"}
    assert removed["all"][0].interval.mean == pytest.approx(9, rel=0.1)
    a, b = np.random.default_rng(1).lognormal(0, 1, (2, 12, 3))
    alone = h2o_numbers.ratios({"x": (a[:, :1], b[:, :1])})["x"][0]
    among = h2o_numbers.ratios({"x": (a, b)})["x"]
    assert among[0].interval == alone.interval
    least = min(paired_p(a[:, i], b[:, i]) for i in range(3))
    assert least < 1 / 3 and min(one.p for one in among) == pytest.approx(3 * least)
    assert alone.interval.mean == pytest.approx(stats.gmean(a[:, 0] / b[:, 0]))


def verdicts(page: str) -> list[str]:
    lines = page.split("| the paper's claim")[1].split("\n\n")[0].splitlines()[2:]
    return [line.split("|")[-2].strip() for line in lines]


def test_the_table_of_claims_says_what_the_numbers_say() -> None:
    frame = table()
    written = h2o_page.text(frame, h2o_numbers.find(frame), "h2o-findings")
    wanted = ["yes", "in the tail at most", "yes", "in part", "tie", "yes", "yes"]
    assert verdicts(written) == wanted
    frame.loc[frame["finding"] == "layer", ["late", "pairs", "item_nested"]] = [0.5, 0.4, 0.01]
    frame.loc[frame["policy"] == HEAVY, "kl"] *= 0.1
    written = h2o_page.text(frame, h2o_numbers.find(frame), "h2o-findings")
    assert verdicts(written) == ["no", "no", "in part", "in part", "tie", "no", "yes"]


def test_a_law_that_could_not_have_given_the_scores_is_none() -> None:
    frame = table()
    frame.loc[frame["layer"] == -1, "plausible"] = 0.0
    found = h2o_numbers.find(frame)
    assert verdicts(h2o_page.text(frame, found, "h2o-findings"))[1] == "no"


def test_with_few_texts_no_comparison_is_called_a_finding() -> None:
    found = h2o_numbers.find(table(3))
    assert h2o_page._agrees(found, found.against("h2o", (HEAVY,))[HEAVY]) == "too few texts"


@pytest.mark.nightly
def test_the_page_is_made_of_the_saved_table(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("matplotlib")
    write_table(table(), tmp_path / "results.csv.gz")
    target = tmp_path / "h2o.md"
    words = ["study", "h2o", "--from", str(tmp_path / "results.csv.gz"), "--page", str(target)]
    assert run(*words).code == 0
    written = target.read_text(encoding="utf-8")
    for name in ("layers", "scores", "policies", "removal"):
        assert (tmp_path / "h2o" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"(h2o/{name}.png)" in written


def test_the_page_in_the_documentation_is_the_one_of_its_table() -> None:
    docs = traces().parent / "docs"
    frame = read_table(docs / "h2o-findings" / "results.csv.gz", H2OFindings.columns)
    written = (docs / "h2o-findings.md").read_text(encoding="utf-8")
    text = h2o_page.text(frame, h2o_numbers.find(frame), "h2o-findings")
    assert markdown.wrapped(text) == written
    assert frame["text"].nunique() >= 12


def test_mistakes_are_told_in_a_line(tmp_path: Path, run: Run) -> None:
    fails(run("study", "h2o", "--texts", "x", "--store", "y"), "study h2o: expected --output")
    (tmp_path / "t.csv").write_text("model,text,kl\n1,2,3\n")
    page = ["--page", str(tmp_path / "p.md")]
    fails(run("study", "h2o", "--from", str(tmp_path / "t.csv"), *page), "without column finding")
    assert not (tmp_path / "p.md").exists()


# --- with the model ---------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_run_measures_what_the_parts_of_the_package_do(tmp_path: Path) -> None:
    """SmolLM2: KL by the evaluation, removals by a decoder, and only what is missing again."""
    pytest.importorskip("torch")
    from h2osim.closed_loop.caches import Eviction
    from h2osim.closed_loop.decoding import Decoder
    from h2osim.models.loading import load

    try:
        model = load("smollm2")
    except UserError as error:
        pytest.skip(str(error))
    text = (traces() / "texts" / "prose.txt").read_text(encoding="utf-8")
    policies = ("h2o", HINDSIGHT)
    study = H2OFindings("smollm2", 64, 32, policies, (0.25,), shares=(0.1,), draws=1)
    found = study.run({"prose": text}, tmp_path / "s", 1)
    kinds = {kind: rows for kind, rows in found.groupby("finding")}
    ids = [int(x) for x in model.tokenizer(text)["input_ids"][:64]]
    assert kinds["item"]["count"].sum() == 64
    decoder = Decoder(model, ids, 32)
    by_kind = kinds["removal"].set_index("removed")["kl"]
    for kind in ("heavy", "heavy but the first"):
        seen = decoder.evict(Eviction(None, 64, removal(decoder, kind, 0.1, [0])))
        assert by_kind[kind] == pytest.approx(seen.kl.mean(), rel=1e-5)
    assert by_kind["heavy"] > by_kind["heavy but the first"]
    evaluated = h2osim.evaluate(
        "smollm2", {"prose": text}, ["h2o"], [0.25], prompt_len=32, n_tokens=64
    )
    kl = kinds["policy"].set_index("policy")["kl"]
    assert kl["h2o"] == pytest.approx(float(evaluated["kl"].squeeze()), rel=1e-5)
    assert kl[HINDSIGHT] > 0 and kinds["layer"]["sparsity"].between(0, 1).all()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*.npz")}
    (tmp_path / "s" / "prose-removal-0.npz").unlink()
    again = study.run({"prose": text}, tmp_path / "s", 1)
    pd.testing.assert_frame_equal(again, found)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*.npz")}
    assert {name for name in after if after[name] != before[name]} == {"prose-removal-0.npz"}
