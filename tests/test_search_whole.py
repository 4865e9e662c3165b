"""The command `h2osim search` as a whole, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import word_model
from commands import Run, fails

pytest.importorskip("optuna", reason="a search needs the extra `search` (optuna)")
torch = pytest.importorskip("torch", reason="a search runs a model")

SPACE = "two-speed:mix=0|0.5,recent=0.25|0.5"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where relative paths lead; one thread, because several wait for each other on busy cores."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and four texts."""
    made = tmp_path_factory.mktemp("tiny")
    word_model.save(made / "model")
    (made / "texts").mkdir()
    for seed, name in enumerate("abcd"):
        (made / "texts" / f"{name}.txt").write_text(word_model.text(seed), encoding="utf-8")
    return made


MORE = ("--tune", "2")


def words(home: Path, *more: str) -> list[str]:
    return [
        "search", str(home / "model"), "--texts", str(home / "texts"), "--train", "a,b",
        "-p", SPACE, "-b", "20%", "--prompts", "1", "--trials", "3", "--at-once", "2",
        "--finalists", "2", "-n", "120", "--prompt-len", "60", "--store", "s", "-o", "t.csv",
        "--split", "b.json", *more,
    ]  # fmt: skip


def test_a_search_runs_goes_on_and_keeps_what_is_done(run: Run, home: Path, tmp_path: Path) -> None:
    done = run(*words(home, *MORE))
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "t.csv")
    stages = {"open loop", "train", "tune", "held out", "answers", "split"}
    assert set(table["stage"]) == stages
    tried = table[table["stage"] == "tune"]
    assert len(tried) == 2 and tried.iloc[0][["power", "late", "equal"]].tolist() == [1, 0, 0]
    ours = table[(table["stage"] == "held out") & (table["policy"] == table["winner"])]
    assert sorted(ours["text"].unique()) == ["c", "d"] and (ours["kl"] > 0).all()
    split = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert len(split["splits"]) == 1
    times = {path: path.stat().st_mtime_ns for path in Path(tmp_path, "s").rglob("*.npz")}
    lost = sorted((tmp_path / "s" / "open").rglob("*.npz"))[-1]
    lost.unlink()
    assert run(*words(home, *MORE)).code == 0
    again = pd.read_csv(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(table.drop(columns="command"), again.drop(columns="command"))
    kept = {path for path, time in times.items() if path.stat().st_mtime_ns == time}
    assert kept == set(times) - {lost}
    fails(run(*words(home, "--seed", "1")), "s: holds another search", "seed", "--store")


@pytest.mark.nightly
@pytest.mark.parametrize("by", ["error", "error-abs", "attention-error", "recall"])
def test_other_measures(run: Run, home: Path, tmp_path: Path, by: str) -> None:
    assert run(*words(home, "--by", by, "--objective", "open-loop")).code == 0
    table = pd.read_csv(tmp_path / "t.csv")
    values = table[table["stage"] == "open loop"]["predicted"].to_numpy()
    assert np.isfinite(values).all() and (values > 0).all()
    shares = table[table["stage"] == "split"].groupby("budget")["share"].mean()
    assert shares.to_dict() == pytest.approx({0.2: 0.2})


@pytest.mark.nightly
def test_no_policy_beats_the_optimum_under_the_best_split(
    run: Run, home: Path, tmp_path: Path
) -> None:
    asked = words(home, "--objective", "open-loop", "--left", "2", "-b", "10%,20%")
    assert run(*asked).code == 0
    table = pd.read_csv(tmp_path / "t.csv")
    table = table[table["stage"] == "left"]
    assert set(table["text"]) == {"c", "d"}
    for _, some in table.groupby(["text", "budget"]):
        kinds = some.set_index(["policy", "split"])
        assert len(kinds) == 8 and kinds["kl"].notna().sum() == 6
        for what in ("mass", "value"):
            lost = kinds[f"{what}_lost"]
            assert lost["optimum of " + what, "best"] <= lost.min() + 1e-12  # shares of integers
    assert run(*asked).code == 0  # from the store
    again = pd.read_csv(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(again[again["stage"] == "left"], table)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "more", [("--objective", "both", "--answers", "0.3"), ("-j", "2"), ("--dask",)], ids=str
)
def test_other_ways(run: Run, home: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """Answers to training prompts choose; processes and a cluster find what one process finds."""
    assert run(*words(home)).code == 0
    plain = pd.read_csv(tmp_path / "t.csv").drop(columns="command")
    with ExitStack() as stack:
        if more == ("--dask",):
            distributed = pytest.importorskip("distributed")
            cluster = stack.enter_context(
                distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None)
            )
            more = ("--dask", cluster.scheduler_address)
        again = [word if word != "s" else "s2" for word in words(home, *more)]
        assert run(*again).code == 0
    found = pd.read_csv(tmp_path / "t.csv").drop(columns="command")
    if more[0] == "--objective":
        trained = found[found["stage"] == "train answers"]
        assert trained["answer_logp"].notna().all() and trained["text"].nunique() == 9
    else:
        pd.testing.assert_frame_equal(plain, found)
