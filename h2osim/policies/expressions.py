"""Python expressions in numbers as CUDA C++; see `translator` for what is refused."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from h2osim.policies.roles import Rule, arguments
from h2osim.support.errors import UserError

#: No argument of a rule that is a whole number exceeds this (the engine checks it).
LARGEST = 2**26


class Untranslatable(UserError):
    """A rule that CUDA C++ cannot express with the same bits."""


@dataclass(frozen=True)
class Kind:
    """What a value is: its type, and for ints a bound on its size."""

    type: str  # "int", "float" or "bool"
    bound: float = 0

    @property
    def c(self) -> str:
        """The C++ type that holds it."""
        if self.type == "int":
            return "int" if self.bound < 2**31 else "long long"
        return "double" if self.type == "float" else "bool"


FLOAT, BOOL, WHOLE = Kind("float"), Kind("bool"), Kind("int", LARGEST)
WIDE = Kind("int", 2.0**53)  # a variable: long long; beyond 2**53 Python's `/` would differ
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="} | {
    ast.Eq: "==",
    ast.NotEq: "!=",
}


def join(a: Kind, b: Kind) -> Kind:
    """The kind of a value that is of one kind or of the other."""
    if "float" in (a.type, b.type):
        return FLOAT
    if a.type == b.type == "bool":
        return BOOL
    return Kind("int", max(a.bound, b.bound, 1))


class Expressions:
    """Translates the expressions of one Python function.

    names: the kind of every name known so far. call: the C++ name and the kind of result of
    another plain function, for arguments of these kinds.
    """

    def __init__(
        self,
        policy: str,
        rule: FunctionType,
        body: ast.FunctionDef,
        names: dict[str, Kind],
        call: Callable[[Rule, tuple[Kind, ...]], tuple[str, Kind]],
    ):
        self._policy, self._rule, self._body = policy, rule, body
        self._names, self._called = names, call
        self._stored = {
            node.id
            for node in ast.walk(body)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }

    def _refuse(self, node: ast.AST, what: str) -> Untranslatable:
        line = getattr(node, "lineno", 1)
        return Untranslatable(
            f"policy {self._policy}: {self._rule.__name__}, line {line}: {what} can not be "
            "translated to CUDA exactly"
        )

    def _condition(self, node: ast.expr) -> str:
        text, kind = self._value(node)
        return text if kind.type == "bool" else f"({text}) != 0"

    def _value(self, node: ast.expr) -> tuple[str, Kind]:
        match node:
            case ast.Constant(value=value):
                return self._constant(node, value)
            case ast.Name(id=name):
                return self._named(node, name)
            case ast.Attribute(value=ast.Name(id=module), attr=attr):
                if self._rule.__globals__.get(module) is math and attr in ("inf", "pi", "e"):
                    return self._constant(node, getattr(math, attr))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return f"(!({self._condition(operand)}))", BOOL
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
                text, kind = self._number(operand)
                return f"({'-' if isinstance(op, ast.USub) else '+'}{text})", kind
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(node, left, op, right)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self._compare(node, [left, *comparators], ops)
            case ast.BoolOp(op=op, values=values):
                parts = [self._value(value) for value in values]
                if any(kind.type != "bool" for _, kind in parts):
                    raise self._refuse(node, "`and` or `or` of numbers")
                word = " && " if isinstance(op, ast.And) else " || "
                return f"({word.join(text for text, _ in parts)})", BOOL
            case ast.IfExp(test=test, body=body, orelse=orelse):
                yes, no = self._value(body), self._value(orelse)
                kind = join(yes[1], no[1])
                return (
                    f"({self._condition(test)} ? ({kind.c})({yes[0]}) : ({kind.c})({no[0]}))",
                    kind,
                )
            case ast.Call(func=func, args=args, keywords=[]):
                return self._call(node, func, args)
        raise self._refuse(node, f"`{ast.unparse(node)}`")

    def _number(self, node: ast.expr) -> tuple[str, Kind]:
        text, kind = self._value(node)
        return (f"(int)({text})", Kind("int", 1)) if kind.type == "bool" else (text, kind)

    def _constant(self, node: ast.expr, value: Any) -> tuple[str, Kind]:
        if isinstance(value, bool):
            return str(value).lower(), BOOL
        if isinstance(value, int) and abs(value) < 2**53:
            kind = Kind("int", max(1, abs(value)))
            return (f"{value}" if kind.c == "int" else f"{value}LL"), kind
        if isinstance(value, float):
            if math.isnan(value):
                raise self._refuse(node, "NaN")
            if math.isinf(value):
                return ("INF" if value > 0 else "(-INF)"), FLOAT
            return f"{value.hex()}", FLOAT
        raise self._refuse(node, f"`{value!r}`")

    def _named(self, node: ast.expr, name: str) -> tuple[str, Kind]:
        if name in self._names:
            return f"{name}_", self._names[name]
        if name in self._stored:
            raise self._refuse(node, f"`{name}`, used before it is assigned,")
        value = self._rule.__globals__.get(name)
        if isinstance(value, (bool, int, float)):
            return self._constant(node, value)
        raise self._refuse(node, f"`{name}`")

    def _binary(
        self, node: ast.expr, left: ast.expr, op: ast.operator, right: ast.expr
    ) -> tuple[str, Kind]:
        (a, x), (b, y) = self._number(left), self._number(right)
        floats = "float" in (x.type, y.type)
        if type(op) in _OPERATORS:
            word = _OPERATORS[type(op)]
            if floats:
                return f"((double)({a}) {word} (double)({b}))", FLOAT
            bound = x.bound * y.bound if word == "*" else x.bound + y.bound
            if bound >= 2.0**63:
                raise self._refuse(node, f"`{ast.unparse(node)}`, which may not fit 64 bits,")
            kind = Kind("int", bound)
            return f"(({kind.c})({a}) {word} ({kind.c})({b}))", kind
        match op:
            case ast.Div():
                if not floats and max(x.bound, y.bound) > 2.0**53:
                    raise self._refuse(node, f"`{ast.unparse(node)}` of ints beyond 2**53")
                return f"((double)({a}) / (double)({b}))", FLOAT
            case ast.FloorDiv() | ast.Mod():
                name = "py_floordiv" if isinstance(op, ast.FloorDiv) else "py_mod"
                if floats:
                    return f"{name}((double)({a}), (double)({b}))", FLOAT
                kind = Kind("int", x.bound if isinstance(op, ast.FloorDiv) else y.bound)
                wide = Kind("int", max(x.bound, y.bound)).c
                return f"(({kind.c}){name}(({wide})({a}), ({wide})({b})))", kind
        raise self._refuse(node, f"`{ast.unparse(node)}`")

    def _compare(
        self, node: ast.expr, values: list[ast.expr], ops: list[ast.cmpop]
    ) -> tuple[str, Kind]:
        parts = [self._number(value) for value in values]
        found = []
        for (a, x), op, (b, y) in zip(parts, ops, parts[1:], strict=False):
            if type(op) not in _COMPARISONS:
                raise self._refuse(node, f"`{ast.unparse(node)}`")
            c = join(x, y).c
            found.append(f"(({c})({a}) {_COMPARISONS[type(op)]} ({c})({b}))")
        return f"({' && '.join(found)})", BOOL

    def _call(self, node: ast.expr, func: ast.expr, args: list[ast.expr]) -> tuple[str, Kind]:
        parts = [self._number(arg) for arg in args]
        match func:
            case ast.Attribute(value=ast.Name(id=module), attr=attr):
                if self._rule.__globals__.get(module) is math and len(parts) == 1:
                    if attr == "sqrt":
                        return f"sqrt((double)({parts[0][0]}))", FLOAT
                    if attr == "floor":
                        if parts[0][1].type == "int":
                            return parts[0]
                        return f"((long long)floor({parts[0][0]}))", WIDE
            case ast.Name(id=name) if name not in self._names:
                if name in self._rule.__globals__:
                    target = self._rule.__globals__[name]
                    if isinstance(target, FunctionType):
                        if len(parts) != len(arguments(target)):
                            raise self._refuse(node, f"`{ast.unparse(node)}` with default values")
                        kinds = tuple(kind for _, kind in parts)
                        called, kind = self._called(target, kinds)
                        return f"{called}({', '.join(text for text, _ in parts)})", kind
                else:
                    return self._builtin(node, name, parts)
        raise self._refuse(node, f"`{ast.unparse(node)}`")

    def _builtin(
        self, node: ast.expr, name: str, parts: list[tuple[str, Kind]]
    ) -> tuple[str, Kind]:
        if name in ("min", "max") and len(parts) >= 2:
            text, kind = parts[0]
            for other, its in parts[1:]:
                kind = join(kind, its)
                text = f"py_{name}<{kind.c}>({text}, {other})"
            return text, kind
        if len(parts) == 1:
            text, kind = parts[0]
            if name == "float":
                return f"((double)({text}))", FLOAT
            if name == "int":
                return parts[0] if kind.type == "int" else (f"((long long)({text}))", WIDE)
            if name == "bool":
                return f"(({text}) != 0)", BOOL
            if name == "abs":
                return (f"fabs({text})", kind) if kind.type == "float" else (
                    f"py_abs({text})", kind,
                )  # fmt: skip
        raise self._refuse(node, f"`{name}()`")
