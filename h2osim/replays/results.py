"""What a result is: the one table of every variable of every Dataset that leaves the library.

A result is an xarray Dataset of one *form* (:data:`FORMS`): a replay, a sweep, an offline optimum,
an allocation of slots, the least budgets that reach a recall, or an evaluation of a running model.
A result on several traces has the dimension ``trace`` before all others; only a sweep, whose traces
may differ in shape, and an evaluation have other dimensions for them.
:func:`assemble` builds one, takes dimensions from the table and writes each variable's meaning and
unit into its attributes; :func:`check` says whether a Dataset keeps to the table.

Masses are integers in fixed point: a mass of attention of 1 is 2^24. A recall is a quotient of two
of them, rounded once, and never the source of another number.

Every result with a dimension ``policy`` carries the facts about each policy beside it
(``policy_facts`` in facts.py), so that whoever reads a result need not know the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import h2osim

if TYPE_CHECKING:
    import xarray

#: Dimensions and values of a coordinate.
Labels = tuple[tuple[str, ...], np.ndarray]

FIXED = "2**-24 of a row's attention mass"
RECALL = "share of attention mass"
ERROR = "share of the output's squared norm"


@dataclass(frozen=True)
class Variable:
    """A variable or coordinate of a result: its element type, unit (empty: none) and meaning.

    ``dtype`` is a NumPy name, or ``text``; ``int64|float64`` means either.
    """

    dtype: str
    unit: str
    meaning: str


#: Every data variable; one name means the same in every form.
VARIABLES = {
    "recall": Variable("float64", RECALL, "kept / mass; NaN where nothing is decoded"),
    "kept": Variable(
        "int64", FIXED, "mass attended in all decode steps; -1 where a trace is too short"
    ),
    "mass": Variable("int64", FIXED, "mass of all decode rows, attended or not"),
    "held": Variable("int32", "keys", "most keys that a decode step attended besides its own"),
    "step_recall": Variable("float64", RECALL, "recall of each decode step"),
    "output_error": Variable(
        "float64", ERROR, "sum over decode steps of |o - o_S|^2 / sum of |o|^2, mean over the heads"
    ),
    "output_error_abs": Variable(
        "float64", "norm of a head's output", "mean over decode steps and heads of |o - o_S|"
    ),
    "attention_error": Variable(
        "float64", "", "mean over decode steps and heads of sum (a - â)^2, â renormalised"
    ),
    "residual_error": Variable(
        "float64",
        "share of the residual stream's squared norm",
        "mean over decode steps of |sum over the unit's heads of W_o (o - o_S)|^2 / |x|^2",
    ),
    "output_error_step": Variable(
        "float64", ERROR, "a decode step's |o - o_S|^2 / mean of |o|^2, mean over the heads"
    ),
    "output_error_abs_step": Variable(
        "float64", "norm of a head's output", "a decode step's |o - o_S|, mean over the heads"
    ),
    "attention_error_step": Variable(
        "float64", "", "a decode step's sum (a - â)^2, mean over the heads"
    ),
    "residual_error_step": Variable(
        "float64",
        "share of the residual stream's squared norm",
        "a decode step's |sum over the unit's heads of W_o (o - o_S)|^2 / |x|^2",
    ),
    "evicted_at": Variable(
        "int32", "step", "step after which a token is never attended again, n if it stays"
    ),
    "lower": Variable("float64", RECALL, "recall of the best schedule found"),
    "upper": Variable("float64", RECALL, "bound / mass: no schedule or split has a larger recall"),
    "bound": Variable("int64", FIXED, "proved bound on the mass that can be kept"),
    "price": Variable("float64", "attention mass", "worth of one more cache slot in a step"),
    "price_fixed": Variable("int64", FIXED, "price, in fixed point"),
    "slots": Variable("int64", "tokens", "cache slots given to a unit"),
    "slots_share": Variable("float64", "", "the slots as a share of n"),
    "loss": Variable("float64", "", "what a unit loses, by the measure that the attributes name"),
    "overall": Variable(
        "float64", "", "mean loss of the units; of masses what all units together lose"
    ),
    "least": Variable("float64", "", "no split of the trace's own curves loses less over all"),
    "optimum": Variable("float64", RECALL, "recall of the offline optimum"),
    "streaming": Variable("float64", RECALL, "recall of StreamingLLM, streaming:sinks=4"),
    "regret": Variable("float64", RECALL, "optimum - recall"),
    "closed": Variable(
        "float64", "", "share of the gap between StreamingLLM and the optimum that is closed"
    ),
    "least_budget": Variable("int64", "tokens", "least budget that reaches the recall, 0 if none"),
    "least_budget_overall": Variable(
        "int64", "tokens", "least budget whose mean recall over the units reaches it, 0 if none"
    ),
    "kl": Variable("float64", "nats", "mean over decode steps of kl_step"),
    "kl_step": Variable(
        "float64", "nats", "KL divergence between the predictions with the full and evicted cache"
    ),
    "nll": Variable("float64", "nats", "mean -log p of the text's next tokens"),
    "full_nll": Variable("float64", "nats", "nll with the full cache"),
    "perplexity": Variable("float64", "", "exp(nll)"),
    "top1": Variable("float64", "", "share of steps whose likeliest next token is the same"),
    "cached": Variable("float64", "keys", "mean keys cached besides a step's own, all units"),
    "cache_bytes": Variable("float64", "bytes", "what these keys and their values take in float16"),
    "answer_logp": Variable("float64", "nats", "log-probability of the answer, all its tokens"),
    "exact": Variable("float64", "", "1 where greedy decoding gives the answer, else 0"),
    "full_answer_logp": Variable("float64", "nats", "answer_logp with the full cache"),
    "full_exact": Variable("float64", "", "exact with the full cache"),
    "agreement": Variable("int64", "tokens", "written before the first that differs"),
    "generated": Variable("text", "", "what the model wrote with the policy in force"),
    "full_generated": Variable("text", "", "what the model wrote with the full cache"),
}

_ON_POLICY = ("policy",)
#: Every coordinate and the dimensions it may lie on (the first that a result has).
COORDINATES = {
    "policy": (_ON_POLICY, Variable("text", "", "the policy as it was written")),
    "rule": (_ON_POLICY, Variable("text", "", "the policy's own name, without parameters")),
    "params": (_ON_POLICY, Variable("text", "", "its parameters as JSON, defaults included")),
    "kind": (_ON_POLICY, Variable("text", "", "online; or oracle, or bound, which none can run")),
    "within_budget": (
        _ON_POLICY, Variable("bool", "", "whether it promises never to hold more than the budget")
    ),
    "readmits": (_ON_POLICY, Variable("bool", "", "whether it attends again to what it evicted")),
    "windows": (_ON_POLICY, Variable("text", "", "parameters that keep the newest tokens")),
    "source_share": (
        _ON_POLICY, Variable("text", "", "how the source shares a cache, if not by KV group")
    ),
    "one_pass": (_ON_POLICY, Variable("bool", "", "whether one pass gave all its budgets")),
    "engine": (_ON_POLICY, Variable("text", "", "what replayed it; batch: Python, not exact")),
    "split": (("split", "budget"), Variable("text", "", "how slots are split over the units")),
    "layer": (("layer", "unit"), Variable("int64", "", "model index of a layer")),
    "unit": (("unit",), Variable("int64", "", "number of the heads that share one cache")),
    "index": (("unit",), Variable("int64", "", "number of a unit in its layer")),
    "heads": (("unit",), Variable("int64", "", "query heads that share the unit's cache")),
    "trace": (("trace", "unit"), Variable("text", "", "name of the trace")),
    "trace_sha256": (
        ("trace", "unit"), Variable("text", "", "sha256 of the trace, as in the attributes")
    ),
    "model": (("trace", "unit"), Variable("text", "", "the model it was recorded from")),
    "text": (
        ("trace", "text", "unit"), Variable("text", "", "the text it was recorded or evaluated on")
    ),
    "text_sha256": (("trace", "text", "unit"), Variable("text", "", "sha256 of that text")),
    "n": (("trace", "text", "unit"), Variable("int64", "tokens", "length of the trace or text")),
    "prompt_len": (("trace", "text", "unit"), Variable("int64", "tokens", "first decode step")),
    "budget": (
        ("budget",), Variable("int64|float64", "tokens", "keys that may stay; or shares of n")
    ),
    "fraction": (("budget",), Variable("float64", "", "the budget as a share of n")),
    "tokens": (
        ("trace", "text", "unit"),
        Variable("int64", "tokens", "budgets in tokens of a trace or text, 0: it is shorter"),
    ),
    "step": (("step",), Variable("int64", "", "decode step: position of its query")),
    "decode_step": (("decode_step",), Variable("int64", "", "decode steps counted from 0")),
    "token": (("token",), Variable("int64", "", "position of a token")),
    "token_text": (("token",), Variable("text", "", "text of a token, where the trace has it")),
}  # fmt: skip

#: What may be measured beside recall: what a step's output or attention loses.
ERRORS = ("output_error", "output_error_abs", "attention_error", "residual_error")

_REPLAY = ("policy", "layer", "unit", "budget")
_SWEEP = ("policy", "unit", "budget")
_EVALUATION = ("text", "policy", "budget")
_OPTIMUM = ("layer", "unit", "budget")
_SPLIT = ("policy", "split", "budget", "layer", "unit")

_over = dict.fromkeys  # variables on the same dimensions

#: Dimensions of the variables of each form of result; those in OPTIONAL may be absent.
FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "replay": {
        **_over(("recall", "kept"), _REPLAY),
        "mass": ("layer", "unit"),
        "held": _REPLAY,
        "step_recall": (*_REPLAY, "step"),
        "evicted_at": (*_REPLAY, "token"),
        **_over(("optimum", "streaming"), _OPTIMUM),
        **_over(("regret", "closed", *ERRORS), _REPLAY),
        **_over([f"{name}_step" for name in ERRORS], (*_REPLAY, "step")),
        "slots": _OPTIMUM,
    },
    "sweep": {
        **_over(("recall", "kept"), _SWEEP),
        "mass": ("unit",),
        **_over(("held", *ERRORS), _SWEEP),
    },
    "optimum": {
        **_over(("recall", "lower", "upper", "kept", "bound"), _OPTIMUM),
        "mass": ("layer", "unit"),
        "evicted_at": (*_OPTIMUM, "token"),
        **_over(("price", "price_fixed"), (*_OPTIMUM, "step")),
        **_over(("output_error", "output_error_abs", "slots"), _OPTIMUM),
    },
    "allocation": {
        **_over(("slots", "slots_share", "loss"), _SPLIT),
        "overall": ("policy", "split", "budget"),
        "least": ("policy", "budget"),
    },
    "evaluation": {
        **_over(("kl", "nll", "perplexity", "top1", "recall", "cached"), _EVALUATION),
        "full_nll": ("text",),
        **_over(("kept", "mass"), (*_EVALUATION, "layer", "unit")),
        "kl_step": (*_EVALUATION, "decode_step"),
        "cache_bytes": _EVALUATION,
        "slots": ("text", "budget", "layer", "unit"),
        **_over(("answer_logp", "exact"), _EVALUATION),
        **_over(("full_answer_logp", "full_exact"), ("text",)),
        **_over(("agreement", "generated"), _EVALUATION),
        "full_generated": ("text",),
    },
    "target": {"least_budget": ("policy", "layer", "unit"), "least_budget_overall": ("policy",)},
}
OPTIONAL = {
    "kl_step", "step_recall", "evicted_at", "price", "price_fixed", "optimum", "streaming",
    "regret", "closed", *ERRORS, *(f"{name}_step" for name in ERRORS),
    "answer_logp", "exact", "full_answer_logp", "full_exact", "agreement", "generated",
    "full_generated", "slots",
}  # fmt: skip
"""Variables that a result may lack."""

ATTRIBUTES = {
    "form": str, "h2osim": str, "trace": str, "trace_sha256": str, "model": str, "text": str,
    "text_sha256": str, "n": int, "prompt_len": int, "share": str, "command": str,
}  # fmt: skip
"""Attributes of a result and their types. An unknown one is an empty text."""
OF_A_TRACE = {*ATTRIBUTES} - {"form", "h2osim", "share", "command"}
"""Attributes that a result on several traces has as coordinates instead, one entry each."""
BESIDE = {"sweep": OF_A_TRACE, "evaluation": {"text", "text_sha256", "n", "prompt_len"}}
"""The same of forms that are always on several traces or texts."""


def dims_of(form: str, name: str, several: bool) -> tuple[str, ...]:
    """The dimensions of a variable: those of the table, and ``trace`` first for several traces."""
    return ("trace", *FORMS[form][name]) if several else FORMS[form][name]


def assemble(
    form: str,
    data: Mapping[str, Any],
    coords: Mapping[str, Any],
    attributes: Mapping[str, Any],
    several: bool = False,
) -> xarray.Dataset:
    """A Dataset of a form: ``data`` and ``coords`` are arrays by name, None is left out.

    ``several``: the first dimension of each variable is ``trace``. A coordinate that the table does
    not know lies on ``policy``: a parameter's values.
    """
    import xarray

    present = {name: (dims_of(form, name, several), x) for name, x in data.items() if x is not None}
    on = {dim for dims, _ in present.values() for dim in dims}
    return describe(xarray.Dataset(present, labels(coords, on), facts(form, attributes)))


def labels(coords: Mapping[str, Any], on: Iterable[str]) -> dict[str, Labels]:
    """Coordinates of a result that has the dimensions ``on``: their dimensions and values."""
    found = {}
    for name, values in coords.items():
        dims = _lies_on(name, set(on))
        if values is not None and set(dims) <= set(on):
            array = np.asarray(values)
            found[name] = dims, array.astype(np.int64) if array.dtype.kind in "iu" else array
    return found


def facts(form: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a result; those that every result has are filled in."""
    return {"h2osim": h2osim.__version__, "command": "", **attributes, "form": form}


def describe(result: xarray.Dataset) -> xarray.Dataset:
    """The same Dataset, with the meaning and unit of each variable in its attributes."""
    for name, variable in result.variables.items():
        if (entry := _entry(str(name))) is not None:
            variable.attrs["long_name"] = entry.meaning
            if entry.unit:
                variable.attrs["units"] = entry.unit
    return result


def _entry(name: str) -> Variable | None:
    return VARIABLES.get(name) or (COORDINATES[name][1] if name in COORDINATES else None)


def _lies_on(name: str, known: set[str]) -> tuple[str, ...]:
    """The dimensions of a coordinate in a result that has the dimensions ``known``."""
    possible = COORDINATES[name][0] if name in COORDINATES else _ON_POLICY
    dims = next(((dim,) for dim in possible if dim in known), possible[:1])
    if name == "fraction" and "trace" in known:
        return "trace", "budget"
    return (*dims, "budget") if name == "tokens" else dims


def check(result: xarray.Dataset) -> None:
    """ValueError naming the first thing in which a Dataset does not keep to the table.

    A Dataset read back from a file passes too.
    """
    form = result.attrs.get("form")
    if form not in FORMS:
        raise ValueError(f"form {form!r}: expected one of {', '.join(FORMS)}")
    several = "trace" in result.dims
    dims = {name: dims_of(form, name, several) for name in FORMS[form]}
    for name in map(str, result.data_vars):
        if name not in dims:
            raise ValueError(f"{form}: unknown variable {name}")
        if result[name].dims != dims[name]:
            raise ValueError(f"{form}: {name} over {result[name].dims}, expected {dims[name]}")
        _check_dtype(name, result[name].dtype, VARIABLES[name])
    if missing := set(dims) - OPTIONAL - set(map(str, result.data_vars)):
        raise ValueError(f"{form}: without {', '.join(sorted(missing))}")
    for name in map(str, result.coords):
        if name in COORDINATES:
            _check_dtype(name, result[name].dtype, COORDINATES[name][1])
        elif result[name].dims != _ON_POLICY:
            raise ValueError(f"{form}: unknown coordinate {name}")
    needed = {str(dim) for name in result.data_vars for dim in result[name].dims}
    if "policy" in needed:
        needed |= {"rule", "params", "kind", "within_budget", "readmits", "windows", "source_share"}
    beside = OF_A_TRACE if several else BESIDE.get(form, set())
    needed |= beside
    if missing := needed - set(map(str, result.coords)):
        raise ValueError(f"{form}: without coordinates {', '.join(sorted(missing))}")
    for name, kind in ATTRIBUTES.items():
        if name in beside or (form == "evaluation" and name.startswith("trace")):
            continue
        if name not in result.attrs or not isinstance(
            result.attrs[name], (int, np.integer) if kind is int else str
        ):
            raise ValueError(f"{form}: attribute {name} is {result.attrs.get(name)!r}")


def _check_dtype(name: str, found: Any, wanted: Variable) -> None:
    text = found.kind in "OUT"
    if not (text if wanted.dtype == "text" else str(found) in wanted.dtype.split("|")):
        raise ValueError(f"{name} is {found}, expected {wanted.dtype}")
