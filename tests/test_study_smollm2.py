"""The fidelity study on SmolLM2: a short text and a prompt, against replays and `evaluate`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("torch", reason="a running model needs the extra `record` (torch)")
pytest.importorskip("transformers", reason="a running model needs the extra `record`")

import h2osim
from h2osim.closed_loop.prompts import Task
from h2osim.models import loading
from h2osim.studies.fidelity import Fidelity
from h2osim.support.errors import UserError

TEXT = Path(__file__).parent.parent / "traces" / "texts" / "prose.txt"
POLICIES, BUDGETS = ("h2o", "future"), (0.2,)


@pytest.mark.nightly
def test_texts_and_prompts_are_measured_alike(tmp_path: Path) -> None:
    try:
        loading.load("smollm2")
    except UserError as error:
        pytest.skip(str(error))
    study = Fidelity(
        "smollm2", tokens=80, prompt_len=40, policies=POLICIES, budgets=BUDGETS, probes=1
    )
    prompt = study.prompts()["facts-5"]
    texts: dict[str, str | Task] = {"short": TEXT.read_text(encoding="utf-8"), "facts-5": prompt}
    found = study.run(texts, tmp_path / "store", 1)
    assert found["text"].tolist() == ["short"] * 2 + ["facts-5"] * 2
    # Errors are carried for the good policies on texts; h2o decides much the same by other rows.
    there = (found["text"] == "short") & (found["policy"] == "h2o")
    carried = found[["carried_variance", "carried_kl", "masked_kl"]]
    assert (carried[there] > 0).all(axis=None) and carried[~there].isna().all(axis=None)
    assert found["masked_kl"][there].iloc[0] == pytest.approx(found["kl"][there].iloc[0], rel=0.3)

    asked = found[found["text"] == "facts-5"]
    seen = h2osim.evaluate("smollm2", {"facts-5": prompt}, ["h2o"], list(BUDGETS))
    h2o = asked[asked["policy"] == "h2o"]
    for name in ("answer_logp", "exact", "kl"):
        assert h2o[name].tolist() == pytest.approx(seen[name].values.ravel().tolist(), rel=1e-4)
    for name in ("full_exact", "full_answer_logp"):
        assert asked[name].tolist() == pytest.approx([float(seen[name][0])] * 2)
    assert found[found["text"] == "short"]["full_exact"].isna().all()
    pd.testing.assert_frame_equal(study.run(texts, tmp_path / "store", 1), found)
