"""The fidelity study: its measures against replays and derivatives, its numbers, its page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import Run, fails

from h2osim.studies import correlating, fidelity, fidelity_page, texts
from h2osim.studies.tasks import read_table, write_table
from h2osim.support.bundled import traces


def table(count: int = 4) -> pd.DataFrame:
    """A made study in which the residual error is KL's square root, and recall is noise."""
    draw, rows = np.random.default_rng(0), []
    names = [one.name for one in texts.listed()][:count]
    for name in names:
        for policy in fidelity.POLICIES:
            for budget in fidelity.BUDGETS:
                kl = float(draw.lognormal())
                row = {"model": "made", "tokens": 768, "prompt_len": 256, "text": name}
                row |= {"policy": policy, "budget": budget, "kl": kl, "kl_even": kl, "kl_odd": kl}
                row |= {measure: draw.random() for measure in correlating.MEASURES}
                row |= {"residual_error": kl**0.5, "layer_residual_0": draw.random()}
                rows.append(row | {"layer_residual_1": 2 * kl, "top1": 0.5})
    return pd.DataFrame(rows)


def test_the_measure_that_orders_as_kl_does_is_chosen() -> None:
    found = correlating.correlate(table())
    assert found.chosen == "residual_error"
    # quotients of float64 sums of ranks, here and below
    assert np.allclose(found.correlations("residual_error"), 1)
    assert found.price("residual_error", found.reported) == 0
    assert found.price("recall", found.reported) > 0
    # one of the two layers is noise, which the fitted weights cannot leave out wholly
    assert np.allclose(found.correlations(correlating.LAYERS)[found.reported], 1, atol=0.2)
    assert int(found.good.sum()) == len(fidelity.GOOD) >= 10


def test_a_recall_is_turned_into_a_loss() -> None:
    made = table()
    made["recall"] = 1 - made["kl"] / 1e3
    # float64 sums of ranks, here and below
    assert np.allclose(correlating.correlate(made).correlations("recall"), 1)


def test_what_is_chosen_uses_one_half_of_the_texts() -> None:
    made = table()
    even = made["text"].isin(list(made["text"].unique())[::2])
    made["residual_error"] = np.random.default_rng(2).random(len(made))
    made["output_error"] = made["kl"].where(even, 1 / made["kl"])
    made["attention_error"] = made["kl"].where(~even, 1 / made["kl"])
    found = correlating.correlate(made)
    assert found.chosen == "output_error"
    assert (found.correlations("attention_error")[found.reported] > 0.99).all()
    assert (found.of_means("attention_error", found.reported) > 0.99).all()
    assert (found.of_means("output_error", found.reported) < -0.99).all()
    first = correlating.ordered(found, found.reported)
    assert first.index("attention_error") < first.index("recall") < first.index("output_error")


def test_the_two_halves_of_a_text_are_compared() -> None:
    made = table()
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
    found = correlating.correlate(table(8))
    assert found.correlations(correlating.LOGS)[found.reported].mean() > 0.9


def test_spearman_is_that_of_scipy() -> None:
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(1).integers(0, 5, (2, 3, 8, 2)).astype(float)
    wanted = [[spearmanr(a[i, :, j], b[i, :, j])[0] for j in range(2)] for i in range(3)]
    assert np.allclose(correlating.spearman(a, b), wanted)
    assert (correlating.spearman(a, np.ones_like(a)) == 0).all()  # where one side is constant


def test_the_page_is_made_of_the_saved_table(tmp_path: Path, run: Run) -> None:
    pytest.importorskip("matplotlib")
    write_table(table(), tmp_path / "results.csv.gz")
    target = tmp_path / "fidelity.md"
    words = ["study", "fidelity", "--from", str(tmp_path / "results.csv.gz"), "--page", str(target)]
    assert run(*words).code == 0
    written = target.read_text(encoding="utf-8")
    assert "`residual_error`, reaches it: 1.00 at 5 %" in written
    for name in ("scatter.png", "correlation.png"):
        assert (tmp_path / "fidelity" / name).read_bytes()[:4] == b"\x89PNG"
        assert f"(fidelity/{name})" in written
    fidelity_page.write(read_table(tmp_path / "results.csv.gz", fidelity.Fidelity.columns), target)
    assert target.read_text(encoding="utf-8") == written


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


def test_the_list_is_long_and_varied() -> None:
    listed = texts.listed()
    assert len({one.name for one in listed}) == len(listed) >= 24
    assert len({one.genre for one in listed}) >= 6
    assert all(one.licence and len(one.sha256) == 64 for one in listed)
    bundled = traces() / "texts" / "prose.txt"
    (first,) = (one for one in listed if one.origin == "checkout")
    first.check(bundled.read_text(encoding="utf-8")[first.offset :][: texts.LENGTH], bundled)
