"""A user's rule, tried on small drawn traces: do engines agree on it, and is its rank one?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np

from h2osim.engines.naive import NaiveStepper
from h2osim.engines.request import Job
from h2osim.policies.declaration import INF, Configured, Policy
from h2osim.policies.expressions import Untranslatable
from h2osim.policies.refusing import refuse
from h2osim.policies.to_cuda import rules_text
from h2osim.replays.replaying import replay
from h2osim.traces.trace import Trace

_N, _BUDGETS, _PROMPTS = 24, (3, 10), (1, 8)
_BASELINES = ("full", "recency", "streaming", "random", "h2o", "tova")


def traces() -> Iterator[tuple[str, Trace]]:
    """Traces of two heads: attention that is spread, that is sharp, and of which all is equal."""
    logits = np.random.default_rng(0).normal(size=(1, 2, _N, _N))
    for word, sharp in (("spread", 1.0), ("sharp", 6.0), ("even", 0.0)):
        mass = np.tril(np.exp(sharp * logits))
        yield word, Trace.from_scores(mass / mass.sum(axis=-1, keepdims=True))


def check(policy: Policy) -> tuple[list[str], list[str]]:
    """What is wrong with a policy, and what else is worth knowing, a line each.

    Every case is replayed by the definition and by numba; a division by zero, NaN among ranks and
    different evictions are wrong. Ranks that are all equal or all infinite, the same evictions as a
    policy that is there already, and rules that CUDA cannot express are said. UserError for rules
    that no engine may run.
    """
    refuse(policy)
    one, wrong, known = policy.with_params(), {}, {}
    others = [name for name in _BASELINES if name != policy.name]
    same, constant, protected = set(others), True, True
    for word, trace in traces():
        for p in _PROMPTS:
            where = f"{word} attention, prompt of {p}"
            try:
                ranks = _ranks(one, trace, p)
            except ZeroDivisionError:
                wrong["a rule divides by zero"] = where
                continue
            if any(np.isnan(x).any() for x in ranks):
                wrong["a rank is NaN, which has no place in an order"] = where
                continue
            constant &= all(np.ptp(x[np.isfinite(x)]) == 0 for x in ranks if np.isfinite(x).any())
            protected &= all((x == INF).all() for x in ranks)
            gone = [
                replay(trace, [one, *others], list(_BUDGETS), prompt_len=p, engine=engine,
                       share="layer")["evicted_at"].values
                for engine in ("naive", "numba")
            ]  # fmt: skip
            if not np.array_equal(gone[0][0], gone[1][0]):
                wrong["numba evicts other tokens than the definition"] = where
            same &= {
                name for i, name in enumerate(others, 1) if (gone[0][i] == gone[0][0]).all()
            }
    if wrong:
        return _lines(wrong), []
    if protected:
        known["every token is protected: the oldest goes"] = ""
    elif constant:
        known["all ranks that are not infinite are equal: the oldest goes"] = ""
    for name in sorted(same):
        known[f"it evicts as {name} does"] = "in every case tried"
    try:
        rules_text(policy)
    except Untranslatable as error:
        known[f"runs on the CPU only: {error}"] = ""
    return _lines(wrong), _lines(known)


def _lines(found: dict[str, str]) -> list[str]:
    return [f"{what} ({where})" if where else what for what, where in found.items()]


def _ranks(one: Configured, trace: Trace, p: int) -> list[np.ndarray]:
    """The ranks in every step in which a replay by the definition asks for them."""
    unit, found = trace.units("layer")[0], []
    job = Job(unit, one, _BUDGETS[0], p)

    class Watched(NaiveStepper):
        def worst_first(self) -> list[tuple[float, int]]:
            order = super().worst_first()
            found.append(np.array([rank for rank, _ in order], float))
            return order

    replay_ = Watched(one, job.scalars, job.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for t in range(unit.n):
            replay_.step([[int(x) for x in row] for row in unit.head_rows(t)])
    if not found:
        return [np.zeros(1)]
    return found
