"""What no rule may do, found in its source before anything runs: each with file, rule and line.

A rule that names what nothing defines works in a compiled engine by luck or not at all; one that
calls a function whose last bit differs from library to library makes engines disagree.
"""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import math
import textwrap
from types import FunctionType

import numpy as np

from h2osim.policies.declaration import Policy
from h2osim.policies.roles import COMPILED, ROLES
from h2osim.policies.source import outside
from h2osim.policies.to_numba import collect
from h2osim.support.errors import UserError

_BUILTINS = {"min", "max", "abs", "int", "float", "bool", "range", "len", "round"}
_MATH = {"sqrt", "floor", "ceil", "fabs", "inf", "nan", "pi", "e", "isnan", "isinf", "isfinite"}
#: NumPy's functions that round in an order or by a library of their own, or draw.
_NUMPY = {
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "power", "float_power", "sin", "cos",
    "tan", "sinh", "cosh", "tanh", "cbrt", "hypot", "sum", "mean", "average", "std", "var", "prod",
    "dot", "matmul", "inner", "outer", "einsum", "linalg", "random", "convolve", "cumsum",
}  # fmt: skip


_ORDER = (
    "adds up in an order of its own; h2osim.policies.arithmetic has dot, norm, cosine, distance "
    "and products"
)


def refuse(policy: Policy) -> None:
    """UserError for the first thing in a policy's rules that no rule may do."""
    for role, rule in policy.rules().items():
        if role not in COMPILED:
            continue
        seen: list[FunctionType] = []
        waiting = [rule]
        while waiting:
            one = waiting.pop()
            if one in seen or not isinstance(one, FunctionType) or one.__name__ == "<lambda>":
                continue  # what is no plain function is refused where it is compiled
            seen.append(one)
            _refuse_names(policy, one)
            states = len(policy.state) if one is rule and ROLES[role].gives == "state" else 0
            _refuse_text(policy, one, states)
            waiting += [x for x in outside(one).values() if isinstance(x, FunctionType)]


def found_nan(policy: str, role: str, t: int) -> str:
    """What is said of a rank that is NaN."""
    return f"policy {policy}: {role} gives NaN in step {t}, which has no place in an order"


def found_zero(policy: Policy, t: int) -> str:
    """What is said of a division by zero: the rules that divide are named."""
    roles = []
    for role, rule in policy.rules().items():
        texts: dict[str, str] = {}
        collect(rule, policy.name, texts)
        if any("/" in text or "%" in text for text in texts.values()):
            roles.append(role)
    return f"policy {policy.name}: {' or '.join(roles)} divides by zero in step {t}"


def _wrong(policy: Policy, rule: FunctionType, line: int, what: str) -> UserError:
    file = rule.__code__.co_filename
    return UserError(f"policy {policy.name}: {file}, line {line}, rule {rule.__name__}: {what}")


def _refuse_names(policy: Policy, rule: FunctionType) -> None:
    for step in dis.get_instructions(rule):
        name = step.argval
        if step.opname != "LOAD_GLOBAL" or name in rule.__globals__:
            continue
        line = (step.positions and step.positions.lineno) or rule.__code__.co_firstlineno
        if not hasattr(builtins, name):
            raise _wrong(policy, rule, line, f"nothing defines {name} (is an import missing?)")
        if name not in _BUILTINS:
            allowed = ", ".join(sorted(_BUILTINS))
            raise _wrong(policy, rule, line, f"{name} may not be used; of Python's own: {allowed}")


def _refuse_text(policy: Policy, rule: FunctionType, states: int) -> None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(rule)))
    except (OSError, SyntaxError):
        return  # refused where it is compiled
    first = rule.__code__.co_firstlineno - 1
    for node in ast.walk(tree):
        line = first + getattr(node, "lineno", 1)
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=name):
                home = rule.__globals__.get(module)
                if (home is math and name not in _MATH) or (home is np and name in _NUMPY):
                    raise _wrong(
                        policy, rule, line, f"{module}.{name} differs in the last bit from one "
                        "library to the next; h2osim.policies.arithmetic has exp, log1p, sigmoid",
                    )  # fmt: skip
            case ast.BinOp(op=ast.MatMult()) | ast.AugAssign(op=ast.MatMult()):
                raise _wrong(policy, rule, line, f"@ {_ORDER}")
            case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in _NUMPY and not (
                isinstance(value, ast.Name) and value.id in rule.__globals__
            ):
                raise _wrong(policy, rule, line, f".{name}() {_ORDER}")
            case ast.BinOp(op=ast.Pow()) | ast.AugAssign(op=ast.Pow()):
                raise _wrong(
                    policy, rule, line, "** differs in the last bit between libraries; multiply"
                )
            case ast.Return(value=value) if states:
                if isinstance(value, ast.List | ast.Set | ast.Dict):
                    raise _wrong(
                        policy, rule, line, f"found a {type(value).__name__.lower()}, expected "
                        + ("one number" if states == 1 else f"a tuple of {states} numbers"),
                    )  # fmt: skip
                if isinstance(value, ast.Tuple) and len(value.elts) != states:
                    raise _wrong(
                        policy, rule, line, f"found {len(value.elts)} numbers for a state of "
                        f"{states} ({', '.join(policy.state)})",
                    )  # fmt: skip
