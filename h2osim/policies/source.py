"""The source of functions, and everything that a function reaches outside itself.

A policy's numbers depend on its rules and on each function, constant and default that the rules
reach. :func:`outside` lists what one function reaches; the translators walk it to copy rules, and
:func:`fingerprint` walks it to recognise a policy that was edited.
"""

from __future__ import annotations

import ast
import dataclasses
import dis
import functools
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from h2osim.support.errors import UserError

#: Modules that are identified by their name; the source of their functions is not read.
_LIBRARIES = sys.stdlib_module_names | {"numpy", "numba", "scipy", "pandas", "xarray", "torch"}
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def outside(function: FunctionType) -> dict[str, Any]:
    """The values that a function takes from its module: name -> value, builtins left out.

    Names are those that its bytecode loads, functions and comprehensions inside it included.
    Annotations are not evaluated and do not count. Of a module that is no library, the attributes
    that the function may use are listed as ``module.attribute``.
    """
    found: dict[str, Any] = {}
    attributes = {name for code in _codes(function.__code__) for name in code.co_names}
    for code in _codes(function.__code__):
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in function.__globals__:
                found[step.argval] = function.__globals__[step.argval]
    for name, value in list(found.items()):
        if isinstance(value, ModuleType) and not _in_library(value.__name__):
            members = sorted(attributes & set(vars(value)))
            found |= {f"{name}.{member}": getattr(value, member) for member in members}
    return found


def definition(function: FunctionType) -> str:
    """The text of a function or lambda, without comments and layout.

    Raises :class:`UserError` where the source can not be read, or where the file was edited after
    the function was loaded from it.
    """
    code = function.__code__
    try:
        text = "".join(inspect.findsource(code)[0])
        nodes, loaded = _file(text, code.co_filename)
    except (OSError, SyntaxError):
        raise UserError(f"{function.__qualname__}: its source can not be read") from None
    texts = nodes.get(code.co_firstlineno, [])
    if not texts or _instructions(code) not in loaded:
        raise UserError(
            f"{code.co_filename}: edited since {function.__qualname__} was loaded from it; "
            "start Python again"
        )
    return "\n".join(texts)


def fingerprint(value: Any, where: str) -> str:
    """A sha256 that changes when a value changes, or anything that a function reaches.

    Of functions: their text, defaults, closures, and in turn all that :func:`outside` lists. Of
    arrays, containers and plain objects: their content. Raises :class:`UserError`, beginning with
    ``where``, for an object that has no content to read (a random generator, an open file).
    """
    try:
        return hashlib.sha256("\n".join(_Walk().words(value)).encode()).hexdigest()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


class _Walk:
    """One walk over everything that a value reaches; each object is described once."""

    def __init__(self) -> None:
        # The objects themselves are kept, so that no id is used again during the walk.
        self._seen: dict[int, tuple[int, Any]] = {}

    def words(self, value: Any) -> Iterator[str]:
        """A description that is equal for equal values, as lines."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes):
            yield f"{type(value).__name__} {value!r}"
            return
        if id(value) in self._seen:
            yield f"again {self._seen[id(value)][0]}"
            return
        self._seen[id(value)] = len(self._seen), value
        name = getattr(value, "__qualname__", getattr(value, "__name__", None))
        home = value.__name__ if isinstance(value, ModuleType) else _home(value)
        if isinstance(value, ModuleType) or (name and _in_library(home)):
            yield f"library {home} {name}"
        elif isinstance(value, np.ndarray | np.generic):
            content = value.tolist() if value.dtype.hasobject else value.tobytes()
            yield f"array {value.dtype} {value.shape}"
            yield from self.words(content)
        elif isinstance(value, Mapping):
            yield from self._each("mapping", [part for item in value.items() for part in item])
        elif isinstance(value, tuple | list):
            yield from self._each(type(value).__name__, value)
        elif isinstance(value, set | frozenset):
            yield from self._each("set", sorted(value, key=repr))
        elif isinstance(value, range | slice | np.dtype):
            yield repr(value)
        elif isinstance(value, functools.partial):
            yield from self._each("partial", [value.func, value.args, value.keywords])
        elif isinstance(value, MethodType):
            yield from self._each("method", [value.__func__, value.__self__])
        elif isinstance(value, FunctionType):
            yield from self._function(value)
        elif isinstance(getattr(value, "py_func", None), FunctionType):  # compiled by numba
            yield from self.words(value.py_func)
        elif callable(getattr(value, "__wrapped__", None)):  # functools.cache and the like
            yield from self.words(value.__wrapped__)
        elif isinstance(value, type):
            yield from self._class(value)
        elif dataclasses.is_dataclass(value) or _has_content(value):
            yield from self._each("object", [type(value), vars(value)])
        else:
            raise UserError(
                f"{name or type(value).__name__} ({type(value).__name__}): expected functions, "
                "numbers, arrays or containers of these, so that a change would be noticed"
            )

    def _each(self, kind: str, values: Any) -> Iterator[str]:
        yield f"{kind} {len(values)}"
        for value in values:
            yield from self.words(value)

    def _function(self, function: FunctionType) -> Iterator[str]:
        yield definition(function)
        cells = function.__closure__ or ()
        yield from self._each("defaults", [function.__defaults__, function.__kwdefaults__])
        yield from self._each("closure", [cell.cell_contents for cell in cells])
        yield from self.words(outside(function))

    def _class(self, cls: type) -> Iterator[str]:
        yield f"class {cls.__qualname__}"
        yield from self._each("bases", cls.__bases__)
        for name, member in vars(cls).items():
            made = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(made, FunctionType):
                # What dataclasses write into a class has no source and follows from its fields.
                if inspect.unwrap(made).__code__.co_filename != "<string>":
                    yield name
                    yield from self.words(made)
            elif not name.startswith("__"):
                yield name
                yield from self.words(member)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _instructions(code: CodeType) -> tuple[str, bytes, tuple[str, ...], str]:
    constants = [one for one in code.co_consts if not isinstance(one, CodeType)]
    return code.co_name, code.co_code, code.co_names, repr(constants)


@functools.lru_cache(maxsize=64)
def _file(text: str, name: str) -> tuple[dict[int, list[str]], set[tuple]]:
    """Of a file: the functions that begin on each line, as text, and the code of all of them."""
    nodes: dict[int, list[str]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _DEFINITIONS):
            above = getattr(node, "decorator_list", [])
            line = min([node.lineno, *(one.lineno for one in above)])
            nodes.setdefault(line, []).append(ast.unparse(node))
    codes = _codes(compile(text, name, "exec", dont_inherit=True))
    return nodes, {_instructions(code) for code in codes}


def _home(value: Any) -> str:
    """The module that a function or class comes from."""
    if isinstance(value, np.ufunc):
        return "numpy"
    module = getattr(value, "__module__", None)
    if module is None and isinstance(value, BuiltinFunctionType):
        return "builtins"
    return module if isinstance(module, str) else ""


def _in_library(module: str) -> bool:
    return module.partition(".")[0] in _LIBRARIES


def _has_content(value: Any) -> bool:
    return hasattr(value, "__dict__") and not _in_library(type(value).__module__)
