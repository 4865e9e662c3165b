"""What the numbers of a sweep depend on, as plain values: its identity.

A store keeps it, and is continued only by a sweep of the same identity. Engine, cores and chunks
are not part of it: they change no number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import h2osim
from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.source import fingerprint
from h2osim.replays.plan import WorkPlan
from h2osim.replays.unit_budgets import UnitBudgets, as_asked
from h2osim.support.parameters import Arrays
from h2osim.traces.fingerprint import layer_sha256
from h2osim.traces.trace import Trace

#: Fields of a policy that are words for people.
_WORDS = {"name", "summary", "source", "needs", "notes"}
#: Fields of a trace that the replayed rows and their units follow from, besides the layers.
_TRACE_FIELDS = ("n", "stores", "heads", "kv_heads", "group_size", "head_dim", "prompt_len")


def identity(plan: WorkPlan) -> dict[str, Any]:
    """The identity of a sweep, as values that JSON keeps.

    Raises :class:`UserError` where a policy reaches something whose change would go unnoticed.
    """
    layers = [plan.layers(o) for o in range(len(plan.traces))]
    measured = {} if plan.measure == "recall" else {"measure": plan.measure}
    return measured | {
        "h2osim": h2osim.__version__,
        "share": plan.share,
        "layers": [list(one) for one in layers],
        "prompt_len": list(plan.prompt_lens),
        "budgets": plan.asked if isinstance(plan.asked, str) else plain_budgets(plan.asked),
        **policies_of(plan.configured),
        "traces": [
            {"name": name, **_trace(trace, chosen)}
            for name, trace, chosen in zip(plan.names, plan.traces, layers, strict=True)
        ],
    }


def policies_of(configured: Sequence[Configured]) -> dict[str, Any]:
    """What the decisions of some policies follow from."""
    policies = list({id(one.policy): one.policy for one in configured}.values())
    place = {id(policy): i for i, policy in enumerate(policies)}
    return {
        "policies": [one.text for one in configured],
        "parameters": [
            {"policy": place[id(one.policy)], **_values(one.values)} for one in configured
        ],
        "declarations": [{"name": policy.name, **_declaration(policy)} for policy in policies],
    }


def plain_budgets(budgets: Any) -> list[Any]:
    """Budgets as Python numbers; those by unit as what makes them, but for where they come from."""
    return [
        {
            "name": b.name, "budgets": b.budgets.tolist(), "layers": list(b.layers),
            "model": b.model, "share": b.share,
        }
        if isinstance(b, UnitBudgets)
        else b.item()
        if isinstance(b, np.generic)
        else b
        for b in as_asked(budgets)
    ]  # fmt: skip


def budgets_from(plain: Any) -> Any:
    """The budgets that :func:`plain_budgets` wrote."""
    if isinstance(plain, str):
        return plain
    return [
        UnitBudgets(**{**b, "budgets": np.array(b["budgets"]), "layers": tuple(b["layers"])})
        if isinstance(b, dict)
        else b
        for b in plain
    ]


def _values(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: f"sha256 {fingerprint(dict(v.content), name)}"
        if isinstance(v, Arrays)
        else v.item()
        if isinstance(v, np.generic)
        else v
        for name, v in values.items()
    }


def _declaration(policy: Policy) -> dict[str, str]:
    """Every field of a policy that is no wording: simple ones as they are, others as a digest.

    Of the parameters only what a rule sees: their defaults and ranges are in the values.
    """
    found = {}
    for field in dataclasses.fields(policy):
        if field.name not in _WORDS:
            value = getattr(policy, field.name)
            if field.name == "params":
                value = str([(one.name, one.kind, one.choices) for one in value])
            simple = value is None or isinstance(value, bool | int | float | str)
            where = f"policy {policy.name}, {field.name}"
            found[field.name] = repr(value) if simple else f"sha256 {fingerprint(value, where)}"
    return found


def _trace(trace: Trace, layers: Sequence[int]) -> dict[str, Any]:
    """What a trace's numbers follow from; of a layer in memory, the digest of its arrays."""
    found = {name: trace.manifest[name] for name in _TRACE_FIELDS}
    for layer in layers:
        entry = {k: v for k, v in trace.layer_entry(layer).items() if k != "file"}
        if "sha256" not in entry:
            entry["sha256"] = layer_sha256(trace, layer)
        found[f"layer {layer}"] = entry
    return found
