"""Rules that look at keys, values and queries: examples worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from policy_cases import gone, kept_of, run, trace

from h2osim.policies import inputs
from h2osim.policies.arithmetic import drawn
from h2osim.policies.library import vase
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


def test_vase_keeps_sinks_wide_values_and_the_window() -> None:
    # Ranges of the values (equal to the keys): 1, 2, 9, 3, 5, then the window's 0.
    example = keys((1, 0), (0, 2), (9, 0), (3, 0), (0, 5), (0, 0), (0, 0))
    policy = "vase:window=1,when=prompt"
    assert kept_of(example, f"{policy},sinks=0,n_large=2", 3, p=6) == [[2, 4, 5, 6]]
    assert kept_of(example, f"{policy},sinks=1,n_large=2", 3, p=6) == [[0, 2, 5, 6]]
    assert kept_of(example, f"{policy},sinks=0,n_large=.5", 4, p=6)[0][-2:] == [5, 6]
    assert kept_of(example, "vase:window=9,when=prompt", 3, p=6) == [[3, 4, 5, 6]]


def test_vase_draws_by_attention_from_the_window() -> None:
    # The window's query gives tokens 0 to 2 the weights 1, 2 and 5; one place is drawn.
    logits = np.log([1.0, 2.0, 5.0])
    example = keys(*np.eye(4), q=[*np.zeros((3, 4)), [*logits, 0.0]])
    unit = example.units()[0]
    draws, count = np.random.default_rng(7).random((3000, 5)), np.zeros(3)
    key, query = inputs.key(unit, {}), inputs.query(unit, {}) * 2.0  # the scale is 1/√d
    for one in draws:
        ranks, cached, width = np.zeros(4), np.arange(4, dtype=np.uint32), np.zeros(4)
        vase.rank_cache(
            cached, ranks, key, query, width, one[:4], one[4], 1, 0, 1, 1, 0, 1.0
        )
        assert ranks[3] == np.inf
        count[np.argmax(ranks[:3])] += 1
    # standard deviation .009
    np.testing.assert_allclose(count / 3000, [1 / 8, 2 / 8, 5 / 8], atol=0.035)


def test_draws_are_exponential_and_new_in_every_step_and_head() -> None:
    noise = np.random.default_rng(8).random(2000)
    for shift, head in ((0.3, 0), (0.8, 0), (0.3, 2)):  # exponential, of mean 1 and deviation 1
        found = [drawn(x, shift, head) for x in noise]
        assert abs(np.mean(found) - 1) < 0.1 and abs(np.std(found) - 1) < 0.15
    # over steps, what a token draws for one head and for another, and two tokens, are independent
    steps = np.random.default_rng(9).random(2000)
    first, same, other = (
        [drawn(x, now, head) for now in steps] for x, head in ((0.3, 0), (0.3, 1), (0.7, 1))
    )
    for pair in ((first, same), (first, other)):
        assert abs(np.corrcoef(*pair)[0, 1]) < 0.08  # standard deviation .022
    assert drawn(0.0, 0.0, 0) > 30 and 0 < drawn(1 - 2.0**-53, 0.0, 0) < 1e-15
    # and so are the draws of tokens that were chosen together, for small ones, in an earlier step
    few = [x for x in noise if drawn(x, 0.3, 0) < 0.05]
    later = [drawn(x, 0.6180339, 0) for x in few]
    assert len(few) > 60 and 0.7 < np.mean(later) < 1.3 and 0.6 < np.std(later) < 1.5


@pytest.mark.parametrize("what", ["key", "value", "kv_avg", "kv_product"])
def test_cur_compares_lengths_in_windows(what: str) -> None:
    rng = np.random.default_rng(10)
    n, p, window = 25, 22, 5
    k, v = rng.standard_normal((2, 1, 2, n, 3)).astype(np.float32)
    example = Trace.from_qk(np.repeat(k, 2, axis=1), k, v=v, scale=1.0)
    expected = []
    for g in range(2):
        sizes = [(x[0, g, :p].astype(float) ** 2).sum(axis=1) for x in (k, v)]
        cuts = range(window, p, window)
        each = [np.concatenate([y / y.sum() for y in np.split(x, cuts)]) for x in sizes]
        score = {
            "key": each[0], "value": each[1], "kv_avg": sum(each) / 2,
            "kv_product": each[0] * each[1],
        }[what]  # fmt: skip
        score[:2] = np.inf
        expected.append([*sorted(np.argsort(score)[p - 9 :].tolist()), 22, 23, 24])
    policy = f"cur:leverage_type={what},local_window_size=5,sinks=2"
    assert kept_of(example, policy, 9, p=p) == expected
