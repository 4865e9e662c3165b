"""What the output error of every budget costs, beside the recall of every budget."""

from __future__ import annotations

import numpy as np

from h2osim.bench import Measurement, median_seconds
from h2osim.bench.curve import POLICY, one_pass
from h2osim.engines.direct import DirectRun
from h2osim.engines.errors import OUTPUT, Outputs
from h2osim.engines.request import Job
from h2osim.engines.results import Curve
from h2osim.engines.stack import StackRun
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

HEAD_SIZE = 64
GOAL = 40.0


def with_values(unit: Unit) -> Unit:
    """A unit of one head with its rows and random values of the usual size."""
    scores = unit.trace.tensor(unit.layer, "scores")[None, :1]
    values = np.random.default_rng(0).standard_normal((1, 1, unit.n, HEAD_SIZE))
    return Trace.from_packed(scores, name=unit.trace.name, v=values).units()[0]


def measure(unit: Unit) -> list[Measurement]:
    """Time one pass over all budgets of H2O without errors and with; checked before timing."""
    curve = error_pass(unit)
    for k in (1, unit.n // 5, unit.n):
        run = DirectRun(Job(unit, parse(POLICY), k, 1), outputs := Outputs(unit, 1, OUTPUT))
        for block in unit.blocks(rows=outputs.rows_at_a_time()):
            outputs.read(block)
            run.feed(block)
        for name, one in run.result().errors.of.items():
            assert np.isclose(one, curve.errors.of[name][k - 1], rtol=1e-7, atol=1e-12)
    plain = median_seconds(lambda: one_pass(unit))
    whole = median_seconds(lambda: error_pass(unit))
    size = unit.values().shape[2]
    return [
        Measurement(f"recall, all {unit.n} budgets", plain * 1e3, "ms"),
        Measurement(f"output error, head size {size}, all {unit.n} budgets", whole * 1e3, "ms"),
        Measurement("output error / recall", whole / plain, "times", GOAL, False),
    ]


def error_pass(unit: Unit) -> Curve:
    """Every budget's recall and error by the stack engine, on this thread."""
    outputs = Outputs(unit, 1, OUTPUT)
    run = StackRun(Job(unit, parse(POLICY), unit.n, 1), outputs=outputs)
    for block in unit.blocks(rows=outputs.rows_at_a_time()):
        outputs.read(block)
        run.feed(block)
    return run.result()
