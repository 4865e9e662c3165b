"""The rules that act once, at the prompt's end, on examples worked out by hand."""

from __future__ import annotations

import math

import numpy as np
from policy_cases import gone, kept_of, run, square, trace

from h2osim.policies.inputs import gumbel
from h2osim.policies.library import nacl
from h2osim.traces.trace import Trace


def test_snapkv_pools_inside_the_borders() -> None:
    # Rows 6 and 7 add up to 20 0 0 8 0 18 before the window. Pooled by 3 with zeros beyond both
    # borders (the window's own columns, 41 and more, are beyond): 20 20 8 8 26 18. Two stay: 4,
    # and of the two twenties the newer one.
    first = [(64,), *((64, *[0] * t) for t in range(1, 6))]
    rows = [*first, (10, 0, 0, 4, 0, 9, 41), (10, 0, 0, 4, 0, 9, 20, 21)]
    later = [(64, *[0] * t) for t in range(8, 11)]
    example = trace(*rows, *later)
    assert gone(example, "snapkv:window=2,kernel=3", 4, p=8) == [7, 11, 7, 7, 11, 7, *[11] * 5]
    assert gone(example, "snapkv:window=2,kernel=1", 4, p=8) == [11, 7, 7, 7, 7, 11, *[11] * 5]
    # an even width acts as the next odd; nothing goes while decoding
    assert gone(example, "snapkv:window=2,kernel=2", 4, p=8)[:8] == [7, 11, 7, 7, 11, 7, 11, 11]
    assert run(example, "snapkv:window=2,kernel=3", 4, p=8).held.values.tolist() == [6]
    # a window as long as the prompt leaves nothing to choose: the newest stay
    assert gone(example, "snapkv:window=64", 3, p=8)[:8] == [7, 7, 7, 7, 7, 11, 11, 11]


def test_tova_of_kvpress_keeps_the_last_token_once() -> None:
    # Row 3 gives its own token nothing, which stays all the same; token 2 has the most of the rest.
    example = trace((16,), (8, 8), (4, 4, 8), (6, 2, 8, 0), (8, 8, 0, 0, 0), (16, 0, 0, 0, 0, 0))
    assert gone(example, "tova-kvpress", 2, p=4) == [3, 3, 6, 6, 6, 6]
    assert gone(example, "tova:when=prompt", 2, p=4) == [6, 3, 6, 3, 6, 6]
    assert gone(example, "tova-kvpress:when=always", 2, p=4) == [3, 3, 4, 5, 6, 6]


def test_chunkkv_keeps_chunks_whole() -> None:
    # Chunks of 2 of a prompt of 5: tokens 0 and 1 have 6 + 1 of row 4, 2 and 3 have 4 + 4, and
    # token 4 is the window. 3 k / 5 chunks stay: one of k = 2 and 3, two of k = 4, none goes later.
    example = trace((16,), (16, 0), (16, 0, 0), (16, 0, 0, 0), (6, 1, 4, 4, 1), (16, 0, 0, 0, 0, 0))
    policy = "chunkkv:chunk=2,window=1,kernel=1"
    assert gone(example, policy, 4, p=5) == [4, 4, 6, 6, 6, 6]
    for k in (1, 2, 3):
        assert gone(example, policy, k, p=5) == [4, 4, 4, 4, 6, 6]
    assert gone(example, policy, 5, p=5) == [6] * 6
    # pooled by 3, the first chunk has 7 + 11 and the second 9 + 8 thirds of a sixteenth
    assert gone(example, "chunkkv:chunk=2,window=1,kernel=3", 4, p=5) == [6, 6, 4, 4, 6, 6]
    # a budget below a chunk is exceeded: the window's chunk has two tokens
    assert gone(example, "chunkkv:chunk=3,window=1,kernel=1", 1, p=5) == [4, 4, 4, 6, 6, 6]


def test_nacl_keeps_sinks_proxies_the_best_and_a_sample() -> None:
    # k = 6: the sink 0 and the proxy 9 are free of choice; of the other four places half go to the
    # best of the proxy's row (5 and 3), half to a sample of the rest.
    rows = [(64,), *((64, *[0] * t) for t in range(1, 9))]
    example = trace(*rows, (0, 1, 2, 16, 4, 20, 3, 5, 6, 7), (64, *[0] * 10))
    policy = "nacl:window=1,recent=1,sinks=1,random=0.5"
    scores = np.array([0, 1, 2, 16, 4, 20, 3, 5, 6, 7]) / 64
    rest = [1, 2, 4, 6, 7, 8]
    samples = set()
    for seed in range(12):
        keys = scores + gumbel(example.units()[0], {"seed": seed})[:10]
        drawn = sorted(sorted(rest, key=lambda j: keys[j])[-2:])
        left = gone(example, f"{policy},seed={seed}", 6, p=10)
        assert [j for j in range(10) if left[j] == 11] == sorted({0, 9, 5, 3, *drawn})
        assert {t for t in left if t < 11} == {9}
        samples.add(tuple(drawn))
    assert len(samples) > 5
    # without the sample: the four best
    left = gone(example, "nacl:window=1,recent=1,sinks=1,random=0", 6, p=10)
    assert [j for j in range(11) if left[j] == 11] == [0, 3, 5, 7, 8, 9, 10]
    # the newest that stay are a number of their own
    left = gone(example, "nacl:window=1,recent=4,sinks=1,random=0", 6, p=10)
    assert [j for j in range(11) if left[j] == 11] == [0, 5, 6, 7, 8, 9, 10]


def test_nacl_draws_by_softmax_of_the_score() -> None:
    # One place is drawn from tokens 1-3, whose scores are 1/2, 0, 0.
    scores = np.array([0.0, 0.5, 0.0, 0.0, 0.0])
    unit = trace((16,), (8, 8), (4, 4, 8), (4, 4, 4, 4), (4, 4, 4, 2, 2)).units()[0]
    count = np.zeros(5)
    for seed in range(4000):
        ranks = np.zeros(5)
        noisy = gumbel(unit, {"seed": seed})
        nacl.rank_cache(np.arange(5.0), ranks, scores, noisy, 3, 5, 1, 1, 1.0)
        assert np.isinf(ranks[[0, 4]]).all()
        count[1 + int(np.argmax(ranks[1:4]))] += 1
    weights = np.array([math.exp(0.5), 1.0, 1.0])
    # standard deviation .008
    np.testing.assert_allclose(count[1:4] / 4000, weights / weights.sum(), atol=0.03)


def test_snapkv_of_kvcache_factory_takes_the_head_that_gave_a_key_most() -> None:
    # The window's two rows, of 64: head 0 gives token 0 20 and 20, head 1 nothing; tokens 1 to 3
    # get from the heads 18 + 0 and 0 + 18, 16 + 16 and 16 + 0, 9 + 9 and 9 + 9.
    before = [(64,), (64, 0), (64, 0, 0), (64, 0, 0, 0)]
    one = square(*before, (20, 18, 16, 9, 1), (20, 0, 16, 9, 10, 9), (64, *[0] * 6))
    two = square(*before, (0, 0, 16, 9, 39), (0, 18, 0, 9, 18, 19), (64, *[0] * 6))
    example = Trace.from_scores(np.array([one, two]), group_size=2)
    policy = "snapkv-kvfactory:window=2,kernel=1"
    for k, most, mean in ((3, [0], [2]), (4, [0, 2], [0, 2]), (5, [0, 2, 3], [0, 2, 3])):
        kept = kept_of(example, f"{policy},gqa_score_agg=max", k, p=6)[0]
        assert [j for j in kept if j < 4] == most  # 40, 18, 32 and 18
        kept = kept_of(example, policy, k, p=6)[0]
        assert [j for j in kept if j < 4] == mean  # 40, 36, 48 and 36, and the newer one of these
    # row by row the largest head gives 40, 36, 32 and 18
    kept = kept_of(example, "snapkv:window=2,kernel=1,heads=max", 4, p=6)[0]
    assert [j for j in kept if j < 4] == [0, 1]
    # pooled by 3 after the heads are one: 40, 40, 32 and 32
    pooled = f"{policy},gqa_score_agg=max".replace("kernel=1", "kernel=3")
    assert [j for j in kept_of(example, pooled, 3, p=6)[0] if j < 4] == [1]
    averaged = kept_of(example, f"{pooled},pool=avg", 3, p=6)[0]  # 58, 90, 68 and 50
    assert [j for j in averaged if j < 4] == [1]
