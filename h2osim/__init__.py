"""h2osim replays KV-cache eviction policies on recorded attention and measures them exactly.

The public names are looked up on first use, so that ``import h2osim`` loads no numba, xarray,
pandas, scipy, matplotlib, torch or cupy.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "Trace",
    "Unit",
    "UserError",
    "__version__",
    "all_policies",
    "allocate",
    "budget_for_recall",
    "certify",
    "open_trace",
    "optimum",
    "record",
    "replay",
    "sweep",
    "synth",
]

if TYPE_CHECKING:
    from h2osim.allocate import allocate
    from h2osim.certify import certify
    from h2osim.curves import budget_for_recall
    from h2osim.errors import UserError
    from h2osim.optimum import optimum
    from h2osim.policy import all_policies
    from h2osim.record import record
    from h2osim.replay import replay
    from h2osim.sweep import sweep
    from h2osim.synth import synth
    from h2osim.trace import Trace, Unit, open_trace

# Public name -> the module that defines it.
_PUBLIC = {
    "Trace": "h2osim.trace",
    "Unit": "h2osim.trace",
    "UserError": "h2osim.errors",
    "all_policies": "h2osim.policy",
    "allocate": "h2osim.allocate",
    "budget_for_recall": "h2osim.curves",
    "certify": "h2osim.certify",
    "open_trace": "h2osim.trace",
    "optimum": "h2osim.optimum",
    "record": "h2osim.record",
    "replay": "h2osim.replay",
    "sweep": "h2osim.sweep",
    "synth": "h2osim.synth",
}


class _Package(ModuleType):
    """The package itself, which lets a function have the name of the module it lives in.

    Importing ``h2osim.replay`` makes Python bind that module as the package's attribute ``replay``,
    which would hide the function of this name. A public name therefore refuses to be bound to a
    module; ``from h2osim.replay import …`` does not go through the attribute and still works.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Import a public name from its module on first use."""
        if name not in _PUBLIC:
            raise AttributeError(f"module 'h2osim' has no attribute {name!r}")
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_PUBLIC})


sys.modules[__name__].__class__ = _Package
