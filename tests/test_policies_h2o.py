"""The rules of the H2O family, on examples worked out by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from policy_cases import EVEN, gone, run, seen, trace
from strategies import examples, traces

from h2osim.replays.replaying import replay
from h2osim.traces.trace import Trace


def test_h2o_evicts_the_least_accumulated_attention_outside_the_window() -> None:
    # Sums after row 3: 46, 7, 7 and 4; the newest is safe, of the two sevens the older goes.
    # Row 4 gives the lost token 9 of 16; sums 50, 8, 5 of tokens 0, 2, 3: token 3 goes.
    example = trace((16,), (12, 4), (10, 1, 5), (8, 2, 2, 4), (4, 9, 1, 1, 1))
    assert gone(example, "h2o:recent=1,scores=full", 3) == [5, 3, 5, 4, 5]
    assert seen(example, "h2o:recent=1,scores=full", 3, 1, 16) == [16, 16, 16, 4 + 1 + 1 + 1]
    found = run(example, "h2o:recent=1,scores=full", 3)
    assert found.recall.values.tolist() == [(16 + 16 + 16 + 7) / 64]
    assert found.held.values.tolist() == [3]


def test_h2o_with_cached_scores_renormalises_the_row_over_the_cache() -> None:
    # After row 2 the sums are 28, 12, 8: token 2 goes. In row 3 the lost token gets 12 of 16, so
    # only 4/16 is seen: the new token's 4/16 counts as it is (sum 4 < 12: it goes), or as 1, which
    # is 16/16 > 12/16: token 1 goes.
    example = trace((16,), (8, 8), (4, 4, 8), (0, 0, 12, 4))
    assert gone(example, "h2o:recent=0,scores=full", 2) == [4, 4, 2, 3]
    assert gone(example, "h2o:recent=0,scores=cached", 2) == [4, 3, 2, 4]


def test_h2o_scores_of_the_prompt_are_dense() -> None:
    # The same rows as a prompt: sums 28, 12, 20, 4 in either kind; two go at its end.
    example = trace((16,), (8, 8), (4, 4, 8), (0, 0, 12, 4), (4, 4, 4, 2, 2))
    for scores in ("full", "cached"):
        assert gone(example, f"h2o:recent=0,scores={scores}", 2, p=4)[:4] == [5, 3, 5, 3]


def test_h2o_protects_half_of_the_budget_by_default() -> None:
    # From token 4 on the new ones get nothing. With floor(5 / 2) = 2 newest safe, token 3 (1) goes
    # at step 5, then 4 and 5 (0) as they leave the window; without a window 4 goes at once.
    first = [(16,), (14, 2), (14, 0, 2), (15, 0, 0, 1)]
    example = trace(*first, *((16, *[0] * t) for t in range(4, 8)))
    assert gone(example, "h2o", 5) == [8, 8, 8, 5, 6, 7, 8, 8]
    assert gone(example, "h2o:recent=2,scores=cached", 5) == [8, 8, 8, 5, 6, 7, 8, 8]
    assert gone(example, "h2o:recent=0", 5) == [8, 8, 8, 8, 5, 6, 7, 8]


def test_h2o_once_after_the_prompt() -> None:
    example = trace((16,), (8, 8), (4, 4, 8), (0, 0, 12, 4), (4, 4, 4, 2, 2))
    found = run(example, "h2o:recent=0,when=prompt", 2, p=3)
    assert found.evicted_at.values.tolist() == [[5, 5, 2, 5, 5]]
    assert found.held.values.tolist() == [3]  # the cache grows


def test_h2o_alg1_keeps_the_first_tokens_for_ever() -> None:
    # Even where the newest takes all attention and the residents' was rounded to 0.
    example = trace((16,), (0, 16), (0, 0, 16), (0, 0, 0, 16), (0, 0, 0, 0, 16))
    assert gone(example, "h2o-alg1", 2) == [5, 5, 2, 3, 4]
    assert gone(example, "h2o-alg1", 1) == [5, 1, 2, 3, 4]


def test_h2o_alg2_counts_only_from_the_step_that_fills_the_cache() -> None:
    # k = 2: row 2 is the first that counts, 2, 8, 6: token 0 goes, for all its 32 before.
    # Row 3: 8 + 2 and 6 + 7 against 7: the newest goes. Sums from row 0 on are 34, 8, 6: 2 goes.
    example = trace((16,), (16, 0), (2, 8, 6), (0, 2, 7, 7))
    assert gone(example, "h2o-alg2", 2) == [2, 4, 4, 3]
    assert gone(example, "h2o:recent=0", 2)[:3] == [4, 3, 2]


def test_h2o_mask_hides_the_token_that_leaves_the_window_for_one_step() -> None:
    # H = R = 2 at k = 4. Sums after row 4: 212, 14, 26, 52, 16; of tokens 0-2, 1 goes.
    # Row 5: token 3 has left the window and is hidden: 0, 2, 4, 5 are seen, 1 + 4 + 16 + 33 = 54.
    #   Candidates 0, 2 (26 + 64 * 4/54 = 30.7) and 3 (52, as before): 2 goes, 3 returns.
    # Row 6: 4 is hidden: 0, 3, 5, 6 are seen, 1 + 8 + 32 + 1 = 42; of 3 (64.2) and 4 (35.0) 4 goes.
    example = trace(
        (64,),
        (60, 4),
        (48, 4, 12),
        (20, 4, 4, 36),
        (20, 2, 10, 16, 16),
        (1, 2, 4, 8, 16, 33),
        (1, 2, 4, 8, 16, 32, 1),
    )
    assert seen(example, "h2o-mask:recent=2", 4, 1, 64) == [64, 64, 64, 64, 54, 42]
    assert gone(example, "h2o-mask:recent=2", 4) == [7, 4, 5, 7, 6, 7, 7]
    # after a prompt longer than k the first decode step hides a token already
    assert seen(example, "h2o-mask:recent=2", 4, 5, 64) == [54, 42]


def test_h2o_lmeval_adds_a_band_to_a_heavy_set_of_its_own() -> None:
    # k = 4, R = 2: a heavy set of H = 2, self included, so one older key; the band is 2 keys.
    # Row 1: sums 104, 24: token 1 leaves the heavy set, and stays in the band until row 3.
    # Row 2 gives it 50, which does not bring it back; token 2 (10) loses to 0 (108) at once,
    # without any protection.
    example = trace(
        (64,), (40, 24), (4, 50, 10), (1, 2, 4, 57), (1, 2, 4, 8, 49), (1, 2, 4, 8, 16, 33)
    )
    assert seen(example, "h2o-lmeval:recent=2", 4, 1, 64) == [
        64,
        64,
        64,
        64 - 2,  # row 4: 0, the band 2 and 3, itself
        64 - 2 - 4,  # row 5: 0, the band 3 and 4, itself
    ]
    assert gone(example, "h2o-lmeval:recent=2", 4) == [6, 3, 4, 5, 6, 6]
    # H = 1 is the token itself: the band alone
    assert gone(example, "h2o-lmeval:recent=2", 3) == [2, 3, 4, 5, 6, 6]


def test_h2o_lmeval_never_exceeds_a_budget_smaller_than_its_band() -> None:
    assert run(EVEN, "h2o-lmeval:recent=4", 2).held.values.tolist() == [2]


def test_h2o_realdrop_is_h2o_with_a_fixed_window() -> None:
    @examples(10)
    @given(traces(min_n=3, max_n=16), st.integers(0, 4), st.integers(1, 8))
    def check(given: Trace, recent: int, k: int) -> None:
        k = min(k, given.n)
        both = replay(
            given,
            [f"h2o-realdrop:recent={recent}", f"h2o:recent={recent},scores=cached"],
            k,
            engine="naive",
        )
        assert (both.evicted_at[0] == both.evicted_at[1]).all()

    check()
    # a window that is no smaller than the budget is a sliding window
    assert gone(EVEN, "h2o-realdrop", 2) == gone(EVEN, "recency", 2)


def test_h2o_flexgen_promotes_the_oldest_recent_unseen() -> None:
    # h = 2 at k = 3: two heavy slots, a ring of one. Step 3: sums 36, 22, 0 and 6; the token that
    # leaves the ring (2, with nothing) moves up, the worse of the heavies 0 and 1 is kicked.
    # Step 4: now 2 is a heavy, and kicked.
    example = trace((16,), (8, 8), (8, 8, 0), (4, 6, 0, 6), (4, 4, 0, 4, 4))
    assert gone(example, "h2o-flexgen", 3, p=3) == [5, 3, 4, 5, 5]
    assert gone(example, "h2o:recent=1", 3, p=3) == [5, 5, 3, 4, 5]
    # an even budget leaves a slot empty
    assert gone(example, "h2o-flexgen", 4, p=3) == gone(example, "h2o-flexgen", 3, p=3)
    # at a prompt's end nothing moves up: 2 is the least of 0, 1, 2; at step 4 it is 1 of 0 and 1
    assert gone(example, "h2o-flexgen", 3, p=4) == [5, 4, 3, 5, 5]


def test_h2o_global_keeps_the_columns_that_matter_over_the_whole_text() -> None:
    # Column sums 54, 2, 1, 23, 0: with a window of 1, k = 3 keeps columns 0 and 3. Token 1 leaves
    # when its window ends (after step 2), though there is room for three.
    example = trace((16,), (15, 1), (14, 1, 1), (8, 0, 0, 8), (1, 0, 0, 15, 0))
    assert gone(example, "h2o-global:recent=1", 3) == [5, 2, 3, 5, 5]
    assert gone(example, "h2o-global:recent=1", 2) == [5, 2, 3, 4, 5]
    assert gone(example, "h2o-global:recent=1", 3, p=3) == [5, 2, 3, 5, 5]


def test_h2o_hindsight_scores_by_the_whole_text() -> None:
    # So far token 2 has got least (3, against 18 of token 1); with the last row it has got 19.
    example = trace((16,), (10, 6), (8, 6, 2), (8, 6, 1, 1), (0, 0, 16, 0, 0))
    assert gone(example, "h2o:recent=1,scores=full", 3) == [5, 5, 3, 4, 5]
    assert gone(example, "h2o-hindsight:recent=1", 3) == [5, 3, 5, 4, 5]
    assert gone(example, "h2o-hindsight:recent=1,sinks=2", 3) == [5, 5, 3, 4, 5]


def test_h2o_mean_divides_by_the_queries_that_could_see_the_token() -> None:
    # Sums 28, 12, 8 over 3, 2, 1 queries: 9.3, 6, 8. The mean evicts token 1, the sum token 2.
    example = trace((16,), (10, 6), (2, 6, 8), (4, 4, 4, 4))
    assert gone(example, "h2o-mean:recent=0", 2)[:3] == [4, 2, 4]
    assert gone(example, "h2o:recent=0", 2)[:3] == [4, 4, 2]
    assert gone(example, "h2o-mean:recent=0,when=prompt", 2, p=3) == [4, 2, 4, 4]
