"""Tables and pages about what there is: policies, generators, traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from h2osim.policies.declaration import Policy
from h2osim.report.frames import flat
from h2osim.report.layouts import plain_table
from h2osim.traces.recorded import in_words

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from h2osim.traces.description import TraceFacts
    from h2osim.traces.generator import Generator
    from h2osim.traces.trace import Trace


# --- policies -------------------------------------------------------------------------------


def policy_record(policy: Policy) -> dict[str, Any]:
    """A policy's declaration as plain values: rule, source, parameters and facts."""
    return {
        "name": policy.name,
        "summary": policy.summary,
        "source": policy.source,
        "params": [
            {"name": p.name, "default": p.default, "range": p.range, "doc": p.doc}
            for p in policy.params
        ],
        "kind": policy.kind,
        "one_pass": _one_pass(policy),
        "within_budget": policy.with_params().within_budget(),
        "needs": in_words(policy.with_params().needs),
        "notes": policy.notes,
    }


def _one_pass(policy: Policy) -> str:
    """Whether one pass gives every budget (T7): yes, one head (only), by parameters, or no."""
    if not callable(policy.inclusive):
        return "yes" if policy.inclusive else "no"
    default = policy.with_params()
    if default.inclusive(2):
        return "yes"
    return "one head" if default.inclusive(1) else "by parameters"


def policies_table(policies: Sequence[Policy]) -> Table:
    """One row a policy: name, rule, and what to know of it; the rest is on its page."""
    table = plain_table(
        None,
        "one pass: whether one pass over a trace gives every budget, because smaller caches lie "
        "within larger ones, some by "
        "parameters or for one head; * may hold more than the budget; `h2osim policies NAME` has "
        "parameters, source and notes",
    )
    for header in ("policy", "rule", "one pass"):
        table.add_column(header, overflow="fold", no_wrap=header == "policy")
    for policy in policies:
        more = "" if policy.with_params().within_budget() else "*"
        needs = policy.with_params().needs
        told = policy.kind == "online" or policy.summary.startswith(policy.kind)
        rule = policy.summary if told else f"{policy.kind}: {policy.summary}"
        rule += f"; needs {in_words(needs)}" if needs else ""
        passes = _one_pass(policy)
        table.add_row(policy.name + more, rule, passes if passes in ("yes", "no") else "some")
    return table


def policy_page(policy: Policy) -> Group:
    """Everything that is declared about one policy."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    record = policy_record(policy)
    facts = {
        "source": record["source"],
        "kind": record["kind"],
        "one pass": record["one_pass"],
        "needs": record["needs"] or "attention rows only",
        "budget": "kept in every decode step" if record["within_budget"] else "may be exceeded",
        "also takes": "; ".join(f"{p.name}={p.range}" for p in policy.takes[len(policy.params) :]),
        "notes": record["notes"],
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(name, Text(str(value)))
    parts: list[Any] = [Text(f"{policy.name}: {policy.summary}"), grid]
    if policy.params:
        table = plain_table("parameters")
        for header in ("name", "default", "values", "meaning"):
            table.add_column(header, overflow="fold")
        for p in policy.params:
            table.add_row(p.name, str(p.default), p.range, p.doc)
        parts.append(table)
    written = ",".join(f"{p.name}={p.default}" for p in policy.params)
    also = f" or {policy.name}:{written}" if written else ""
    parts.append(Text(f"written {policy.name}{also}"))
    return Group(*parts)


# --- generators -----------------------------------------------------------------------------


def generators_table(generators: Sequence[Generator]) -> Table:
    """One row a generator of synthetic traces, then a row for each of its parameters."""
    table = plain_table(None)
    for header in ("generator", "parameter", "default", "values", "meaning"):
        table.add_column(header, overflow="fold")
    for generator in generators:
        table.add_row(generator.name, "", "", "", generator.summary)
        for p in generator.params:
            default = "from n" if p.name in generator.sized else f"{p.default:g}"
            table.add_row("", p.name, default, p.range, p.doc)
        table.add_section()
    return table


# --- traces ---------------------------------------------------------------------------------


def trace_record(trace: Trace) -> dict[str, Any]:
    """What the manifest says about a trace, in a few plain values; reads no scores."""
    model = trace.manifest.get("model") or {}
    text = trace.manifest.get("text") or {}
    return {
        "name": trace.name,
        "tokens": trace.n,
        "prompt": trace.prompt_len,
        "layers": list(trace.layers),
        "heads": len(trace.heads),
        "group_size": trace.group_size,
        "stores": list(trace.stores),
        "model": model.get("name"),
        "text": text.get("name"),
        "license": text.get("license"),
        "megabytes": round(sum(f["bytes"] for f in trace.manifest["layers"]) / 1e6, 1),
    }


def traces_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """One row a trace, from :func:`trace_record`."""
    table = plain_table(None, "heads/KV: query heads and the KV heads that they share")
    for header in ("trace", "tokens", "layers", "heads/KV", "model", "MB"):
        numbers = header in ("tokens", "heads/KV", "MB")
        table.add_column(header, justify="right" if numbers else "left", overflow="fold")
    for r in records:
        layers = r["layers"]
        ends = f"{len(layers)}: {layers[0]}–{layers[-1]}"
        listed = str(flat(layers)) if len(layers) < 7 else ends
        table.add_row(
            r["name"], str(r["tokens"]), listed, f"{r['heads']}/{r['heads'] // r['group_size']}",
            r["model"] or "–", str(r["megabytes"]),
        )  # fmt: skip
    return table


def infos_table(facts: Sequence[TraceFacts]) -> Table:
    """Several traces: a row each, with the means over its layers of what :func:`info_page` has."""
    table = plain_table(
        None,
        "means over the layers, in %: entries under 1 % of their row's maximum; the "
        "attention mass on the first 4 tokens (sinks), the newest 32 (recent), the tenth most "
        "attended of the others (heavy) and the rest",
    )
    for header in ("trace", "tokens", "layers", "sparse", "sinks", "recent", "heavy", "rest"):
        table.add_column(header, justify="left" if header == "trace" else "right")
    for one in facts:
        shares = [
            sum(getattr(layer, name) for layer in one.layers) / len(one.layers)
            for name in ("sparsity", "sinks", "recent", "heavy", "rest")
        ]
        cells = (f"{100 * share:.1f}" for share in shares)
        table.add_row(one.name, str(one.n), str(len(one.layers)), *cells)
    return table


def info_page(facts: TraceFacts) -> Group:
    """What :func:`~h2osim.traces.description.describe` found: the trace, then layers as rows."""
    from rich.console import Group
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    prompt = f"prompt of {facts.prompt_len}" if facts.prompt_len else "no prompt of its own"
    size = "in memory" if facts.bytes is None else f"{facts.bytes / 1e6:.1f} MB"
    shape = f"{facts.heads} heads of {facts.kv_heads} KV heads"
    lines = {
        "trace": facts.name,
        "path": facts.path,
        "model": " ".join(filter(None, (facts.model, _bracketed(facts.architecture)))),
        "text": " ".join(filter(None, (facts.text, _bracketed(facts.license)))),
        "tokens": f"{facts.n} ({prompt})",
        "shape": f"{len(facts.layers)} layers, {shape} (groups of {facts.group_size})",
        "store": f"{' and '.join(facts.stores)}: {', '.join(facts.tensors)}; {size}",
        "made by": facts.created_by,
        "command": facts.command,
    }
    for name, value in lines.items():
        if value:
            grid.add_row(name, value)
    table = plain_table(
        None,
        "% of entries under 1 % of their row's maximum and exactly 0; % of the attention "
        "mass on the first 4 tokens (sinks), the newest 32 (recent), the tenth most attended of "
        "the others (heavy) and the rest; largest mass a row lost to float16; power-law exponent "
        "of the mass tokens receive",
    )
    columns = ("layer", "sparse", "zero", "sinks", "recent", "heavy", "rest", "lost", "exponent")
    for header in columns:
        table.add_column(header, justify="right")
    windowed = any(layer.window is not None for layer in facts.layers)
    if windowed:
        table.add_column("window", justify="right")
    with_sink = any(layer.no_token is not None for layer in facts.layers)
    if with_sink:
        table.add_column("no token", justify="right")
        table.caption = f"{table.caption}; % of a row's mass on no token, taken by a learned sink "
        table.caption += "(shares and recall are of the mass on tokens)"
    for layer in facts.layers:
        shares = (layer.sparsity, layer.zeros, layer.sinks, layer.recent, layer.heavy, layer.rest)
        row = [str(layer.layer), *(f"{100 * share:.1f}" for share in shares)]
        row.append("–" if layer.lost_max is None else f"{layer.lost_max:.1g}")
        row.append("–" if layer.exponent is None else f"{layer.exponent:.2f}")
        if windowed:
            row.append(str(layer.window or "–"))
        if with_sink:
            row.append("–" if layer.no_token is None else f"{100 * layer.no_token:.1f}")
        table.add_row(*row)
    return Group(grid, table)


def _bracketed(text: str | None) -> str | None:
    return f"({text})" if text else None
