"""Engines: one replay of one unit under one policy at one budget, in several ways.

:mod:`~h2osim.engines.naive` is the definition; the others are compared with it, every eviction.
"""

from functools import cache
from importlib.resources import files


@cache
def loop_text(name: str) -> str:
    """The text of a loop that :func:`~h2osim.policies.to_numba.compiled` puts behind rules."""
    return files(__name__).joinpath(f"{name}.py").read_text(encoding="utf-8")
