"""Certificates forged consistently: every number recomputed, a fresh checksum, and still no proof.

`certify` is what makes a stored optimum worth believing, so a file is built here whose kept mass,
bound and whole mass fit its schedules and prices, by the definitions alone; then one thing about
the schedule or the prices is made illegal, by as little as possible.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from strategies import examples, sixteenth_traces

from h2osim import Trace, UserError
from h2osim.optima import certifying
from h2osim.optima.certifying import FORMAT, TENSORS, Certified, certify, digest
from h2osim.optima.exact import optimal_curve
from h2osim.traces.files import DTYPES
from h2osim.traces.unit import Unit

N, P, K = 9, 3, 2
Ints = NDArray[np.int64]


def made(n: int = N) -> Trace:
    """One layer of two heads that share nothing, no two rows alike."""
    scores = np.tril(np.random.default_rng(n).gamma(0.5, size=(1, 2, n, n)) + 1e-2)
    return Trace.from_scores(scores / scores.sum(-1, keepdims=True), name="made")


TRACE = made()


def mass_kept(unit: Unit, gone: Sequence[int], p: int) -> int:
    """What a schedule keeps: in each decode step the tokens that are there, and the step's own."""
    return sum(
        int(unit.row(t)[j])
        for t in range(p, unit.n)
        for j in range(t + 1)
        if j == t or gone[j] >= t
    )


def dual_bound(unit: Unit, price: Sequence[int], k: int, p: int) -> int:
    """D(λ), from the formula: the best moment for each token to leave, whatever the others do."""
    n = unit.n
    bound = k * sum(price) + sum(int(unit.row(t)[t]) for t in range(p, n))
    for j in range(n):
        gain, best = 0, 0
        for t in range(max(j + 1, p), n):
            gain += int(unit.row(t)[j]) - price[t]
            best = max(best, gain)
        bound += best
    return bound


def whole_mass(unit: Unit, p: int) -> int:
    return sum(int(x) for t in range(p, unit.n) for x in unit.row(t))


def oldest_first(n: int, k: int, p: int) -> list[int]:
    """A schedule that is one: after each step from the prompt's end on the oldest beyond k go."""
    gone = [n] * n
    for t in range(p - 1, n - 1):
        for j in range(t + 1 - k):
            gone[j] = min(gone[j], t)
    return gone


def sealed(facts: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> dict[str, str]:
    """The metadata with a checksum that fits, computed here from what the format says."""
    text = json.dumps(facts)
    total = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode() + tensor.tobytes())
    return {"format": FORMAT, "facts": text, "sha256": total.hexdigest()}


def forged(
    path: Path,
    trace: Trace,
    schedules: Sequence[Sequence[Sequence[int]]],
    prices: Sequence[Sequence[Sequence[int]]],
    budgets: Sequence[int],
    p: int,
    claims: Mapping[str, int] | None = None,
) -> Path:
    """A certificate of one layer, schedules and prices by unit and budget, in which all fits.

    claims: added to the first unit's first kept or bound.
    """
    units = trace.units("head")
    kept = [
        [mass_kept(u, gone, p) for gone in mine] for u, mine in zip(units, schedules, strict=True)
    ]
    bound = [
        [dual_bound(u, price, k, p) for k, price in zip(budgets, mine, strict=True)]
        for u, mine in zip(units, prices, strict=True)
    ]
    tensors: dict[str, NDArray[Any]] = {
        "evicted_at": np.array([schedules], np.int32),
        "price": np.array([prices], np.int64),
        "kept": np.array([kept], np.int64),
        "bound": np.array([bound], np.int64),
        "mass": np.array([[whole_mass(u, p) for u in units]], np.int64),
        "layers": np.array(trace.layers, np.int64),
        "budgets": np.array(budgets, np.int64),
    }
    for name, more in (claims or {}).items():
        tensors[name][0, 0, 0] += more
    facts = {
        "trace": trace.name, "n": trace.n, "group_size": trace.group_size, "sha256": [None],
        "prompt_len": p, "share": "head",
    }  # fmt: skip
    save_file(tensors, path, metadata=sealed(facts, tensors))
    return path


def one(
    path: Path,
    gone: Sequence[int] | None = None,
    price: Sequence[int] | None = None,
    k: int = K,
    p: int = P,
    trace: Trace = TRACE,
    claims: Mapping[str, int] | None = None,
) -> list[Certified]:
    """Certify one budget of `trace`: the second head's schedule and prices as given."""
    n = trace.n
    fair, free = oldest_first(n, min(k, n), p), [0] * n
    schedules: list[list[Sequence[int]]] = [[fair], [fair if gone is None else gone]]
    prices: list[list[Sequence[int]]] = [[free], [free if price is None else price]]
    return certify(forged(path / "c.safetensors", trace, schedules, prices, [k], p, claims), trace)


def changed(row: Sequence[int], **at: int) -> list[int]:
    """A copy with some entries replaced: _3=7 puts 7 at place 3."""
    new = list(row)
    for place, value in at.items():
        new[int(place[1:])] = value
    return new


FAIR = oldest_first(N, K, P)


@examples(40)
@given(trace=sixteenth_traces(min_n=2, max_n=8, max_layers=1), data=st.data())
def test_any_schedule_and_any_prices_are_worth_what_the_definitions_say(
    tmp_path_factory: pytest.TempPathFactory, trace: Trace, data: st.DataObject
) -> None:
    """Legal ones are accepted, far from optimal though they be, and claim nothing false."""
    n, p = trace.n, data.draw(st.integers(1, max(1, trace.n - 1)))
    budgets = sorted(data.draw(st.sets(st.integers(1, n), min_size=1, max_size=2)))

    def schedule(k: int) -> list[int]:
        gone, cache = [n] * n, []
        for t in range(n):
            cache.append(t)
            if p - 1 <= t < n - 1:
                stay = data.draw(st.integers(0, min(k, len(cache))))
                cache = data.draw(st.permutations(cache))
                for j in cache[stay:]:
                    gone[j] = t
                cache = cache[:stay]
        return gone

    unit_prices = st.lists(st.integers(0, 1 << 24), min_size=n - p, max_size=n - p)
    units = trace.units("head")
    schedules = [[schedule(k) for k in budgets] for _ in units]
    prices = [[[0] * p + data.draw(unit_prices) for _ in budgets] for _ in units]
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    checked = certify(forged(path, trace, schedules, prices, budgets, p), trace)
    assert [(c.index, c.budget) for c in checked] == [(u.index, k) for u in units for k in budgets]
    for c in checked:
        best = int(optimal_curve(units[c.index], p, most=c.budget).kept[c.budget])
        assert c.kept <= best <= c.bound
        assert c.mass == whole_mass(units[c.index], p)


def test_a_token_too_many_is_found_after_each_step(tmp_path: Path) -> None:
    for t in range(P - 1, N - 1):
        # the oldest that is left after step t stays for one step more
        late = FAIR.index(t)
        with pytest.raises(UserError, match=f"{K + 1} tokens are left after step {t}, .* most {K}"):
            one(tmp_path, changed(FAIR, **{f"_{late}": t + 1}))
    assert len(one(tmp_path, FAIR)) == 2
    # what is held after the last step is never attended
    assert one(tmp_path, [min(gone, N - 1) for gone in FAIR]) == one(tmp_path, FAIR)


def test_a_token_leaves_between_its_coming_and_the_end(tmp_path: Path) -> None:
    for place, step in ((5, 4), (N - 1, N - 2), (1, P - 2), (0, -1), (0, N + 1), (N - 1, N + 1)):
        with pytest.raises(UserError, match=f"token {place} leaves at {step}, expected"):
            one(tmp_path, changed(FAIR, **{f"_{place}": step}))
    at_once = [*range(P - 1, P), *[P - 1] * (P - 1), *range(P, N)]
    assert len(one(tmp_path, at_once)) == 2


def test_prices_are_between_zero_and_their_largest(tmp_path: Path) -> None:
    free = [0] * N
    with pytest.raises(UserError, match=rf"price of step {P} is -1"):
        one(tmp_path, price=changed(free, **{f"_{P}": -1}))
    with pytest.raises(UserError, match=r"2\^40"):
        one(tmp_path, price=changed(free, **{f"_{P}": (1 << 40) + 1}))
    assert one(tmp_path, price=changed(free, **{f"_{P}": 1 << 40}))[1].bound >= K << 40
    for step in range(P):
        with pytest.raises(UserError, match="step of the prompt has a price"):
            one(tmp_path, price=changed(free, **{f"_{step}": 1}))
    for step in range(P, N):
        assert len(one(tmp_path, price=changed(free, **{f"_{step}": 1}))) == 2


def test_budgets_and_prompts_at_their_ends(tmp_path: Path) -> None:
    for k in (1, N):
        assert one(tmp_path, oldest_first(N, k, P), k=k)[0].budget == k
    for k in (0, N + 1):
        with pytest.raises(UserError, match=f"budget {k}, expected 1 to {N}"):
            one(tmp_path, k=k)
    for p in (1, N - 1):
        assert one(tmp_path, oldest_first(N, K, p), p=p)[0].mass > 0
    with pytest.raises(UserError, match=f"prompt length {N}, expected 1 to {N - 1}"):
        one(tmp_path, oldest_first(N, K, N), p=N)
    # a trace of one token has nothing to decode, and a certificate that says so
    alone = made(1)
    assert [c.mass for c in one(tmp_path, [1], k=1, p=1, trace=alone)] == [0, 0]


def test_a_token_that_returns_is_not_counted(tmp_path: Path) -> None:
    """What the per-step top-k keeps, by taking tokens back: no schedule of the file is worth it."""
    unit, fair = TRACE.units("head")[0], oldest_first(N, K, P)
    returning = sum(
        int(unit.row(t)[t]) + int(np.sort(unit.row(t)[:t])[-K:].sum()) for t in range(P, N)
    )
    more = returning - mass_kept(unit, fair, P)
    assert returning > optimal_curve(unit, P).kept[K] > mass_kept(unit, fair, P)
    with pytest.raises(UserError, match=f"kept: the file says {returning}, the trace gives"):
        one(tmp_path, claims={"kept": more})


def test_a_file_speaks_of_its_own_prompt_budgets_and_grouping(tmp_path: Path) -> None:
    """Numbers that are right for one question are not taken for the answer to another."""
    assert {(c.prompt_len, c.share, c.budget) for c in one(tmp_path, FAIR)} == {(P, "head", K)}
    path, unit = tmp_path / "c.safetensors", TRACE.units("head")[0]
    price = [[[0] * P + [1 << 16] * (N - P)]] * 2
    forged(path, TRACE, [[FAIR]] * 2, price, [K], P)
    assert certify(path, TRACE)[0].bound == dual_bound(unit, price[0][0], K, P)
    for match, facts, tensors in (
        (f"{K} tokens are left", {}, {"budgets": np.array([K - 1])}),
        ("bound: the file says", {}, {"budgets": np.array([K + 1])}),
        ("mass: the file says", {"prompt_len": P - 1}, {}),
        (f"token 0 leaves at {P - 1}, expected {P}", {"prompt_len": P + 1}, {}),
        ("evicted_at has shape", {"share": "layer"}, {}),
        ("its group_size is 2", {"group_size": 2}, {}),
        ("its sha256 is", {"sha256": ["0" * 64]}, {}),
        ("its trace is 'other'", {"trace": "other"}, {}),
    ):
        with pytest.raises(UserError, match=match):
            certify(altered(path, tmp_path / "other", facts, tensors), TRACE)


def test_budgets_and_layers_stand_there_once(tmp_path: Path) -> None:
    twice = [[FAIR, FAIR], [FAIR, FAIR]]
    prices = [[[0] * N] * 2] * 2
    path = forged(tmp_path / "c", TRACE, twice, prices, [K, K], P)
    with pytest.raises(UserError, match="budgets has an entry twice"):
        certify(path, TRACE)
    path = forged(tmp_path / "c", TRACE, [[FAIR]] * 2, [[[0] * N]] * 2, [K], P)
    with safe_open(path, framework="numpy") as file:
        old = {key: file.get_tensor(key) for key in TENSORS}
    new = {key: old[key].reshape(2, 1, *old[key].shape[2:]) for key in old if old[key].ndim > 1}
    new["layers"] = np.array([0, 0])
    with pytest.raises(UserError, match="layers: found 2 of them, expected 1 to 1"):
        certify(altered(path, tmp_path / "other", {"sha256": [None, None]}, new), TRACE)


def test_a_bound_below_the_schedule_is_never_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even when the file and the sums of `certify` agree on it: one of them must be wrong."""
    path = forged(tmp_path / "c", TRACE, [[FAIR]] * 2, [[[0] * N]] * 2, [K], P)
    kept, whole = mass_kept(TRACE.units("head")[0], FAIR, P), whole_mass(TRACE.units("head")[0], P)
    for bound, refused in ((kept - 1, True), (kept, False)):
        wrong = altered(path, tmp_path / "wrong", {}, {
            "kept": np.full((1, 2, 1), kept), "bound": np.full((1, 2, 1), bound),
            "mass": np.full((1, 2), whole),
        })  # fmt: skip
        monkeypatch.setattr(certifying, "_read_rows", lambda *_, b=bound: (whole, [kept], [b]))
        if refused:
            with pytest.raises(UserError, match=f"keeps {kept}, more than the bound {bound}"):
                certify(wrong, TRACE)
        else:
            assert certify(wrong, TRACE)[0].gap == 0


def altered(
    path: Path, to: Path, facts: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> Path:
    """A certificate with some facts and tensors replaced, under a checksum that fits."""
    with safe_open(path, framework="numpy") as file:
        metadata, old = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    given = {name: np.asarray(some, DTYPES[TENSORS[name]]) for name, some in tensors.items()}
    new = {**old, **given}
    save_file(new, to, metadata=sealed({**json.loads(metadata["facts"]), **facts}, new))
    return to


@pytest.mark.parametrize("name", ["kept", "bound"])
@pytest.mark.parametrize("more", [-1, 1])
def test_what_is_claimed_is_what_it_is_worth(tmp_path: Path, name: str, more: int) -> None:
    with pytest.raises(UserError, match=f"budget {K}: {name}: the file says"):
        one(tmp_path, claims={name: more})


def test_the_checksum_covers_names_types_shapes_and_bytes() -> None:
    tensors: dict[str, NDArray[Any]] = {"b": np.arange(4), "a": np.ones(2, np.int32)}
    expected = sealed({}, tensors)["sha256"]
    assert digest("{}", tensors) == digest("{}", dict(reversed(tensors.items()))) == expected
    others: list[dict[str, NDArray[Any]]] = [
        {**tensors, "b": tensors["b"].reshape(2, 2)},
        {**tensors, "b": tensors["b"].view(np.uint64)},
        {**tensors, "b": tensors["b"] + 1},
        {"c": tensors["b"], "a": tensors["a"]},
        {"b": tensors["b"]},
    ]
    assert len({expected, digest("{} ", tensors), *(digest("{}", t) for t in others)}) == 7
