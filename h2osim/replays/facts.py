"""What a result says of its policies and traces: its coordinates and attributes beside numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from h2osim.policies.declaration import Configured
from h2osim.traces.fingerprint import trace_sha256
from h2osim.traces.trace import Trace


def policy_facts(configured: Sequence[Configured], **more: Any) -> dict[str, Any]:
    """Coordinates on ``policy``: what is known of each. ``more``: further ones, one entry each."""
    return {
        "policy": [c.text for c in configured],
        "rule": [c.policy.name for c in configured],
        "params": [json.dumps(dict(c.values), ensure_ascii=False) for c in configured],
        "kind": [c.policy.kind for c in configured],
        "within_budget": [c.within_budget() for c in configured],
        "readmits": [c.policy.readmits for c in configured],
        "windows": [",".join(c.windows()) for c in configured],
        "source_share": [c.policy.source_share for c in configured],
    } | more


def trace_facts(trace: Trace) -> dict[str, str]:
    """What a trace is, as texts; empty where it is unknown."""
    model, text = trace.manifest["model"] or {}, trace.manifest["text"] or {}
    return {
        "trace": trace.name,
        "trace_sha256": trace_sha256(trace),
        "model": " ".join(filter(None, (model.get("name"), model.get("revision")))),
        "text": text.get("name") or "",
        "text_sha256": text.get("sha256") or "",
    }


def run_facts(trace: Trace, prompt_len: int, share: str) -> dict[str, Any]:
    """Attributes of a result on one trace."""
    return trace_facts(trace) | {"n": trace.n, "prompt_len": prompt_len, "share": share}


def token_facts(trace: Trace) -> dict[str, Any]:
    """Coordinates on ``token``: positions, and texts where the trace has them."""
    texts = (trace.manifest["tokens"] or {}).get("text")
    return {"token": np.arange(trace.n), "token_text": texts}


def params_of(one: Any) -> dict[str, Any]:
    """The parameters in a result's ``params`` coordinate, by name."""
    values: dict[str, Any] = json.loads(str(one))
    return values
