"""The import graph: layers look down only, heavy libraries have one home each, starting is fast."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import h2osim

PACKAGE = Path(h2osim.__file__).parent

# From the bottom up. A module may import from the layers below its own, and a package (cli, record,
# policies, …) from itself; two modules of one layer do not know each other.
LAYERS = (
    {"errors"},
    {"carried", "fixedpoint", "_scan"},
    {"rows"},
    {"trace"},
    {"describe", "synth", "record", "policy", "rules"},
    {"inputs"},
    {"policies"},
    {"engines"},
    {"replay", "curves"},
    {"certify"},
    {"optimum"},
    {"_allocate"},
    {"allocate"},
    {"guarantees"},
    {"report", "bench"},
    {"sweep"},
    {"cli"},
    {"__main__"},
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

# Slow or optional libraries, and the only parts of the package that may name them at all.
HOMES = {
    "torch": {"record", "bench"},  # in bench to be measured against
    "transformers": {"record"},
    "tokenizers": {"record"},
    "gguf": {"record"},
    "matplotlib": {"report", "sweep"},
    "pyarrow": {"report"},
    "cupy": {"engines", "bench"},
    "typer": {"cli"},
    "distributed": {"sweep"},
}
# These may not be loaded by importing the package or by asking the command for help.
NOT_AT_START = {
    "numba",
    "xarray",
    "pandas",
    "scipy",
    "matplotlib",
    "torch",
    "transformers",
    "cupy",
    "networkx",
    "pyarrow",
    "distributed",
}


def part_of(path: Path) -> str:
    """``h2osim/cli/app.py`` belongs to ``cli``, ``h2osim/trace.py`` to ``trace``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    found = [p for p in PACKAGE.rglob("*.py") if "_carried" not in p.parts]
    return [p for p in found if p != PACKAGE / "__init__.py"]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every absolute module a file imports, at its top or inside a function.

    The flag says whether it is only for the type checker. ``from h2osim import x`` counts as the
    module h2osim.x where there is one.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in typing_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the package uses absolute ones"
            module = node.module or ""
            if module == "h2osim":
                for alias in node.names:
                    yield f"h2osim.{alias.name}", node in typing_only
            else:
                yield module, node in typing_only


def test_every_module_has_a_layer() -> None:
    parts = {part_of(path) for path in modules()}
    assert parts <= set(RANK), f"give these a layer: {sorted(parts - set(RANK))}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers_look_down(path: Path) -> None:
    part = part_of(path)
    for module, typing_only in imports(path):
        head, _, rest = module.partition(".")
        target = rest.partition(".")[0]
        if head == "h2osim" and target in RANK and target != part and not typing_only:
            assert RANK[target] < RANK[part], f"{part} imports {module}, which is not below it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_have_one_home(path: Path) -> None:
    for module, typing_only in imports(path):
        library = module.partition(".")[0]
        if library in HOMES and not typing_only:
            assert part_of(path) in HOMES[library], f"{path.name} imports {library}"


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code",
    ["import h2osim", "from h2osim.cli import run; run(['compare', '--help'])"],
    ids=["import", "help"],
)
def test_starting_loads_nothing_heavy(code: str) -> None:
    loaded = python(f"{code}\nimport sys; print('\\nMODULES', *sys.modules)")
    names = {name.partition(".")[0] for name in loaded.rpartition("MODULES")[2].split()}
    assert not names & NOT_AT_START


def best_of(runs: int, action: Callable[[], object]) -> float:
    """The least wall time of several runs: what the work costs when nothing else disturbs it."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def test_import_is_fast() -> None:
    code = "import time; s = time.perf_counter(); import h2osim; print(time.perf_counter() - s)"
    assert min(float(python(code)) for _ in range(3)) < 0.5


def test_help_is_fast() -> None:
    command = [sys.executable, "-m", "h2osim", "--help"]
    assert best_of(3, lambda: subprocess.run(command, capture_output=True, check=True)) < 1.0


def test_public_names_are_found_lazily() -> None:
    for name in h2osim.__all__:
        assert getattr(h2osim, name) is not None
        assert name in dir(h2osim)
    with pytest.raises(AttributeError, match="no attribute 'replya'"):
        getattr(h2osim, "replya")  # noqa: B009 - the type checker knows better than to ask


def test_a_function_keeps_its_name_when_its_module_is_imported() -> None:
    code = (
        "import h2osim.replay, h2osim\n"
        "assert callable(h2osim.replay)\n"
        "from h2osim import replay\n"
        "assert replay is h2osim.replay\n"
        "from h2osim.replay import replay as again\n"
        "assert again is replay\n"
    )
    python(code)
