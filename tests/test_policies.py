"""The rule of each policy but those of the H2O family, on examples worked out by hand.

`test_policies_h2o.py` has the H2O family; `policy_cases.py` says how attention is written.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import EVEN, gone, run, seen, square, trace
from strategies import examples, traces

from h2osim.policies.inputs import noise
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.replays.replaying import replay
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace


def test_full_keeps_everything_whatever_the_budget() -> None:
    assert gone(EVEN, "full", 1) == [6] * 6
    assert seen(EVEN, "full", 1, 1, 16) == [16] * 5
    assert run(EVEN, "full", 1).held.values.tolist() == [5]


def test_recency_is_a_sliding_window() -> None:
    assert gone(EVEN, "recency", 2) == [2, 3, 4, 5, 6, 6]
    assert gone(EVEN, "recency", 2, p=4) == [3, 3, 4, 5, 6, 6]  # two at the prompt's end
    assert seen(EVEN, "recency", 2, 4, 16) == [4 + 2 + 2, 2 + 2 + 2]


def test_streaming_keeps_the_first_tokens_and_a_window() -> None:
    assert gone(EVEN, "streaming:sinks=1", 3) == [6, 3, 4, 5, 6, 6]
    assert gone(EVEN, "streaming:sinks=2", 3) == [6, 6, 3, 4, 5, 6]
    assert gone(EVEN, "streaming:sinks=2", 3, p=5) == [6, 6, 4, 4, 5, 6]
    # a budget below the sinks holds the first of them, with or without a prompt
    assert gone(EVEN, "streaming:sinks=4", 2) == [6, 6, 2, 3, 4, 5]
    assert gone(EVEN, "streaming:sinks=4", 2, p=5) == [6, 6, 4, 4, 4, 5]


def test_random_ranks_tokens_by_a_hash_of_seed_and_position() -> None:
    def splitmix64(seed: int, position: int) -> float:
        z = ((position + 1) * 0x9E3779B97F4A7C15 + seed * 0xD1342543DE82EF95) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return ((z ^ (z >> 31)) >> 11) / 2**53

    unit = EVEN.units()[0]
    for seed in (0, 1, 12345, 2**53):
        expected = [splitmix64(seed, j) for j in range(6)]
        assert noise(unit, {"seed": seed}).tolist() == expected
        kept = sorted(range(6), key=lambda j: expected[j])[-2:]
        left = gone(EVEN, f"random:seed={seed}", 2)
        assert [j for j in range(6) if left[j] == 6] == sorted(kept)


def test_random_keeps_every_pair_equally_often() -> None:
    unit = EVEN.units()[0]
    count = dict.fromkeys(itertools.combinations(range(6), 2), 0)
    for seed in range(3000):
        best = np.argsort(noise(unit, {"seed": seed}))[-2:]
        count[tuple(sorted(best.tolist()))] += 1
    # 3000 / 15 pairs: 200 each, standard deviation 13.7
    assert min(count.values()) > 150 and max(count.values()) < 250


# --- rows that are forgotten ----------------------------------------------------------------


def test_tova_evicts_by_the_newest_row_and_protects_nothing() -> None:
    # Row 2: 0 gets least; row 3: the newest gets nothing and goes; row 4: a tie, the older goes.
    example = trace((16,), (10, 6), (2, 6, 8), (0, 8, 8, 0), (4, 4, 4, 0, 4))
    assert gone(example, "tova", 2) == [2, 4, 5, 3, 5]


def test_tova_decides_for_a_layer_by_the_sum_of_its_heads() -> None:
    # Alone the heads evict 0 and 1; together (2+8, 6+1, 8+7): 1.
    heads = [square((16,), (8, 8), row) for row in ((2, 6, 8), (8, 1, 7))]
    both = Trace.from_scores(np.array(heads))
    alone = replay(both, "tova", 2, engine="naive").evicted_at.values[0, 0, :, 0]
    assert alone.tolist() == [[2, 3, 3], [3, 2, 3]]
    assert gone(both, "tova", 2, share="layer") == [3, 2, 3]


def test_any_rule_acts_once_or_every_few_steps() -> None:
    example = trace((16,), (10, 6), (2, 6, 8), (2, 8, 6, 0), (4, 4, 1, 3, 4), (1, 1, 1, 9, 2, 2))
    assert gone(example, "tova", 2, p=2) == [2, 5, 4, 3, 6, 6]
    assert gone(example, "tova:when=prompt", 2, p=3) == [2, 6, 6, 6, 6, 6]
    # the prompt's end, row 2, takes 0; then row 4 takes 2 and 3; row 3 and row 5 take nothing
    assert gone(example, "tova:when=every:2", 2, p=3) == [2, 6, 4, 4, 6, 6]
    assert run(example, "tova:when=every:2", 2, p=3).held.values.tolist() == [3]
    assert gone(example, "recency:when=every:3", 2, p=3) == [2, 5, 5, 5, 6, 6]
    for text, words in (
        ("topk:when=prompt", "unknown parameter 'when'"),
        ("nacl:when=always", "expected prompt"),
        ("tova:when=every:0", "expected always | prompt | every:m"),
        ("tova:when=every:m", "expected always | prompt | every:m"),
        ("streaming:heads=max", "unknown parameter 'heads'"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            parse(text)


def test_the_heads_of_a_unit_count_by_their_sum_or_by_the_largest() -> None:
    # Sums 12, 7, 13; largest 6, 7, 8. Row 3: sums 14, 1, 10, 7; largest 8, 1, 9, 6.
    heads = [square((16,), (8, 8), row, last) for row, last in (
        ((6, 7, 3), (8, 1, 1, 6)), ((6, 0, 10), (6, 0, 9, 1))
    )]  # fmt: skip
    both = Trace.from_scores(np.array(heads))
    assert gone(both, "tova", 2, share="layer") == gone(both, "tova:heads=mean", 2, share="layer")
    assert gone(both, "tova", 2, share="layer") == [4, 2, 4, 3]
    assert gone(both, "tova:heads=max", 2, share="layer") == [2, 3, 4, 4]
    # A threshold that is multiplied by the heads means the same for the largest as for one head.
    low = "scissorhands:window=4,recent=0,scores=full"
    # Row 2 (average 2 · 16/3): sums 15, 9, 8; twice the largest 20, 14, 8. Two of three leave,
    # the lower first, then the older.
    heads = [square((16,), (8, 8), row) for row in ((5, 7, 4), (10, 2, 4))]
    both = Trace.from_scores(np.array(heads))
    for engine in ("naive", "numba"):
        assert gone(both, low, 2, share="layer", engine=engine) == [3, 2, 2]
        assert gone(both, f"{low},heads=max", 2, share="layer", engine=engine) == [2, 3, 2]
    alone = Trace.from_scores(np.array([heads[0]]))
    assert gone(alone, f"{low},heads=max", 2) == gone(alone, low, 2)


def test_snapkv_chooses_again_by_the_newest_rows() -> None:
    # window 2, no pooling. At the prompt's end rows 2 and 3 show 0 and 1: 8, 4. Two steps on rows
    # 4 and 5 show 0, 2 and 3: 2, 4, 9: with k = 3 one of them stays beside 4 and 5.
    example = trace(
        (16,), (8, 8), (4, 2, 10), (4, 2, 4, 6), (1, 5, 2, 4, 4), (1, 2, 2, 5, 3, 3),
        (2, 2, 2, 2, 2, 3, 3),
    )  # fmt: skip
    assert gone(example, "snapkv:window=2,kernel=1", 3, p=4) == [7, 3, 7, 7, 7, 7, 7]
    again = "snapkv:window=2,kernel=1,when=every:2"
    assert gone(example, again, 3, p=4) == [5, 3, 5, 7, 7, 7, 7]
    # Pooled over three keys: a tie, so 0 goes; then 1, 2 and 3 have 7, 4, 9 (times 16/15), in sums
    # 11, 20, 13, as maxima 7, 9, 9.
    assert gone(example, "snapkv:window=2,kernel=3,when=every:2", 3, p=4)[:4] == [3, 5, 7, 5]
    pooled = "snapkv:window=2,kernel=3,pool=max,when=every:2"
    assert gone(example, pooled, 3, p=4)[:4] == [3, 5, 5, 7]


def test_decay_lies_between_the_sum_and_the_newest_row() -> None:
    # gamma 1/2: row 1: 8 + 12, 4; row 2: 10 + 4, 2 + 5, 7: of the two sevens the older goes.
    # The plain sums are 32, 9, 7; the newest row is 4, 5, 7.
    example = trace((16,), (12, 4), (4, 5, 7))
    assert gone(example, "decay:gamma=0.5,recent=0", 2) == [3, 2, 3]
    assert gone(example, "decay:gamma=1,recent=0", 2) == [3, 3, 2]
    assert gone(example, "decay:gamma=0,recent=0", 2) == [2, 3, 3]


@examples(15)
@given(
    traces(min_n=3, max_n=16),
    st.sampled_from(["full", "cached"]),
    st.sampled_from(["0", "0.5", "2"]),
    st.integers(1, 8),
    st.integers(1, 4),
)
def test_decay_of_one_is_h2o_and_of_zero_is_tova(
    given: Trace, scores: str, recent: str, k: int, p: int
) -> None:
    found = replay(
        given,
        [
            f"decay:gamma=1,recent={recent},scores={scores}",
            f"h2o:recent={recent},scores={scores}",
            f"decay:gamma=0,recent=0,scores={scores}",
            f"tova:scores={scores}",
        ],
        min(k, given.n),
        prompt_len=min(p, given.n - 1),
        engine="naive",
    ).evicted_at
    assert (found[0] == found[1]).all()
    assert (found[2] == found[3]).all()


def test_scissorhands_drops_half_of_the_cache_by_recent_low_counts() -> None:
    # k = 4, the last two rows count. Row 3 (average 16): token 1 is low. Row 4 (12.8): 1, 2, 3.
    # Counts 0, 2, 1, 1, 0: five tokens are there, two stay. Token 0 was low in rows 1 and 2, which
    # have left the window. Then nothing happens until the cache overflows again.
    example = trace(
        (64,),
        (0, 64),
        (2, 31, 31),
        (20, 4, 20, 20),
        (30, 4, 4, 4, 22),
        (10, 10, 10, 10, 12, 12),
        (10, 10, 10, 10, 8, 8, 8),
        (8, 8, 8, 8, 8, 8, 8, 8),
    )
    assert gone(example, "scissorhands:window=2,recent=0", 4) == [7, 4, 4, 4, 7, 7, 8, 8]
    # all rows: counts 2, 2, 1, 1, 0
    assert gone(example, "scissorhands:window=400,recent=0", 4) == [4, 4, 4, 7, 7, 7, 8, 8]
    assert gone(example, "scissorhands:window=2,recent=2", 4)[:5] == [4, 4, 4, 7, 7]
    assert run(example, "scissorhands:window=2,recent=0", 4).held.values.tolist() == [4]
    # one a step: the counts at step 4 are those above, but token 1 alone goes; at step 5 (average
    # 10.7, rows 4 and 5) 2 and 3 have two, and token 2 goes; at step 6 (9.1) each has one, and the
    # oldest goes
    one = "scissorhands:window=2,recent=0,drop=one,scores=full"
    assert gone(example, one, 4)[:3] == [6, 4, 5]
    # by mass: rows 3 and 4 give 50, 8, 24, 24, 22, then each time the newest has least; with two
    # sinks token 4 has the least of the rest
    mass = "scissorhands:window=2,recent=0,drop=one,count=mass,scores=full"
    assert gone(example, mass, 4) == [8, 4, 8, 8, 8, 5, 6, 7]
    assert gone(example, f"{mass},sinks=2", 4) == [8, 8, 8, 8, 4, 5, 6, 7]


def test_roco_protects_the_largest_deviations() -> None:
    # Received so far, in sixteenths, at step 4 with k = 4 (mean, variance):
    #   token 0: 16 14 14 12 9 (13, 5.6)   token 1: 2 2 2 2 (2, 0)   token 2: 0 0 3 (1, 2)
    #   token 3: 2 1 (1.5, .25)            token 4: the newest, counts as infinite
    # robust .5: the 3 largest deviations 4, 0, 2 are safe; of 1 and 3 the smaller mean goes.
    # robust 0: only the newest is safe, token 2 has the least mean.
    example = trace((16,), (14, 2), (14, 2, 0), (12, 2, 0, 2), (9, 2, 3, 1, 1))
    full = "roco:recent=1,scores=full"
    assert gone(example, f"{full},robust=0.5", 4) == [5, 5, 5, 4, 5]
    assert gone(example, f"{full},robust=0", 4) == [5, 5, 4, 5, 5]
    # the prompt's end is cut by the same rule: means 14, 2, 0; at step 4 13, 2 and 1.5
    assert gone(example, f"{full},robust=0", 3, p=4) == [5, 5, 3, 4, 5]


def test_roco_protects_as_many_tokens_as_it_is_told() -> None:
    # the example above: 3 of 5 by share; a number of tokens says the same, and all may be safe
    example = trace((16,), (14, 2), (14, 2, 0), (12, 2, 0, 2), (9, 2, 3, 1, 1))
    full = "roco:recent=1,scores=full"
    assert gone(example, f"{full},robust=2", 4) == gone(example, f"{full},robust=0.5", 4)
    assert gone(example, f"{full},robust=9", 4) == [4, 5, 5, 5, 5]


def test_lazy_keeps_a_token_through_pauses_it_has_made_before() -> None:
    # alpha .2: above 3.2 of 16 a token is used. At step 8 (the prompt's end):
    #   token 0: used at 1 and 5, idle for 3, longest pause 4: 2s(-3/4) + 2s(-1/4) = 1.517
    #   token 2: used until 7, idle for 1, pause 1:            2s(-1) + 2s(-1)     = 1.076
    #   token 6: never used, idle for 2:                       2s(-2) + 2s(-1)     = 0.776
    # and the newest two are safe.
    rows = (
        (16,),
        (8, 8),
        (2, 2, 12),
        (1, 1, 8, 6),
        (1, 1, 8, 1, 5),
        (6, 0, 6, 0, 0, 4),
        (1, 1, 8, 1, 1, 1, 3),
        (1, 1, 8, 1, 1, 1, 1, 2),
        (1, 1, 2, 1, 1, 1, 1, 1, 7),
        (4, 0, 4, 0, 0, 0, 0, 0, 4, 4),
        (4, 0, 4, 0, 0, 0, 0, 0, 0, 4, 4),
        (4, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 4),
    )
    policy = "lazy:window=2,alpha=0.2,scores=full"
    assert gone(trace(*rows[:10]), policy, 3, p=9) == [10, 8, 8, 8, 8, 8, 8, 10, 10, 10]
    assert gone(trace(*rows[:10]), policy, 4, p=9) == [10, 8, 10, 8, 8, 8, 8, 10, 10, 10]
    # evictions come every second step, so that k + 1 tokens are held in between
    found = run(trace(*rows), policy, 3, p=9)
    assert sorted({t for t in found.evicted_at.values[0].tolist() if t < 12}) == [8, 10]
    assert found.held.values.tolist() == [4]


# --- set functions --------------------------------------------------------------------------


def test_greedy_serves_every_head_that_shares_the_cache() -> None:
    # Sums of the two heads, in 64ths: token 1 has 64 + 0, token 2 has 32 + 33. The mass is less
    # without 1; sqrt(1 + z) of what is left is 1.732 + 2 without 1, and 1.871 + 1.867 without 2.
    one = square((64,), (16, 48), (16, 16, 32)), square((64,), (64, 0), (31, 0, 33))
    both = Trace.from_scores(np.array(one))
    assert gone(both, "greedy:objective=mass,scores=full", 2, share="layer") == [3, 2, 3]
    assert gone(both, "greedy:scores=full", 2, share="layer") == [3, 3, 2]
    assert gone(both, "greedy:objective=log,scores=full", 2, share="layer") == [3, 3, 2]
    assert gone(both, "h2o:recent=0,scores=full", 2, share="layer") == [3, 2, 3]
    # Row 2 is 8 8 0 and 3 3 10: token 2 has the least sum, but of 0 and 1 either one is enough to
    # cover half of the first head, and without 2 the second head keeps 6 of 16. As the sums are
    # 32 16 0 and 27 11 10, the largest of each head is token 0's: 1 and 2 are worth nothing.
    two = square((16,), (8, 8), (8, 8, 0)), square((16,), (8, 8), (3, 3, 10))
    both = Trace.from_scores(np.array(two))
    assert gone(both, "tova:scores=full", 2, share="layer") == [3, 3, 2]
    assert gone(both, "greedy:objective=coverage,scores=full", 2, share="layer") == [2, 3, 3]
    assert gone(both, "greedy:objective=facility,scores=full", 2, share="layer") == [3, 2, 3]


# --- blends ------------------------------------------------------------------------------


def test_two_speed_blends_a_slow_mean_with_a_fast_one() -> None:
    # Sums 32, 9, 7 over 3, 2, 1 rows, and the newest row 4, 5, 7.
    rows = ((16,), (12, 4), (4, 5, 7))
    example = trace(*rows)

    def leaves(text: str) -> int:
        return gone(example, f"two-speed:recent=0,{text}", 2).index(2)

    assert leaves("mix=0") == 1  # 10.7, 4.5, 7
    assert leaves("mix=0,prior=4") == 2  # 32/7, 9/6, 7/5
    assert leaves("mix=0,gamma=0.5") == 1  # 14/1.75, 7/1.5, 7/1
    assert leaves("mix=1,fast=0") == 0
    assert leaves("mix=1,fast=0.5") == 1  # half of 14, 7, 7: of two the older
    assert leaves("mix=0.8,fast=0,join=sum") == 1  # 2.13 + 3.2, 0.9 + 4, 1.4 + 5.6
    assert leaves("mix=0.8,fast=0,join=max") == 0
    assert leaves("mix=0,prior=7,power=1") == 2  # 32/10, 9/9, 7/8
    assert leaves("mix=0,prior=7,power=2") == 1  # 416/10, 41/9, 49/8
    normed = trace(*rows, v_norm1=np.array([[1.0, 16.0, 1.0]]))
    for power, first in ((0, 1), (0.25, 2), (0.5, 2), (1, 2)):  # 10.7, 4.5 * 16^power, 7
        assert gone(normed, f"two-speed:recent=0,mix=0,value={power}", 2).index(2) == first
    with pytest.raises(UserError, match="value norms"):
        leaves("value=1")


@examples(20)
@given(traces(max_n=12))
def test_two_speed_has_h2o_mean_and_decay_as_corners(drawn: Trace) -> None:
    pairs = {
        "two-speed:recent=0,mix=0": "h2o-mean:recent=0",
        "two-speed:recent=0.5,mix=1,fast=0.5": "decay:recent=0.5,gamma=0.5",
    }
    for ours, other in pairs.items():
        found = replay(drawn, [ours, other], [1, max(1, drawn.n // 2)])
        assert (found.evicted_at.values[0] == found.evicted_at.values[1]).all()


# --- values ---------------------------------------------------------------------------------


def test_vatp_weighs_the_sum_by_the_size_of_the_value() -> None:
    # Sums 28, 12, 8 times norms 1, 1, 2: token 1 goes, where h2o evicts token 2.
    rows = ((16,), (10, 6), (2, 6, 8))
    example = trace(*rows, v_norm1=np.array([[1.0, 1.0, 2.0]]))
    assert gone(example, "vatp:recent=0,sinks=0", 2) == [3, 2, 3]
    assert gone(example, "h2o:recent=0", 2) == [3, 3, 2]
    assert gone(example, "vatp:recent=0,sinks=2", 2) == [3, 3, 2]
    with pytest.raises(UserError, match="value norms"):
        gone(trace(*rows), "vatp", 2)


# --- oracles --------------------------------------------------------------------------------


def test_topk_takes_each_rows_best_afresh() -> None:
    # Besides itself every step takes its best two: 10+4, then 8+5, then 6+3; ties do not matter.
    example = trace((16,), (12, 4), (10, 4, 2), (2, 8, 5, 1), (6, 3, 2, 3, 2))
    assert seen(example, "topk", 2, 1, 16) == [16, 16, 14, 11]
    assert gone(example, "topk", 2) == [5] * 5
    assert run(example, "topk", 2).held.values.tolist() == [2]
    assert seen(example, "topk", 1, 2, 16) == [12, 9, 8]


def test_future_evicts_the_least_remaining_mass() -> None:
    # After row 1 tokens 0 and 1 still get 15 + 1 and 0 + 12: token 1 goes at k = 1. At k = 2
    # after row 2 it is 1, 12 and 1: of the two ones the older goes. At the end all are 0.
    example = trace((16,), (8, 8), (15, 0, 1), (1, 12, 1, 2))
    assert gone(example, "future", 1) == [2, 1, 3, 4]
    assert gone(example, "future", 2) == [2, 3, 4, 4]


def test_every_policy_has_an_example() -> None:
    files = Path(__file__).parent.glob("test_policies*.py")
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    missing = [name for name in all_policies() if not re.search(rf'"{name}[":]', text)]
    assert not missing, "a policy comes with an example worked out by hand"


@pytest.mark.parametrize("engine", ["naive", "numba"])
@examples(20)
@given(drawn=traces())
def test_a_modular_objective_makes_the_dynamic_greedy_h2o(drawn: Trace, engine: str) -> None:
    both = ["greedy:objective=mass,scores=full", "h2o:recent=0,scores=full"]
    for prompt_len in {1, max(1, drawn.n // 2)}:
        budgets = sorted({1, max(1, drawn.n // 3), drawn.n})
        found = replay(drawn, both, budgets, engine=engine, prompt_len=prompt_len)
        gone = found.evicted_at.values
        assert (gone[0] == gone[1]).all()
