"""Recorded data by name, and the norms that are computed where vectors were recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from h2osim.support.errors import UserError
from h2osim.traces.recorded import RECORDED, check_recorded, in_words
from h2osim.traces.trace import Trace


def _trace(**tensors: Any) -> Trace:
    n = 3
    rows = np.tril(np.ones((2, n, n))) / np.arange(1, n + 1)[:, None]
    return Trace.from_scores(rows, name="small", group_size=2, **tensors)


def test_norms_are_also_those_of_vectors() -> None:
    v, w = np.zeros((1, 3, 2)), np.zeros((2, 2, 2))
    v[0] = [[1, 0], [0, 2], [-1, 1]]
    w[0], w[1] = [[1, 0], [0, 1]], [[0, 3], [0, -1]]
    trace = _trace(v=v, w_o=w, x_norm=np.ones(3))
    check_recorded(trace, 0, ["values", "value_norms", "output_norms"], "policy x")
    # |v W_0|_1 = 1, 2, 2 and |v W_1|_1 = 3, 2, 4
    assert trace.units()[0].output_norms().tolist() == [2, 2, 3]
    assert trace.units("head")[1].output_norms().tolist() == [3, 2, 4]
    assert trace.units()[0].value_norms().tolist() == [1, 2, 2]


def test_everything_that_is_missing_is_named_once() -> None:
    with pytest.raises(UserError) as error:
        check_recorded(_trace(v=np.ones((1, 3, 2))), 0, RECORDED, "policy x")
    assert str(error.value) == (
        "policy x: trace small has no keys, queries, queries before RoPE, key norms, norms of "
        "projected values (layer 0); record it with h2osim record … --store qk --pre-rope "
        "--output-norms"
    )
    with pytest.raises(UserError, match=r"has no norms of projected values"):
        check_recorded(_trace(), 0, ["output_norms"], "policy x")


def test_a_part_of_what_holds_data_is_not_enough() -> None:
    # output projections without values say nothing of projected values
    trace = _trace(w_o=np.ones((2, 2, 2)), x_norm=np.ones(3), v=np.ones((1, 3, 2)))
    stored = [name for name in trace.tensors(0) if name != "v"]
    trace.tensors = lambda layer: tuple(stored)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="norms of projected values"):
        check_recorded(trace, 0, ["output_norms"], "policy x")


def test_words() -> None:
    assert in_words(["keys", "value_norms"]) == "keys, value norms"
