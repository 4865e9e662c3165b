"""First-order KL of a unit, against the measures of a whole layer; a search of a small part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_carrying import IDS, LAYERS, N, P, llama  # noqa: E402

import h2osim  # noqa: E402
from h2osim.closed_loop import uncompressed  # noqa: E402
from h2osim.closed_loop.first_order import AT_ONCE, unit_kl  # noqa: E402
from h2osim.models import loading  # noqa: E402
from h2osim.studies.search.asked import Search  # noqa: E402
from h2osim.studies.search.searching import search  # noqa: E402
from h2osim.support.bundled import traces  # noqa: E402
from h2osim.support.errors import UserError  # noqa: E402


@pytest.fixture(scope="module")
def run() -> uncompressed.Uncompressed:
    return uncompressed.run(llama().prompt, IDS[P:], 3)


def one_unit(layer: int, unit: int, seed: int, share: float = 0.4) -> np.ndarray:
    """Tokens leave one unit at random steps, int32 [layers, units, n]."""
    draw = np.random.default_rng(seed)
    gone = np.full((LAYERS, 2, N), N, np.int32)
    some = draw.random(N) < share
    gone[layer, unit, some] = np.maximum(np.arange(N)[some], draw.integers(P, N, some.sum()))
    return gone


def test_a_unit_alone_is_its_layer(run: uncompressed.Uncompressed) -> None:
    places = [(layer, unit) for layer in range(LAYERS) for unit in range(2)]
    every = [one_unit(*place, seed) for seed in range(4) for place in places]
    assert len(every) > AT_ONCE  # more than one group of masks
    found = unit_kl(run, every)
    whole = uncompressed.measure(run, every)["layer_gradient"]
    for i, (layer, unit) in enumerate(places * 4):
        # float32 sums of the older measure
        assert found[i, layer, unit] == pytest.approx(whole[i, layer], rel=1e-5)
        others = np.delete(found[i].ravel(), 2 * layer + unit)
        assert np.abs(others).max() < 1e-20  # rounding of float64, squared


def test_a_unit_that_keeps_nothing_loses_its_output(run: uncompressed.Uncompressed) -> None:
    """All of a unit's keys gone, the newest too: d is -o, and no division by 0."""
    gone = np.full((LAYERS, 2, N), N, np.int32)
    gone[1, 0] = -1
    call, g = run.calls[1], run.gradients[1]
    logits = call.layer.scale * call.q[:2] @ call.k[0].T  # the first KV group's heads
    ahead = torch.arange(N) > torch.arange(P, N)[:, None]
    rows = logits.masked_fill(ahead, -torch.inf).softmax(-1)
    flat = (rows @ call.v[0]).transpose(0, 1).reshape(N - P, -1)
    slope = (g.reshape(len(g), N - P, 2, -1)[:, :, 0] * flat).sum(-1)
    assert unit_kl(run, [gone])[0, 1, 0] == pytest.approx(float((slope**2).mean() / 2))


@pytest.mark.nightly
def test_a_search_of_smollm2_goes_on_where_it_was(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    try:
        loading.load("smollm2")
    except UserError as error:
        pytest.skip(str(error))
    texts = {
        name: (traces() / "texts" / f"{name}.txt").read_text(encoding="utf-8")
        for name in ("prose", "code")
    }
    asked = Search(
        "smollm2", ("h2o:recent=0.25|0.5",), (0.1,), ("h2o",), trials=2, batch=2, finalists=1,
        tokens=96, prompt_len=48, task_seeds=1,
    )  # fmt: skip
    halves = {"prose": texts["prose"]}, {"code": texts["code"]}
    found = search(asked, *halves, tmp_path / "store")
    table = found.table
    assert set(table["stage"]) == {"open loop", "train", "held out", "answers", "split"}
    ours = table[(table["stage"] == "held out") & (table["policy"] == table["winner"])]
    assert sorted(ours["split"]) == ["equal", "shared"] and (ours["kl"] > 0).all()
    assert found.budgets[0].budgets.mean() == pytest.approx(0.1)
    (split,) = ours[ours["split"] == "shared"]["kl"]
    again = h2osim.evaluate(
        "smollm2", halves[1], [table["winner"][0]], found.budgets, n_tokens=96, prompt_len=48
    )
    assert float(again["kl"].squeeze()) == pytest.approx(split)
    pd.testing.assert_frame_equal(search(asked, *halves, tmp_path / "store").table, table)
