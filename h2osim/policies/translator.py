"""Plain Python functions of numbers, translated to CUDA C++ that gives the same bits.

A rule is a plain function of numbers, which both languages can compute with the same bits: floats
are `double` (and the kernels are compiled without contraction to fused multiply-adds), ints are
`int` where a bound on them fits and `long long` where it does not. Python differs from C in
division: `//` and `%` round towards minus infinity, on floats as on ints, and `/` of ints is a
float; the helpers of `common.cuh` keep that. What cannot be expressed exactly is refused with a
:class:`Untranslatable` that names the policy, the rule and the line: library functions whose last
bit differs between machines (`exp`, `log`, powers), whole-cache rules (`rank_cache`, which use
NumPy), and any syntax outside the small language below. Division by zero, at which Python stops,
gives infinity or NaN here.

The language: arithmetic, comparisons (chained too), `and`, `or`, `not` of conditions, conditional
expressions, `if`, `while`, `for … in range`, `break`, `continue`, assignment to names, `return`
(of a tuple in `init` and `update`), `min`, `max`, `abs`, `int`, `float`, `math.sqrt`,
`math.floor`, `math.inf`, numbers at module level, and calls of other plain functions.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass, field
from types import FunctionType

from h2osim.policies.expressions import FLOAT, WIDE, Expressions, Kind, Untranslatable, join
from h2osim.policies.roles import Rule, arguments


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


class _Function(Expressions):
    """Translates one Python function."""

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
        self._kinds, self._name, self._results = kinds, name, results
        self._given = list(arguments(rule))
        names = dict(zip(self._given, kinds, strict=True))
        super().__init__(module.policy, rule, body, names, module.function)
        plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if any(a.kind != plain for a in inspect.signature(rule).parameters.values()):
            raise self._refuse(body, "arguments with * or / in their list")
        self._result: Kind | None = None
        self._depth = 1
        self._temporaries = 0

    def translate(self) -> tuple[str, Kind]:
        # The kinds of variables depend on one another; repeat until none changes.
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
        for name in sorted(self._stored - set(self._given)):
            text.append(f"    {self._names[name].c} {name}_ = 0;")
        for name in sorted(self._stored & set(self._given)):
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
            kind = WIDE
        known = self._names.get(name)
        self._names[name] = kind if known is None else join(known, kind)
        if name in self._given and known is not None:  # an argument keeps its own C type
            self._names[name] = known if join(known, kind).type == known.type else FLOAT
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
        self._result = kind if self._result is None else join(self._result, kind)
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
        self._names[name] = WIDE
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
