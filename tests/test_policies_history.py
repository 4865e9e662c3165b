"""Rules whose state is of the whole cache: Keyformer's noisy rows, G-KV's scores of evictions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import gone, kept_of, trace
from strategies import examples, softmax_traces

import h2osim
from h2osim.policies.arithmetic import drawn, log
from h2osim.policies.declaration import Policy
from h2osim.policies.inputs import noise
from h2osim.traces.trace import Trace

# --- what the engines do -------------------------------------------------------------------------


def shares(positions: Any, head_row: Any, total: Any, share: Any, heads: int) -> None:
    whole = 0.0
    for j in positions:
        share[j] = 0.0
        for h in range(heads):
            share[j] += head_row[h][j]
        whole += share[j]
    for j in positions:
        share[j] = share[j] / whole if whole > 0.0 else 0.0
        total[j] += share[j]


def least_total(
    positions: Any, ranks: Any, total: Any, seen: Any, query: Any, heads: int, t: int
) -> None:
    for i in range(len(positions)):
        j = positions[i]
        ranks[i] = total[j] + seen[j][0] if t > j else math.inf
        total[j] = total[j] / 2.0  # a score halves where it ranks
        seen[j][0] += 0.125


SHARES = Policy(
    name="shares", summary="", source="test", state=("total", "share"),
    vector_state={"seen": "heads"}, update_cache=shares, rank_cache=least_total, scores="cached",
    vectors={"query": lambda unit, values: np.ones((unit.n, 1))},
)  # fmt: skip


@examples(30)
@given(
    trace=softmax_traces(min_n=2, max_n=16), k=st.integers(1, 5), p=st.integers(1, 6),
    when=st.sampled_from(["always", "prompt", "every:3"]),
)  # fmt: skip
def test_state_of_the_whole_cache_is_the_same_in_every_engine(
    trace: Trace, k: int, p: int, when: str
) -> None:
    slow, fast = (
        h2osim.replay(
            trace, SHARES.with_params(when=when), min(k, trace.n), engine=engine,
            prompt_len=min(p, trace.n - 1),
        )["evicted_at"].values
        for engine in ("naive", "numba")
    )  # fmt: skip
    assert np.array_equal(slow, fast)


def test_state_is_what_the_rules_left() -> None:
    # Step 2: totals are 1 + 1/2 + 1/4, 1/2 + 1/4 and the newest's. Token 1 goes; the others' are
    # halved, and each was ranked once. Step 3, of 14 sixteenths: 7/8 + 6/14 and 1/4 + 4/14, and
    # 1/8 each; token 2 goes. Step 4, where token 0 gets nothing: half of 1.30 and 2/8, against 1/7,
    # 12/16 and 1/8. Had its total not been halved twice, token 0 would stay.
    example = trace((16,), (8, 8), (4, 4, 8), (6, 2, 4, 4), (0, 0, 0, 12, 4))
    for engine in ("naive", "numba"):
        assert gone(example, SHARES, 2, engine=engine) == [4, 2, 3, 5, 5]


def test_update_cache_goes_with_a_rank_of_the_whole_cache() -> None:
    with pytest.raises(TypeError, match="update_cache can not go with rank"):
        Policy("x", "", "", update_cache=shares, rank=lambda pos: pos, state=("total", "share"))


# --- Keyformer -----------------------------------------------------------------------------------


def keyformer_kept(
    scores: np.ndarray, noisy: np.ndarray, k: int, p: int, recent: int, delta: float
) -> list[int]:
    """What stays at the end, by the formulas of the paper on the logarithms of the rows."""
    n = len(scores)
    cache: list[int] = []
    score = np.zeros(n)
    for t in range(n):
        cache.append(t)
        tau = 1.0 + delta * max(0, t - p + 1)
        gumbel = [-math.log(drawn(noisy[j], noisy[t], 0)) for j in cache]
        weight = np.exp((np.log(scores[t, cache]) + gumbel) / tau)
        score[cache] += weight / weight.sum()
        if t >= p - 1 and len(cache) > k:
            old = cache[: len(cache) - recent]
            order = sorted(old, key=lambda j: score[j])
            cache = sorted(order[len(cache) - k :] + cache[len(cache) - recent :])
    return cache


@pytest.mark.parametrize("delta", [0.0, 0.25, 4.0])
def test_keyformer(delta: float) -> None:
    rng = np.random.default_rng(3)
    n, p = 30, 12
    scores = np.tril(np.exp(rng.standard_normal((n, n))))
    scores = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float16).astype(float)
    example = Trace.from_scores(scores)
    for k, recent, seed in ((6, 2, 0), (10, 3, 4), (4, 1, 1), (12, 1, 2), (14, 2, 3)):
        noisy = noise(example.units()[0], {"seed": seed})
        policy = f"keyformer:recent={recent},tau_delta={delta},seed={seed}"
        expected = keyformer_kept(scores, noisy, k, p, recent, delta)
        assert kept_of(example, policy, k, p=p) == [expected]


def test_keyformer_takes_a_head_without_attention() -> None:
    # Nothing is attended but token 0, which is gone after step 1: later rows have no logit at all.
    example = trace((16,), (16, 0), (16, 0, 0), (16, 0, 0, 0))
    assert len(kept_of(example, "keyformer:recent=1", 1)[0]) == 1


@pytest.mark.parametrize("x", [1e-7, 0.3, 0.999999, 1.0, 1.5, 40.0])
def test_the_logarithm(x: float) -> None:
    assert abs(log(x) - math.log(x)) < 1e-12 * max(1.0, abs(math.log(x)))


# --- G-KV ----------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    found = np.exp(x - x.max())
    return np.asarray(found / found.sum())


def gkv_kept(
    q: np.ndarray, k: np.ndarray, budget: int, p: int, every: int, mix: float, method: str
) -> list[int]:
    """What stays of one KV head's tokens, as G-KV's compression goes from eviction to eviction."""
    (heads, n, d), window, alpha = q.shape, 3, 0.8
    cache: list[int] = []
    scores: dict[int, float] = {}
    for t in range(n):
        cache.append(t)
        if t < p - 1 or (t - p + 1) % every or len(cache) <= budget:
            continue
        old, last = cache[:-window], cache[-window:]
        seen = np.zeros((window, len(old)))
        for row, s in enumerate(last):
            sees = [j for j in cache if j <= s]
            each = [softmax(k[sees] @ q[h, s] / np.sqrt(d)) for h in range(heads)]
            seen[row] = np.max(each, axis=0)[: len(old)]
        now = seen.mean(axis=0)
        now /= now.max()
        for i, j in enumerate(old):
            if j in scores:
                before = alpha * scores[j]
                now[i] = {
                    "max": max(before, now[i]),
                    "mean": before + (1 - alpha) * now[i],
                    "sum": before + now[i],
                }[method]
        unit = k[cache] / np.linalg.norm(k[cache], axis=1, keepdims=True)
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, 0)
        for row in cosine:
            above = np.flatnonzero(row > 0.5)
            row[above[-1:]] = 0
        like = softmax(cosine.mean(axis=0))[: len(old)]
        final = mix * now - (1 - mix) * like / like.max()
        best = sorted(np.argsort(final)[len(cache) - budget :].tolist())
        scores = {old[i]: now[i] for i in best}
        cache = [old[i] for i in best] + last
    return cache


@pytest.mark.parametrize("method", ["max", "mean", "sum"])
def test_gkv_remembers_scores_from_eviction_to_eviction(method: str) -> None:
    rng = np.random.default_rng(6)
    n, p, d = 60, 20, 4
    q, k = rng.standard_normal((1, 2, n, d)) * 2, rng.standard_normal((1, 1, n, d))
    example = Trace.from_qk(q, k, scale=d**-0.5)
    for budget, mix in ((8, 0.5), (12, 1.0), (14, 0.2)):
        policy = f"gkv:window=3,mix={mix},smooth_method={method},when=every:4"
        q32, k32 = q[0].astype(np.float32), k[0, 0].astype(np.float32)
        expected = gkv_kept(q32.astype(float), k32.astype(float), budget, p, 4, mix, method)
        assert kept_of(example, policy, budget, p=p) == [expected]
