"""A trace whose file is swapped under the workers of a cluster: refused, or the same numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import h2osim

distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'h2osim[dask]'")
pytestmark = pytest.mark.nightly

WORDS = ("-p", "h2o:recent=1..16,tova", "-b", "20,30", "--engine", "naive")
GRID = "h2o:recent=1..16,tova"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


def begun(store: Path) -> int:
    try:
        lines = (store / ".h2osim/log.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum("start" in json.loads(line) for line in lines)


@pytest.mark.parametrize("what", ["layer", "trace", "cut"])
def test_a_trace_swapped_under_the_workers(address: str, tmp_path: Path, what: str) -> None:
    """layer: another's file of the same size; trace: all of another trace; cut: half of the file.

    Workers keep a trace open from chunk to chunk; what was computed before is as it should be.
    """
    mine, other = (
        h2osim.synth("powerlaw", 400, seed=seed, layers=2).save(tmp_path / f"t{seed}")
        for seed in (1, 2)
    )
    kept = Path(shutil.copytree(mine, tmp_path / "kept"))
    expected = h2osim.sweep(mine, GRID, [20, 30])
    store = tmp_path / "s.zarr"
    command = [sys.executable, "-m", "h2osim", "sweep", str(mine), *WORDS, "--dask", address,
               "-o", str(store), "-f", "json"]  # fmt: skip
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while begun(store) < 3:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    for name in ("layer-000.safetensors", "layer-001.safetensors", "trace.json"):
        if name.endswith("json") and what != "trace":
            continue
        new = tmp_path / "new"
        content = (other / name).read_bytes()
        if what == "cut":
            content = (mine / name).read_bytes()[: len(content) // 2]
        new.write_bytes(content)
        os.replace(new, mine / name)
    out, err = driver.communicate(timeout=120)
    assert (driver.returncode, out) == (2, ""), err
    said = err.splitlines()[-1]
    assert said.startswith("h2osim: error: ") and "Traceback" not in err
    assert str(mine) in said and ("sha256" in said or "truncated" in said), said
    part = h2osim.open_sweep(store)
    for name in ("recall", "kept", "mass"):
        there = ~np.isnan(part["recall"].values).any(-1) if name != "mass" else part["mass"] != 0
        np.testing.assert_array_equal(part[name].values[there], expected[name].values[there])
    shutil.rmtree(mine)
    shutil.copytree(kept, mine)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    whole = h2osim.open_sweep(store)
    for name in ("recall", "kept", "mass"):
        np.testing.assert_array_equal(whole[name], expected[name])
