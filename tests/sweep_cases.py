"""Small traces and what the tests of sweeps share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray
from trace_cases import random_trace

from h2osim.sweeps.store import SweepStore

GRID = "h2o:recent=0..4:2,scores=full|cached,decay:gamma=0.5..1.0:0.25,recent=2,scores=full,tova"
MANY = "h2o:recent=0..8,scores=full|cached,decay:gamma=0.5..1:0.1,recent=0..3,scores=full"


SMALL = random_trace()


def same(found: xarray.Dataset, expected: xarray.Dataset) -> None:
    xarray.testing.assert_identical(found.load(), expected.load())


def files(store: Path) -> dict[str, bytes]:
    """Every file of the results, without who made it when."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and ".h2osim" not in path.parts
    }


def finished(store: Path) -> set[int]:
    """The chunks that are marked."""
    if not store.exists():
        return set()
    opened = SweepStore(store)
    return {i for i in range(int(np.prod(opened.grid))) if opened.finished(i)}


def log(store: Path) -> list[dict[str, Any]]:
    try:
        lines = (store / ".h2osim" / "log.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
