"""A user's rule, tried on small drawn traces: do engines agree on it, and is its rank one?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.cuda import nvrtc
from h2osim.cuda.device import kernel_text
from h2osim.engines.naive import NaiveStepper
from h2osim.engines.request import Job
from h2osim.policies.declaration import INF, Configured
from h2osim.policies.expressions import Untranslatable
from h2osim.policies.refusing import refuse
from h2osim.policies.rotary import Rotary
from h2osim.replays.replaying import replay
from h2osim.support.errors import UserError
from h2osim.traces.recorded import RECORDED, in_words
from h2osim.traces.trace import Trace
from h2osim.traces.unit import split_layer

_N, _WIDTH, _BUDGETS, _PROMPTS = 24, 4, (3, 10), (1, 8)
_BASELINES = ("full", "recency", "streaming", "random", "h2o", "tova")


def traces() -> Iterator[tuple[str, Trace]]:
    """Traces of two heads on one KV head, with all that can be recorded: attention that is spread,
    that is sharp, and of which all is equal.
    """
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(1, 2, _N, _WIDTH))
    k, v = rng.normal(size=(2, 1, 1, _N, _WIDTH))
    rope = Rotary(np.arange(_WIDTH).reshape(2, -1), np.array([1.0, 0.1]), np.ones(2))
    turned = rope.complex(plain) * rope.turn(np.arange(_N))
    q = np.concatenate([turned.real, turned.imag], axis=-1)
    for word, sharp in (("spread", 0.5), ("sharp", 3.0), ("even", 0.0)):
        yield word, Trace.from_qk(
            sharp * q, k, v=v, scale=1.0, q_plain=sharp * plain, wv_norm1=np.abs(plain).sum(axis=-1)
        )


def check(one: Configured) -> tuple[list[str], list[str]]:
    """What is wrong with a policy, and what else is worth knowing, a line each.

    Every case is replayed by the definition and by numba; a division by zero, NaN among ranks,
    a batched rule that fails, recorded data that ``needs`` does not name, CUDA text that does not
    compile and different evictions are wrong. Ranks that are all equal or all infinite, the same
    evictions as a policy that is there already, and rules that CUDA cannot express are said.
    UserError for rules that no engine may run.
    """
    policy = one.policy
    refuse(policy)
    wrong, known = {}, {}
    others = [name for name in _BASELINES if name != policy.name]
    same, constant, protected = set(others), True, True
    if named := undeclared(one):
        return [f"it reads {in_words(named)}, which its needs do not name"], []
    for word, trace in traces():
        for p in _PROMPTS:
            where = f"{word} attention, prompt of {p}"
            try:
                ranks = _ranks(one, trace, p)
            except ZeroDivisionError:
                wrong["a rule divides by zero"] = where
                continue
            except UserError as error:  # NaN, or whatever a batched rule does
                wrong[str(error)] = where
                return _lines(wrong), []
            constant &= all(np.ptp(x[np.isfinite(x)]) == 0 for x in ranks if np.isfinite(x).any())
            protected &= all((x == INF).all() for x in ranks)
            how: Any = {"budgets": list(_BUDGETS), "prompt_len": p, "share": "layer"}
            (mine,) = replay(trace, one, engine="naive", **how)["evicted_at"].values
            found = replay(trace, [one, *others], engine="numba", **how)["evicted_at"].values
            compiled, *theirs = found
            if not np.array_equal(mine, compiled):
                wrong["numba evicts other tokens than the definition"] = where
            same &= {
                name for name, gone in zip(others, theirs, strict=True) if (gone == mine).all()
            }
    if wrong:
        return _lines(wrong), []
    if protected:
        known["every token is protected: the oldest goes"] = ""
    elif constant:
        known["all ranks that are not infinite are equal: the oldest goes"] = ""
    for name in sorted(same):
        known[f"it evicts as {name} does"] = "in every case tried"
    if policy.rank_batch:
        known["not exact: its ranks are those of a library, in Python, at its speed"] = ""
    try:
        text = kernel_text("direct", {"T": 128}, policy)
        if nvrtc.library() and (said := nvrtc.errors(text)):
            wrong[f"its CUDA text does not compile: {said.splitlines()[0]}"] = ""
    except Untranslatable as error:
        known[f"runs on the CPU only: {error}"] = ""
    return _lines(wrong), _lines(known)


class _Watched:
    """A trace that notes which tensors are read."""

    def __init__(self, trace: Trace):
        self._trace, self.read = trace, set[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trace, name)

    def tensor(self, layer: int, name: str) -> NDArray[Any]:
        """As the trace does."""
        self.read.add(name)
        return self._trace.tensor(layer, name)


def undeclared(one: Configured) -> list[str]:
    """Recorded data that a policy's inputs read though its ``needs`` do not name them."""
    watched: Any = _Watched(next(traces())[1])
    unit = split_layer(watched, 0, (0, 1), (0,), _N, "layer")[0]
    unit.column_sums()  # rows are made of queries and keys here: once, before anything is noted
    watched.read.clear()
    _ = Job(unit, one, _BUDGETS[0], _PROMPTS[1]).inputs
    named = {name for need in one.needs for names in RECORDED[need].tensors for name in names}
    return [need for need, one in RECORDED.items() if one.tensors[0] <= watched.read - named]


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
