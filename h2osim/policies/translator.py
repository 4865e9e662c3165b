"""Plain Python functions of numbers, translated to CUDA C++ that gives the same bits.

A rule is a plain function of numbers, so the two languages can say the same thing with the same
bits: floats are `double` (and the kernels are compiled without contraction to fused
multiply-adds), ints are `int` where a bound on them fits and `long long` where it does not. Python
differs from C in division: `//` and `%` round towards minus infinity, on floats as on ints, and
`/` of ints is a float; the helpers of `common.cuh` keep that. Whatever can not be said exactly is
refused with a :class:`Untranslatable` that names the policy, the rule and the line: library
functions whose last bit differs between machines (`exp`, `log`, powers), whole-cache rules
(`rank_cache`, which use NumPy), and any syntax outside the small language below. Division by zero,
at which Python stops, gives infinity or NaN here.

The language: arithmetic, comparisons (chained too), `and`, `or`, `not` of conditions, conditional
expressions, `if`, `while`, `for … in range`, `break`, `continue`, assignment to names, `return`
(of a tuple in `init` and `update`), `min`, `max`, `abs`, `int`, `float`, `math.sqrt`,
`math.floor`, `math.inf`, numbers at module level, and calls of other plain functions.
"""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from h2osim.policies.roles import Rule, arguments
from h2osim.support.errors import UserError

#: No argument of a rule that is a whole number exceeds this (the engine checks it).
LARGEST = 2**26


class Untranslatable(UserError):
    """A rule that can not be said in CUDA C++ with the same bits."""


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
_WIDE = Kind("int", 2.0**53)  # a variable: long long; beyond 2**53 Python's `/` would differ
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}
_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="} | {
    ast.Eq: "==",
    ast.NotEq: "!=",
}


def _join(a: Kind, b: Kind) -> Kind:
    if "float" in (a.type, b.type):
        return FLOAT
    if a.type == b.type == "bool":
        return BOOL
    return Kind("int", max(a.bound, b.bound, 1))


@dataclass
class Module:
    """The functions translated so far, by Python function and kinds of the arguments."""

    policy: str
    texts: list[str] = field(default_factory=list)
    known: dict[tuple[FunctionType, tuple[str, ...]], tuple[str, Kind]] = field(
        default_factory=dict
    )
    open: list[FunctionType] = field(default_factory=list)
    names: int = 0

    def function(self, rule: Rule, kinds: tuple[Kind, ...], results: int = 1) -> tuple[str, Kind]:
        """The C++ name and the kind of result of a plain Python function."""
        if not isinstance(rule, FunctionType) or rule.__name__ == "<lambda>":
            raise Untranslatable(f"policy {self.policy}: {rule!r} is no plain function (def)")
        if rule in self.open:
            raise Untranslatable(f"policy {self.policy}: {rule.__name__} calls itself")
        key = (rule, tuple(kind.c for kind in kinds))
        if key not in self.known:
            self.open.append(rule)
            self.names += 1
            name = f"py{self.names}_{rule.__name__}"
            text, kind = _Function(self, rule, kinds, name, results).translate()
            self.open.pop()
            self.texts.append(text)
            self.known[key] = (name, kind)
        return self.known[key]


class _Function:
    """One Python function on its way to C++."""

    def __init__(
        self, module: Module, rule: FunctionType, kinds: tuple[Kind, ...], name: str, results: int
    ):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(rule)))
        except OSError:
            raise Untranslatable(
                f"policy {module.policy}: the source of {rule.__name__} can not be read"
            ) from None
        body = tree.body[0]
        assert isinstance(body, ast.FunctionDef)
        self._module, self._rule, self._body = module, rule, body
        self._kinds, self._name, self._results = kinds, name, results
        self._given = list(arguments(rule))
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if any(a.kind != plain for a in inspect.signature(rule).parameters.values()):
            raise self._refuse(body, "arguments with * or / in their list")
        self._names: dict[str, Kind] = dict(zip(self._given, kinds, strict=True))
        self._result: Kind | None = None
        self._depth = 1
        self._temporaries = 0

    def _refuse(self, node: ast.AST, what: str) -> Untranslatable:
        line = getattr(node, "lineno", 1)
        return Untranslatable(
            f"policy {self._module.policy}: {self._rule.__name__}, line {line}: {what} can not be "
            "translated to CUDA exactly"
        )

    def translate(self) -> tuple[str, Kind]:
        # The kinds of variables depend on one another; repeat until they stand.
        stored = {n.id for n in ast.walk(self._body) if isinstance(n, ast.Name) and _stored(n)}
        for _ in range(8):
            before = (dict(self._names), self._result)
            self._temporaries = 0
            lines = self._block(self._body.body)
            if before == (self._names, self._result):
                break
        if self._result is None:
            raise self._refuse(self._body, "a rule without a result")
        kinds = zip(self._given, self._kinds, strict=True)
        heads = [f"{kind.c} {name}_" for name, kind in kinds]
        if self._results > 1:
            heads += [f"double *result{i}" for i in range(self._results)]
        result = "void" if self._results > 1 else self._result.c
        text = [f"DEVICE {result} {self._name}({', '.join(heads)}) {{"]
        for name in sorted(stored - set(self._given)):
            text.append(f"    {self._names[name].c} {name}_ = 0;")
        for name in sorted(stored & set(self._given)):
            kind = self._names[name]
            if kind.c != self._kinds[self._given.index(name)].c:
                raise self._refuse(self._body, f"the argument {name} that changes its type")
        return "\n".join([*text, *lines, "}"]) + "\n", self._result

    # --- statements ------------------------------------------------------------------------------

    def _block(self, body: list[ast.stmt]) -> list[str]:
        found: list[str] = []
        for statement in body:
            found += self._statement(statement)
        return found

    def _indented(self, body: list[ast.stmt]) -> list[str]:
        self._depth += 1
        found = self._block(body)
        self._depth -= 1
        return found

    def _line(self, text: str) -> str:
        return "    " * self._depth + text

    def _statement(self, node: ast.stmt) -> list[str]:
        match node:
            case ast.Pass() | ast.Expr(value=ast.Constant(value=str())):
                return []
            case ast.Return(value=value) if value is not None:
                return self._return(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                return [self._assign(name, *self._value(value))]
            case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                return [self._assign(name, *self._value(value))]
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                whole = ast.BinOp(ast.Name(name, ast.Load()), op, value)
                ast.copy_location(whole, node)
                ast.fix_missing_locations(whole)
                return [self._assign(name, *self._value(whole))]
            case ast.If(test=test, body=body, orelse=orelse):
                found = [self._line(f"if ({self._condition(test)}) {{"), *self._indented(body)]
                if orelse:
                    found += [self._line("} else {"), *self._indented(orelse)]
                return [*found, self._line("}")]
            case ast.While(test=test, body=body, orelse=[]):
                head = self._line(f"while ({self._condition(test)}) {{")
                return [head, *self._indented(body), self._line("}")]
            case ast.For(target=ast.Name(id=name), iter=over, body=body, orelse=[]):
                return self._for(name, over, body)
            case ast.Break():
                return [self._line("break;")]
            case ast.Continue():
                return [self._line("continue;")]
        raise self._refuse(node, f"`{ast.unparse(node).splitlines()[0]}`")

    def _assign(self, name: str, text: str, kind: Kind) -> str:
        if kind.type == "int":
            kind = _WIDE
        known = self._names.get(name)
        self._names[name] = kind if known is None else _join(known, kind)
        if name in self._given and known is not None:  # an argument keeps its own C type
            self._names[name] = known if _join(known, kind).type == known.type else FLOAT
            if known.c == "int" and kind.type == "int":
                raise self._refuse(self._body, f"an assignment to the whole argument {name}")
        return self._line(f"{name}_ = {text};")

    def _return(self, value: ast.expr) -> list[str]:
        if self._results > 1:
            if not isinstance(value, ast.Tuple) or len(value.elts) != self._results:
                raise self._refuse(value, f"a result that is no tuple of {self._results}")
            self._result = FLOAT
            texts = [self._value(part)[0] for part in value.elts]
            found = [f"*result{i} = (double)({text});" for i, text in enumerate(texts)]
            return [self._line("{ " + " ".join([*found, "return;"]) + " }")]
        text, kind = self._value(value)
        self._result = kind if self._result is None else _join(self._result, kind)
        return [self._line(f"return {text};")]

    def _for(self, name: str, over: ast.expr, body: list[ast.stmt]) -> list[str]:
        match over:
            case ast.Call(func=ast.Name(id="range"), args=args, keywords=[]) if 1 <= len(args) <= 3:
                parts = [self._value(part) for part in args]
            case _:
                raise self._refuse(over, "a loop over anything but range()")
        if any(kind.type != "int" for _, kind in parts):
            raise self._refuse(over, "range() of anything but ints")
        if name != "_" and name in self._given:
            raise self._refuse(over, f"an assignment to the whole argument {name}")
        self._names[name] = _WIDE
        texts = [text for text, _ in parts]
        first, last = ("0", texts[0]) if len(texts) == 1 else texts[:2]
        step = 1
        if len(args) == 3:
            try:
                step = int(ast.literal_eval(args[2]))
            except ValueError:
                raise self._refuse(args[2], "a step of range() that is no number") from None
            if step == 0:
                raise self._refuse(args[2], "a step of 0")
        self._temporaries += 1
        i, end = f"i{self._temporaries}", f"end{self._temporaries}"
        compare = "<" if step > 0 else ">"
        head = (
            f"for (long long {i} = {first}, {end} = {last}; {i} {compare} {end}; {i} += {step}) {{"
        )
        self._depth += 1
        set_name = self._line(f"{name}_ = {i};")
        self._depth -= 1
        return [self._line(head), set_name, *self._indented(body), self._line("}")]

    # --- expressions -----------------------------------------------------------------------------

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
                kind = _join(yes[1], no[1])
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
        stored = {n.id for n in ast.walk(self._body) if isinstance(n, ast.Name) and _stored(n)}
        if name in stored:
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
            c = _join(x, y).c
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
                        return f"((long long)floor({parts[0][0]}))", _WIDE
            case ast.Name(id=name) if name not in self._names:
                if name in self._rule.__globals__:
                    target = self._rule.__globals__[name]
                    if isinstance(target, FunctionType):
                        if len(parts) != len(arguments(target)):
                            raise self._refuse(node, f"`{ast.unparse(node)}` with default values")
                        kinds = tuple(kind for _, kind in parts)
                        called, kind = self._module.function(target, kinds)
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
                kind = _join(kind, its)
                text = f"py_{name}<{kind.c}>({text}, {other})"
            return text, kind
        if len(parts) == 1:
            text, kind = parts[0]
            if name == "float":
                return f"((double)({text}))", FLOAT
            if name == "int":
                return parts[0] if kind.type == "int" else (f"((long long)({text}))", _WIDE)
            if name == "bool":
                return f"(({text}) != 0)", BOOL
            if name == "abs":
                return (f"fabs({text})", kind) if kind.type == "float" else (
                    f"py_abs({text})", kind,
                )  # fmt: skip
        raise self._refuse(node, f"`{name}()`")


def _stored(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)
