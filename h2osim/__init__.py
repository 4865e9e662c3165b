"""h2osim replays KV-cache eviction policies on recorded attention and measures them exactly.

The public names are looked up on first use, so that ``import h2osim`` loads no numba, xarray,
pandas, scipy, matplotlib, torch or cupy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module that defines it; a name equal to its module's last part is the module's function
# of the same name.
_PUBLIC = {
    "Trace": "h2osim.trace",
    "Unit": "h2osim.trace",
    "open_trace": "h2osim.trace",
    "UserError": "h2osim.errors",
    "replay": "h2osim.replay",
}

__all__ = ["Trace", "Unit", "UserError", "__version__", "open_trace", "replay"]

if TYPE_CHECKING:
    from h2osim.errors import UserError
    from h2osim.replay import replay
    from h2osim.trace import Trace, Unit, open_trace


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'h2osim' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
