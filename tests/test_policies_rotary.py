"""Rules that look at queries before RoPE, and RoPE as it is read off from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from policy_cases import kept_of
from strategies import turned

from h2osim.policies.rotary import rotary_of
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

N, P, D, HEADS, GROUPS = 40, 24, 6, 4, 2


def drawn(seed: int = 0) -> dict[str, Any]:
    """Queries and keys before RoPE and values of a layer, [1, heads, n, d]."""
    rng = np.random.default_rng(seed)
    return {
        "plain": rng.standard_normal((1, HEADS, N, D)) + 0.5,
        "key": rng.standard_normal((1, GROUPS, N, D)),
        "value": rng.standard_normal((1, GROUPS, N, D)),
    }


def trace_of(plain: Any, key: Any, value: Any) -> Trace:
    return Trace.from_qk(turned(plain), turned(key), q_plain=plain, v=value, scale=D**-0.5)


def turn(position: float) -> np.ndarray:
    """RoPE at a position as a matrix [d, d]: column c is where dimension c goes."""
    found = np.zeros((D, D))
    for c, angle in enumerate(position * 100.0 ** -(np.arange(D // 2) / (D // 2))):
        i, j = c, c + D // 2
        found[i, i], found[i, j] = np.cos(angle), -np.sin(angle)
        found[j, i], found[j, j] = np.sin(angle), np.cos(angle)
    return found


# --- RoPE ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize(("turning", "stretch"), [(8, 1.0), (8, 1.25), (4, 1.0)])
def test_rope_is_read_off_from_queries(neighbours: bool, turning: int, stretch: float) -> None:
    rng = np.random.default_rng(1)
    plain = rng.standard_normal((1, 2, 300, 8)).astype(np.float32)
    half = turning // 2
    angle = 5e5 ** -(np.arange(half) / half)
    dimensions = np.arange(turning)
    x, y = dimensions.reshape(half, 2).T if neighbours else dimensions.reshape(2, half)
    cos, sin = (f(np.arange(300)[:, None] * angle) for f in (np.cos, np.sin))
    query = plain.copy()
    query[..., x] = stretch * (plain[..., x] * cos - plain[..., y] * sin)
    query[..., y] = stretch * (plain[..., y] * cos + plain[..., x] * sin)
    found = rotary_of(Trace.from_qk(query, plain, q_plain=plain, scale=1.0).units()[0])
    assert found.pairs[:, :half].tolist() == [x.tolist(), y.tolist()]
    # float32 rounds queries to 6e-8 of their size, which 300 rows divide by their positions
    assert np.abs(found.angle[:half] - angle).max() < 1e-9
    assert np.abs(found.stretch[:half] - stretch).max() < 1e-6
    # a mean of quotients that are all 1 but for float32
    assert (found.angle[half:] == 0).all() and np.allclose(found.stretch[half:], 1)


def test_what_is_no_rope_is_refused() -> None:
    rng = np.random.default_rng(2)
    plain, other = rng.standard_normal((2, 1, 1, 20, 4))
    trace = Trace.from_qk(other, plain, q_plain=plain, scale=1.0, name="mine")
    with pytest.raises(UserError, match=r"trace mine, layer 0.*not those before RoPE, turned pair"):
        kept_of(trace, "triattention:divide_length=1", 4)


# --- Expected Attention --------------------------------------------------------------------------


def expected_kept(
    case: dict[str, Any], k: int, t: int, use_covariance: int = 1, use_vnorm: int = 1
) -> list[list[int]]:
    """What stays of the first t + 1 tokens, by the formulas of the paper."""
    found, future, sinks = [], 5, 2
    r = np.mean([turn(t + 1 + i) for i in range(future)], axis=0)
    for g in range(GROUPS):
        keys, score = turned(case["key"])[0, g, : t + 1], np.zeros(t + 1)
        for h in range(g * 2, g * 2 + 2):
            queries = case["plain"][0, h, sinks : t + 1]
            mean, spread = r @ queries.mean(axis=0), r @ np.cov(queries.T, bias=True) @ r.T
            logit = keys @ mean / np.sqrt(D)
            logit += use_covariance * np.einsum("ni,ij,nj->n", keys, spread, keys) / D / 2
            weight = np.exp(logit[sinks:])
            score[sinks:] += weight / weight.sum() / 2
        if use_vnorm:
            score *= np.linalg.norm(case["value"][0, g, : t + 1], axis=1)
        score[:sinks] = np.inf
        found.append(sorted(np.argsort(score)[t + 1 - k :].tolist()))
    return found


@pytest.mark.parametrize(("use_covariance", "use_vnorm"), [(1, 1), (0, 1), (1, 0)])
def test_expected_attention(use_covariance: int, use_vnorm: int) -> None:
    case = drawn()
    policy = f"expected-attention:n_future_positions=5,sinks=2,use_covariance={use_covariance}"
    policy += f",use_vnorm={use_vnorm}"
    for k in (5, 9, 16):
        kept = kept_of(trace_of(**case), policy, k, p=P)
        expected = expected_kept(case, k, P - 1, use_covariance, use_vnorm)
        assert [[j for j in one if j < P] for one in kept] == expected
        assert all(one[k:] == list(range(P, N)) for one in kept)


def test_expected_attention_while_decoding_takes_all_queries_so_far() -> None:
    # It acts at the prompt's end, where nothing has to go, and once more in the last step.
    case = drawn(3)
    policy = f"expected-attention:n_future_positions=5,sinks=2,when=every:{N - P}"
    assert kept_of(trace_of(**case), policy, P, p=P) == expected_kept(case, P, N - 1)


# --- TriAttention --------------------------------------------------------------------------------


def triattention_kept(
    case: dict[str, Any], k: int, over: int, stats: Any = None, farthest: int = 8
) -> list[list[int]]:
    """What stays at the end, by the trigonometric series of the paper over distances."""
    angle = 100.0 ** -(np.arange(D // 2) / (D // 2))

    def pairs(x: np.ndarray) -> np.ndarray:
        return x[..., : D // 2] + 1j * x[..., D // 2 :]

    found = []
    for g in range(GROUPS):
        cache: list[int] = []
        for t in range(N):
            cache.append(t)
            if t < P - 1 or len(cache) < k + over:
                continue
            scores = []
            for h in range(g * 2, g * 2 + 2):
                queries = pairs(case["plain"][0, h, : t + 1])
                mean, length = queries.mean(axis=0), np.abs(queries).mean(axis=0)
                if stats is not None:
                    mean = stats["q_mean_real"][0, h] + 1j * stats["q_mean_imag"][0, h]
                    length = stats["q_abs_mean"][0, h]
                keys = pairs(case["key"][0, g, cache])
                phase = np.angle(mean * keys.conj())
                size = np.abs(mean) * np.abs(keys)
                distance = t + 1 - np.array(cache)
                score = ((length - np.abs(mean)) * np.abs(keys)).sum(axis=1)
                offsets = [2**i for i in range(farthest.bit_length())]
                for offset in offsets:
                    turns = (distance + offset)[:, None] * angle + phase
                    score += (size * np.cos(turns)).sum(axis=1) / len(offsets)
                scores.append((score - score.mean()) / score.std())
            order = np.argsort(np.max(scores, axis=0))
            cache = sorted(np.array(cache)[order[len(cache) - k :]].tolist())
        found.append(cache)
    return found


def test_triattention(tmp_path: Path) -> None:
    case = drawn(4)
    policy = "triattention:offset_max_length=8,divide_length=4"
    for k in (6, 12):
        assert kept_of(trace_of(**case), policy, k, p=P) == triattention_kept(case, k, 4)
    rng = np.random.default_rng(5)
    names = ("q_mean_real", "q_mean_imag", "q_abs_mean")
    stats: Any = {name: rng.random((1, HEADS, D // 2)) for name in names}
    np.savez(tmp_path / "stats.npz", **stats)
    with_file = f"{policy},stats={tmp_path / 'stats.npz'}"
    assert kept_of(trace_of(**case), with_file, 9, p=P) == triattention_kept(case, 9, 4, stats)
    np.savez(tmp_path / "stats.npz", q_mean_real=stats["q_mean_real"])
    with pytest.raises(UserError, match="triattention: stats: expected arrays q_mean_real, q"):
        kept_of(trace_of(**case), with_file, 9, p=P)


def test_triattention_may_leave_the_prompt_whole() -> None:
    policy = "triattention:divide_length=1,allow_prefill_compression=0"
    for one in kept_of(trace_of(**drawn(6)), policy, P + 3, p=P):
        assert one[:P] == list(range(P)) and len(one) == P + 3
