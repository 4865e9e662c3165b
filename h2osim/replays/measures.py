"""What a replay measures beside recall, and what that takes of a trace."""

from __future__ import annotations

from collections.abc import Iterable

from h2osim.engines.errors import ATTENTION, NEEDS_RESIDUAL, NEEDS_VALUES, OUTPUT, RESIDUAL
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

#: The variables of each measure, the one that ranks first. Recall is always there.
MEASURES: dict[str, tuple[str, ...]] = {
    "recall": (),
    "error": OUTPUT,
    "both": OUTPUT,
    "attention-error": ATTENTION,
    "residual-error": RESIDUAL,
}
#: What a measure costs a core, in passes for recall alone (`h2osim bench errors`).
PASSES = {"recall": 1, "error": 20, "both": 20, "attention-error": 6, "residual-error": 100}


def variables_of(measure: str, traces: Iterable[Trace]) -> tuple[str, ...]:
    """The variables that a measure adds to a result; UserError where the trace lacks the data."""
    if measure not in MEASURES:
        raise UserError(f"unknown measure {measure!r}; expected one of {', '.join(MEASURES)}")
    names = MEASURES[measure]
    for trace in traces:
        for unit in trace.units("layer") if NEEDS_VALUES.intersection(names) else ():
            if not unit.has_values:
                raise UserError(
                    f"measure {measure}: trace {trace.name} has no values ({unit.label}); record "
                    "it with h2osim record … --values, or ask for attention-error, which needs "
                    "scores only"
                )
            if NEEDS_RESIDUAL.intersection(names) and not unit.has_residual:
                raise UserError(
                    f"measure {measure}: trace {trace.name} has no output projections ({unit.label}"
                    "); record it with h2osim record … --residual, or ask for error"
                )
    return names
