"""Arrays that are kept between runs are read as they were written, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from h2osim.support.archive import read_arrays, write_arrays

Arrays = dict[str, Any]

ARRAYS: Arrays = {
    "kept": np.arange(6).reshape(2, 3),
    "recall": np.linspace(0, 1, 4, dtype=np.float32),
}


def test_arrays_come_back(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", ARRAYS)
    found = read_arrays(tmp_path / "a.npz")
    assert found is not None and found.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: {name: values for name, values in a.items() if name != "kept"},
        lambda a: {name: values for name, values in a.items() if name != "sha256"},
        lambda a: a | {"kept": a["kept"] + 1},
        lambda a: a | {"kept": a["kept"].T},
        lambda a: a | {"kept": a["kept"].astype(np.uint64)},
        lambda a: a | {"more": a["kept"]},
    ],
    ids=["an array less", "no digest", "a value", "a shape", "a type", "an array more"],
)
def test_a_file_that_was_changed_counts_as_not_there(
    tmp_path: Path, change: Callable[[Arrays], Arrays]
) -> None:
    """Its checksums are right: it was packed anew."""
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    with np.load(path) as opened:
        np.savez_compressed(path, **change(dict(opened)))
    assert read_arrays(path) is None


def test_a_file_that_was_cut_or_flipped_counts_as_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    data = path.read_bytes()
    for damaged in (b"", data[:-1], data[: len(data) // 2], b"\0" * len(data)):
        path.write_bytes(damaged)
        assert read_arrays(path) is None
    assert read_arrays(tmp_path / "none.npz") is None


def test_a_file_of_another_place_counts_as_not_there(tmp_path: Path) -> None:
    """A file of a store that was copied over another was whole, and its numbers were wrong."""
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    write_arrays(one, ARRAYS, "study 1, one")
    found = read_arrays(one, "study 1, one")
    assert found is not None and found.keys() == ARRAYS.keys()
    other.write_bytes(one.read_bytes())
    assert read_arrays(other, "study 1, other") is None
    assert read_arrays(one, "study 2, one") is None
    write_arrays(one, ARRAYS)
    assert read_arrays(one, "study 1, one") is None  # of no place: no one can say whose it is
