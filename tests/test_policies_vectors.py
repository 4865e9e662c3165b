"""Rules that look at keys, values and queries: examples worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from policy_cases import gone, run, trace

from h2osim.traces.trace import Trace


def keys(*vectors: Sequence[float], q: Any = None, **more: Any) -> Trace:
    """One head of these keys, which are the values too; attention is even unless q says else."""
    k = np.array(vectors, float)[None, None]
    asked = np.zeros_like(k) if q is None else np.array(q, float)[None, None]
    return Trace.from_qk(asked, k, v=k, scale=1.0, **more)


def test_knorm_evicts_the_longest_key() -> None:
    example = keys((1, 0), (0, 3), (2, 0), (0, 4))
    assert gone(example, "knorm", 2) == [4, 2, 4, 3]
    assert gone(example, "knorm:recent=1", 2) == [4, 2, 3, 4]
    assert gone(example, "knorm:sinks=2", 2) == [4, 4, 2, 3]


def test_keydiff_evicts_the_key_most_like_the_mean_direction() -> None:
    # Two along x, then y twice: of the two along x the older goes, then of the two along y.
    example = keys((1, 0), (5, 0), (0, 2), (0, 3))
    assert gone(example, "keydiff", 2) == [2, 4, 3, 4]
    # the lone x goes once it is protected no longer
    assert gone(example, "keydiff:recent=2", 2) == [2, 3, 4, 4]
    assert gone(example, "keydiff:sinks=1", 2) == [4, 2, 3, 4]


def test_caote_evicts_what_moves_the_output_least() -> None:
    # Even attention of 1/3 on values 0, 3 and 9: the output is 4, and value 3 is nearest to it.
    example = keys((0, 0), (3, 0), (9, 0))
    assert gone(example, "caote", 2) == [3, 2, 3]
    assert gone(example, "caote:sinks=2", 2) == [3, 3, 2]


def test_dropkv_keeps_what_the_last_output_needs() -> None:
    # The window's query sees values 0, 3, 9, 0 with 1/4 each, output 3: distances 3, 0 and 6.
    example = keys((0, 0), (3, 0), (9, 0), (0, 0), (0, 0))
    assert gone(example, "dropkv:window=1", 3, p=4) == [5, 3, 5, 5, 5]
    assert gone(example, "dropkv:window=1", 2, p=4) == [3, 3, 5, 5, 5]


def test_lagkv_ranks_within_partitions() -> None:
    # Tokens 1 and 2, scaled by 3 and 4 (0 … 1 in both dimensions): (1, 1) does not spread, (0, 2)
    # does. Tokens 3 and 4, scaled by 5 and 6 (0 … 1 and 0 … 2): (0, 0) does not, (1, 1/2) does.
    example = keys((0, 0), (1, 1), (0, 2), (0, 0), (1, 1), (0, 0), (1, 2), (0, 0))
    policy = "lagkv:lag=2,sinks=1"
    assert gone(example, policy, 6, p=7) == [8, 6, 8, 8, 8, 8, 8, 8]
    assert gone(example, policy, 5, p=7) == [8, 6, 8, 6, 8, 8, 8, 8]
    assert gone(example, policy, 4, p=7) == [8, 6, 6, 6, 8, 8, 8, 8]
    # too short for two partitions: the sink and the newest
    assert gone(example, "lagkv:lag=4,sinks=1", 3, p=7) == [8, 6, 6, 6, 6, 8, 8, 8]


def test_criticalkv_splits_the_budget() -> None:
    # The window's row has 6, 1, 4, 3 of 16; the projected value of token 1 is ten times the others.
    logits = np.log([6, 1, 4, 3, 2])
    example = keys(
        *np.eye(5), (0,) * 5, q=[*np.zeros((4, 5)), logits, np.zeros(5)],
        wv_norm1=np.array([[[1.0, 10, 1, 1, 1, 1]]]),
    )  # fmt: skip
    policy = "criticalkv:window=1,kernel=1"
    assert gone(example, policy, 4, p=5) == [6, 6, 6, 4, 6, 6]
    assert gone(example, f"{policy},first=1", 4, p=5) == [6, 4, 6, 6, 6, 6]
    assert gone(example, policy, 2, p=5) == [4, 6, 4, 4, 6, 6]
    assert gone(example, f"{policy},first=1", 2, p=5) == [6, 4, 4, 4, 6, 6]


def test_rkv_keeps_the_newest_of_a_kind() -> None:
    # Tokens 1 to 3 have the same key. In each one's row the newest of the others is left out:
    # token 1 is alike to two rows, token 2 to one, token 3 to none, and 0 is unlike all.
    example = keys((1, 0), (0, 1), (0, 1), (0, 1), (-1, 0), (1, 0))
    policy = "rkv:window=1,when=prompt"
    assert gone(example, f"{policy},mix=0", 4, p=5) == [6, 4, 6, 6, 6, 6]
    assert gone(example, f"{policy},mix=0", 3, p=5) == [6, 4, 4, 6, 6, 6]
    # nothing is alike above a cosine of 1: each has the two others
    assert gone(example, f"{policy},mix=0,threshold=1", 4, p=5) == [6, 4, 6, 6, 6, 6]
    # attention alone: the window's query looks at token 1 most, its neighbours are pooled with it
    asked = [*np.zeros((4, 2)), (0, 9), (0, 0)]
    example = keys((1, 0), (0, 1), (0, 0), (0, 0), (-1, 0), (1, 0), q=asked)
    assert gone(example, f"{policy},mix=1,kernel=1", 2, p=5) == [4, 6, 4, 4, 6, 6]
    assert gone(example, f"{policy},mix=1,kernel=3", 4, p=5) == [6, 6, 6, 4, 6, 6]


def test_quest_reads_the_pages_of_largest_bound() -> None:
    # Pages of keys (3, -3) and (-3, 3), bound 6 for the query (1, 1), and (2, 2) and (0, 0), bound
    # 4: the first is read although its keys give 0 and that of token 2 gives 4.
    example = keys((3, -3), (-3, 3), (2, 2), (0, 0), (0, 0), q=[*np.zeros((4, 2)), (9, 9)])
    found = run(example, "quest:page=2", 2, p=4)
    assert found.step_recall.values.tolist()[0][0] < 0.01
    # tokens by themselves are ranked by the product that they give
    assert run(example, "quest:page=1", 1, p=4).step_recall.values[0, 0] > 0.99
    assert run(example, "quest:page=2", 4, p=4).step_recall.values[0, 0] == 1.0
    assert gone(example, "quest:page=2", 2, p=4) == [5] * 5


def test_kvzip_keeps_what_is_looked_at_later() -> None:
    # The largest of rows 3 and 4: 8, 4 and 10.
    example = trace((16,), (8, 8), (8, 4, 4), (8, 4, 2, 2), (0, 2, 10, 2, 2))
    assert gone(example, "kvzip", 2, p=3) == [5, 2, 5, 5, 5]
    assert gone(example, "kvzip:when=always", 2, p=3) == [3, 2, 4, 5, 5]
