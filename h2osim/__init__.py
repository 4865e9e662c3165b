"""h2osim replays KV-cache eviction policies on recorded attention and measures them exactly.

The public names are looked up on first use, so that ``import h2osim`` loads no numba, xarray,
pandas, scipy, matplotlib, torch or cupy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Param",
    "Policy",
    "Stepper",
    "Trace",
    "Unit",
    "UnitBudgets",
    "UserError",
    "__version__",
    "all_policies",
    "allocate",
    "budget_for_recall",
    "budgets_of",
    "by_cache",
    "certify",
    "evaluate",
    "export_trace",
    "frame",
    "import_trace",
    "open_sweep",
    "open_trace",
    "optimum",
    "progress_bars",
    "read_budgets",
    "record",
    "record_many",
    "replay",
    "sweep",
    "synth",
    "write_budgets",
]

if TYPE_CHECKING:
    from h2osim.engines.stepper import Stepper
    from h2osim.models.importing import import_trace
    from h2osim.models.recording import record, record_many
    from h2osim.optima.allocating import allocate, budgets_of
    from h2osim.optima.certifying import certify
    from h2osim.optima.solving import optimum
    from h2osim.policies.declaration import Policy
    from h2osim.policies.registry import all_policies
    from h2osim.replays.budget_file import read_budgets, write_budgets
    from h2osim.replays.curves import budget_for_recall
    from h2osim.replays.replaying import replay
    from h2osim.replays.unit_budgets import UnitBudgets
    from h2osim.report.notebook import frame
    from h2osim.support.bars import progress_bars
    from h2osim.support.errors import UserError
    from h2osim.support.parameters import Param
    from h2osim.sweeps.evaluation import evaluate
    from h2osim.sweeps.sweeping import open_sweep, sweep
    from h2osim.traces.catalogue import open_trace
    from h2osim.traces.exchange import export_trace
    from h2osim.traces.shared_caches import by_cache
    from h2osim.traces.synthetic import synth
    from h2osim.traces.trace import Trace
    from h2osim.traces.unit import Unit

# Public name -> the module that defines it.
_PUBLIC = {
    "Param": "h2osim.support.parameters",
    "Policy": "h2osim.policies.declaration",
    "Stepper": "h2osim.engines.stepper",
    "Trace": "h2osim.traces.trace",
    "Unit": "h2osim.traces.unit",
    "UnitBudgets": "h2osim.replays.unit_budgets",
    "UserError": "h2osim.support.errors",
    "all_policies": "h2osim.policies.registry",
    "allocate": "h2osim.optima.allocating",
    "budget_for_recall": "h2osim.replays.curves",
    "budgets_of": "h2osim.optima.allocating",
    "by_cache": "h2osim.traces.shared_caches",
    "certify": "h2osim.optima.certifying",
    "evaluate": "h2osim.sweeps.evaluation",
    "export_trace": "h2osim.traces.exchange",
    "frame": "h2osim.report.notebook",
    "import_trace": "h2osim.models.importing",
    "open_sweep": "h2osim.sweeps.sweeping",
    "open_trace": "h2osim.traces.catalogue",
    "optimum": "h2osim.optima.solving",
    "progress_bars": "h2osim.support.bars",
    "read_budgets": "h2osim.replays.budget_file",
    "record": "h2osim.models.recording",
    "record_many": "h2osim.models.recording",
    "replay": "h2osim.replays.replaying",
    "sweep": "h2osim.sweeps.sweeping",
    "synth": "h2osim.traces.synthetic",
    "write_budgets": "h2osim.replays.budget_file",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name == "plot":  # a package; its functions are named after what they draw
        return importlib.import_module("h2osim.plot")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'h2osim' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
