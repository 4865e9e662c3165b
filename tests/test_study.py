"""The fidelity study: its measures against replays and derivatives, its numbers, its page."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from commands import Run, fails

from h2osim.closed_loop.measures import CARRIED, MEASURES
from h2osim.closed_loop.prompts import TASKS
from h2osim.report.statistics import Interval
from h2osim.studies import correlating, fidelity, fidelity_page, tasks, texts
from h2osim.studies.answering import answers
from h2osim.studies.tasks import read_table, write_table
from h2osim.support.bundled import traces
from h2osim.support.errors import UserError


def table(count: int = 4) -> pd.DataFrame:
    """A made study in which the residual error is KL's square root, and recall is noise.

    Of prompts the answer loses ten times KL, and is wrong above a KL of 1.
    """
    draw, rows = np.random.default_rng(0), []
    names = [one.name for one in texts.listed()][:count]
    prompts = [f"{kind}-{i}" for kind in TASKS for i in range(3)]
    for name in names + prompts:
        for policy in fidelity.POLICIES:
            for budget in fidelity.BUDGETS:
                kl = float(draw.lognormal())
                row = {"model": "made", "tokens": 768, "prompt_len": 256, "text": name}
                row |= {"policy": policy, "budget": budget, "kl": kl, "kl_even": kl, "kl_odd": kl}
                row |= {"model_sha256": "0" * 64, "top1": 0.5, "masked_kl": kl}
                row |= {one: draw.random() for one in ("recall", *MEASURES, *CARRIED)}
                row |= {"residual_error": kl**0.5, "layer_residual_0": draw.random()}
                row |= {"layer_residual_1": 2 * kl}
                if name in prompts:
                    row |= {"full_answer_logp": -1, "answer_logp": -1 - 10 * kl}
                    row |= {"full_exact": float(name[-1] != "2"), "exact": float(kl < 1)}
                rows.append(row)
    return pd.DataFrame(rows)


def texts_of(made: pd.DataFrame) -> pd.DataFrame:
    """The rows that are no prompts."""
    return made[made["full_exact"].isna()]


def test_the_measure_that_orders_as_kl_does_is_chosen() -> None:
    found = correlating.correlate(texts_of(table()))
    assert found.chosen == "residual_error"
    # quotients of float64 sums of ranks, here and below
    assert np.allclose(found.correlations("residual_error"), 1)
    assert found.price("residual_error", found.reported) == 0
    assert found.price("recall", found.reported) > 0
    # one of the two layers is noise, which the fitted weights cannot leave out wholly
    assert np.allclose(found.correlations(correlating.LAYERS)[found.reported], 1, atol=0.2)
    halves = (found.texts[found.choosing], found.texts[found.reported])
    assert halves == (found.texts[::2], found.texts[1::2])
    assert int(found.good.sum()) == len(fidelity.GOOD) >= 10


def test_a_recall_is_turned_into_a_loss() -> None:
    made = table()
    made["recall"] = 1 - made["kl"] / 1e3
    # float64 sums of ranks, here and below
    assert np.allclose(correlating.correlate(texts_of(made)).correlations("recall"), 1)


def test_what_is_chosen_uses_one_half_of_the_texts() -> None:
    made = texts_of(table()).copy()
    even = made["text"].isin(list(made["text"].unique())[::2])
    made["residual_error"] = np.random.default_rng(2).random(len(made))
    made["output_error"] = made["kl"].where(even, 1 / made["kl"])
    made["attention_error"] = made["kl"].where(~even, 1 / made["kl"])
    found = correlating.correlate(made)
    assert found.chosen == "output_error"
    assert (found.correlations("attention_error")[found.reported] > 0.99).all()
    assert all(x.mean > 0.99 for x in found.of_means("attention_error", found.reported))
    assert all(x.mean < -0.99 for x in found.of_means("output_error", found.reported))
    first = correlating.ordered(found, found.reported)
    assert first.index("attention_error") < first.index("recall") < first.index("output_error")


def test_the_two_halves_of_a_text_are_compared() -> None:
    made = texts_of(table()).copy()
    made["kl_odd"] = 1 / made["kl"]
    assert (correlating.correlate(made).reliability() < -0.99).all()


def test_layers_are_fitted_by_relative_error() -> None:
    errors, kl = np.array([[1.0], [1.0]]), np.array([1.0, 100.0])
    # the least of (w - 1)^2 + (w / 100 - 1)^2, in float64
    assert correlating.layer_weights(errors, kl) == pytest.approx([(1 + 0.01) / (1 + 0.0001)])
    errors = np.random.default_rng(3).random((2, 5, 3, 2))
    # an exact combination is found
    assert correlating.layer_weights(errors, errors @ [0.5, 2]) == pytest.approx([0.5, 2])


def test_the_fit_to_all_measures_orders_as_kl_does() -> None:
    found = correlating.correlate(texts_of(table(8)), carried=True)
    assert found.correlations(correlating.LOGS)[found.reported].mean() > 0.9


def test_spearman_is_that_of_scipy() -> None:
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(1).integers(0, 5, (2, 3, 8, 2)).astype(float)
    wanted = [[spearmanr(a[i, :, j], b[i, :, j])[0] for j in range(2)] for i in range(3)]
    assert np.allclose(correlating.spearman(a, b), wanted)
    assert correlating.spearman(a[:1, :, :1], np.ones((1, 8, 1))) == 0


def test_the_order_of_means_is_that_of_scipy() -> None:
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(2).random((2, 6, 8))
    found = correlating.mean_order(a, b)
    assert found.mean == pytest.approx(spearmanr(a.mean(axis=0), b.mean(axis=0))[0])
    assert found.low < found.mean < found.high
    assert correlating.mean_order(a, a) == Interval(1, 1, 1)
    assert np.isnan(correlating.mean_order(a[:1], b[:1]).low)


def with_other_kl(text: int) -> pd.DataFrame:
    """The made study with the KL of one text drawn anew."""
    made = texts_of(table(6)).copy()
    here = made["text"] == made["text"].unique()[text]
    made.loc[here, "kl"] = np.random.default_rng(3).lognormal(size=int(here.sum()))
    return made


@pytest.mark.parametrize("text", range(6))
def test_no_fit_knows_the_text_it_is_judged_on(text: int) -> None:
    both = texts_of(table(6)), with_other_kl(text)
    before, after = (correlating.correlate(x, carried=True) for x in both)
    for name in (correlating.LAYERS, correlating.ONE_RUN, correlating.LOGS):
        same = (before.losses[name] == after.losses[name]).all(axis=(1, 2))
        # A text of the choosing half changes what is fitted to all others.
        assert same.tolist() == [text % 2 == 1 or i == text for i in range(6)], name


def test_pairs_are_decided_where_all_texts_agree() -> None:
    made = texts_of(table(24)).copy()
    made = made[made["budget"] < 0.2]
    better = made["policy"] == fidelity.GOOD[0]
    made.loc[better, "kl"] = 1e-3 * made.loc[better, "kl"]
    found = correlating.correlate(made)
    best = {(0, j) for j in range(1, len(fidelity.GOOD))}
    for pairs in found.decided(found.reported):
        assert best <= set(pairs)
        assert len(pairs) <= len(best) + 3  # the rest is noise: few pairs differ by chance


def test_a_spread_is_the_noise_that_was_put_there() -> None:
    made = texts_of(table(24)).copy()
    noise = np.random.default_rng(4).normal(0, 0.2, len(made))
    made["output_error"] = np.exp((np.log(made["kl"]) + noise) / 3)
    found = correlating.correlate(made)
    assert found.spread("output_error", found.reported) == pytest.approx(0.2, abs=0.04)
    assert found.spread("residual_error", found.reported) == pytest.approx(0, abs=1e-9)


def test_answers_that_the_full_cache_gives_are_counted() -> None:
    made = table()
    asked = made[made["full_exact"].notna()]
    found = answers(asked, np.ones((2, len(fidelity.POLICIES), 5)))
    assert found.asked == dict.fromkeys(TASKS, 3)
    assert found.kinds.tolist() == [kind for kind in TASKS for _ in range(2)]
    assert found.interval("residual_error", 0).mean == pytest.approx(1)
    assert found.interval("kl", 4, "pairs").mean == pytest.approx(1)
    assert found.ordered()[0] in ("kl", "residual_error", "masked_kl")
    assert np.allclose(found.losses["kl on the texts"], 1)
    counted = asked[(asked["full_exact"] == 1) & asked["text"].str.startswith("facts")]
    share = counted.pivot_table(index="policy", columns="budget", values="exact", sort=False)
    np.testing.assert_array_equal(found.accuracy("facts"), share.values)


def test_the_page_is_made_of_the_saved_table(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("matplotlib")
    write_table(table(), tmp_path / "results.csv.gz")
    target = tmp_path / "fidelity.md"
    words = ["study", "fidelity", "--from", str(tmp_path / "results.csv.gz"), "--page", str(target)]
    again = ["-o", str(tmp_path / "results.csv.gz"), "--made", "On a Monday, in one sitting."]
    assert run(*words, *again).code == 0  # how it was made stays in the table
    assert run(*words).code == 0
    written = target.read_text(encoding="utf-8")
    assert "On a Monday, in one sitting." in written
    assert "`residual_error`, reaches 0.95 at every budget" in written
    for name in ("scatter.png", "correlation.png"):
        assert (tmp_path / "fidelity" / name).read_bytes()[:4] == b"\x89PNG"
        assert f"(fidelity/{name})" in written
    fidelity_page.write(read_table(tmp_path / "results.csv.gz", fidelity.Fidelity.columns), target)
    assert target.read_text(encoding="utf-8") == written


@pytest.mark.nightly
def test_the_committed_page_is_that_of_the_committed_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    docs = traces().parent / "docs"
    table = read_table(docs / "fidelity" / "results.csv.gz", fidelity.Fidelity.columns)
    fidelity_page.write(table, tmp_path / "fidelity.md")
    assert (tmp_path / "fidelity.md").read_text("utf-8") == (docs / "fidelity.md").read_text(
        "utf-8"
    )


def test_mistakes_are_told_in_a_line(tmp_path: Path, run: Run) -> None:
    fails(run("study", "fidelity", "--texts", "x", "--store", "y"), "--output, --page or both")
    fails(run("study", "fidelity", "-o", str(tmp_path / "a.csv")), "--texts and --store, or --from")
    out = ["-o", str(tmp_path / "a.csv"), "--store", str(tmp_path / "s")]
    fails(run("study", "fidelity", "--texts", str(tmp_path), *out), "pride.txt cannot be read")
    (tmp_path / "pride.txt").write_text("other")
    fails(run("study", "fidelity", "--texts", str(tmp_path), *out), "found sha256")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    fails(run("study", "fidelity", "--from", str(tmp_path / "t.csv"), *out), "without column")
    assert not (tmp_path / "s").exists()


def test_tables_that_are_damaged_or_never_end(tmp_path: Path, run: Run) -> None:
    """A bit of a packed table came out as zlib's own error; a device took all memory."""
    table = Path(__file__).parent.parent / "docs" / "fidelity" / "results.csv.gz"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "t.csv.gz").write_bytes(content)
    out = ["-o", str(tmp_path / "a.csv")]
    fails(run("study", "fidelity", "--from", tmp_path / "t.csv.gz", *out), "--from", "t.csv.gz: ")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(bytes(1 << 29), 1))
    fails(run("study", "fidelity", "--from", tmp_path / "t.csv.gz", *out), "unpacks to more than")
    fails(run("study", "fidelity", "--from", "/dev/zero", *out), "found more than")
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize(
    ("study", "column", "value"),
    [("fidelity", "kl", "x"), ("fidelity", "output_error", None), ("h2o", "finding", "x")],
)
def test_tables_that_were_edited(
    tmp_path: Path, run: Run, study: str, column: str, value: str | None
) -> None:
    """Columns of other types, or of which some are gone, ended in pandas' own errors."""
    folder = {"fidelity": "fidelity", "h2o": "h2o-findings"}[study]
    path = Path(__file__).parent.parent / "docs" / folder / "results.csv.gz"
    table = pd.read_csv(path, nrows=600)
    edited = table.assign(**{column: value}) if value else table.drop(columns=column)
    edited.to_csv(tmp_path / "t.csv", index=False)
    ended = run("study", study, "--from", tmp_path / "t.csv", "--page", tmp_path / "p.md")
    fails(ended, "--from", "t.csv: no page can be made of it (")
    assert not (tmp_path / "p.md").exists()


def test_prompts_are_of_every_kind_and_at_every_depth() -> None:
    made = fidelity.Fidelity("any").prompts()
    assert len(made) == fidelity.PROMPTS * len(TASKS)
    for kind in TASKS:
        some = [task for name, task in made.items() if fidelity.kind_of(name) == task.kind == kind]
        assert len({task.seed for task in some}) == len(some) == fidelity.PROMPTS
        assert min(task.depth for task in some) < 0.1 < 0.9 < max(task.depth for task in some)


def test_the_list_is_long_and_varied() -> None:
    listed = texts.listed()
    assert len({one.name for one in listed}) == len(listed) >= 24
    assert len({one.genre for one in listed}) >= 6
    assert all(one.licence and len(one.sha256) == 64 for one in listed)
    bundled = traces() / "texts" / "prose.txt"
    (first,) = (one for one in listed if one.origin == "checkout")
    first.check(bundled.read_text(encoding="utf-8")[first.offset :][: texts.LENGTH], bundled)


def test_a_store_takes_more_texts_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "loaded", lambda model: SimpleNamespace(sha256="m"))
    monkeypatch.setattr(tasks.Study, "_item", lambda self, name, text: SimpleNamespace(sha256=text))
    study = fidelity.Fidelity("any")
    for given, held in (({"a": "1"}, ["a"]), ({"b": "2"}, ["a", "b"]), ({"a": "1"}, ["a", "b"])):
        study._open_store(tmp_path / "s", given)
        kept = json.loads((tmp_path / "s" / "study.json").read_text(encoding="utf-8"))
        assert list(kept["texts"]) == held
    with pytest.raises(UserError, match="holds another study: texts, b is 2, asked for is 3"):
        study._open_store(tmp_path / "s", {"c": "1", "b": "3"})
    with pytest.raises(UserError, match="holds another study: probes is 8, asked for is 4"):
        fidelity.Fidelity("any", probes=4)._open_store(tmp_path / "s", {"a": "1"})
