"""The import graph: layers look down only, heavy libraries have one home each, starting is fast."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import h2osim

PACKAGE = Path(h2osim.__file__).parent

# From the bottom up. A module may import from its own folder and from the folders of lower layers;
# two folders of one layer do not know each other.
LAYERS = (
    {"support"},
    {"attention"},
    {"traces"},
    {"policies", "models"},
    {"engines"},
    {"cuda"},
    {"replays"},
    {"closed_loop"},
    {"optima"},
    {"guarantees"},
    {"report", "bench"},
    {"sweeps", "plot"},
    {"studies"},
    {"cli"},
    {"__main__"},
)
RANK = {part: rank for rank, layer in enumerate(LAYERS) for part in layer}

# Slow or optional libraries, and the only parts of the package that may name them at all.
HOMES = {
    "torch": {"models", "closed_loop", "bench"},  # in bench to be measured against
    "transformers": {"models"},
    "tokenizers": {"models"},
    "gguf": {"models"},
    "matplotlib": {"report"},
    "pyarrow": {"report"},
    "cupy": {"cuda", "bench"},
    "typer": {"cli"},
    "distributed": {"sweeps"},
    "zarr": {"sweeps"},
    "optuna": {"studies"},
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
    "zarr",
    "optuna",
}


def part_of(path: Path) -> str:
    """The folder of a module: ``h2osim/cli/app.py`` belongs to ``cli``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    found = [p for p in PACKAGE.rglob("*.py") if "_carried" not in p.parts]
    return [p for p in found if p != PACKAGE / "__init__.py"]


def name_of(path: Path) -> str:
    return ".".join(("h2osim", *path.relative_to(PACKAGE).with_suffix("").parts))


KNOWN = {name_of(path).removesuffix(".__init__") for path in modules()}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every absolute module a file imports, at its top or inside a function.

    The flag says whether it is only for the type checker. ``from h2osim.cuda import device`` counts
    as the module h2osim.cuda.device where there is one.
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
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                yield inner if inner in KNOWN else module, node in typing_only


def test_every_folder_has_a_layer_and_nothing_lies_loose() -> None:
    parts = {part_of(path) for path in modules()}
    assert parts == set(RANK), f"give these a layer: {sorted(parts ^ set(RANK))}"
    loose = {path.name for path in PACKAGE.glob("*.py")}
    assert loose == {"__init__.py", "__main__.py"}


def test_no_module_bears_the_name_of_a_public_function() -> None:
    """Importing h2osim.replay would otherwise hide the function of this name."""
    assert not {path.stem for path in modules() if path.parent == PACKAGE} & set(h2osim.__all__)
    assert not {part_of(path) for path in modules()} & set(h2osim.__all__)


def test_no_module_imports_itself_by_a_detour() -> None:
    """File by file, imports inside functions and those for the type checker included."""
    graph = {
        name_of(path).removesuffix(".__init__"): {m for m, _ in imports(path) if m in KNOWN}
        for path in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_layers_look_down(path: Path) -> None:
    part = part_of(path)
    for module, typing_only in imports(path):
        head, _, rest = module.partition(".")
        target = rest.partition(".")[0]
        if head == "h2osim" and target in RANK and target != part and not typing_only:
            assert RANK[target] < RANK[part], f"{part} imports {module}, which is not below it"


def test_the_certificate_checker_knows_no_solver() -> None:
    """It reads traces and raises errors; all else would be trust in what it is to check."""
    found = {module for module, _ in imports(PACKAGE / "optima" / "certifying.py")}
    allowed = {f"h2osim.traces.{name}" for name in ("files", "manifest", "trace", "unit")}
    allowed |= {"h2osim.support.errors", "h2osim.support.reading", "h2osim.optima.weighing"}
    assert {module for module in found if module.startswith("h2osim")} == allowed
    assert not found & {"numba", "scipy", "importlib"}


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
    assert min(float(python(code)) for _ in range(6)) < 0.5


def test_help_is_fast() -> None:
    command = [sys.executable, "-m", "h2osim", "--help"]
    assert best_of(6, lambda: subprocess.run(command, capture_output=True, check=True)) < 1.0


def test_public_names_are_found_lazily() -> None:
    for name in h2osim.__all__:
        assert getattr(h2osim, name) is not None
        assert name in dir(h2osim)
    with pytest.raises(AttributeError, match="no attribute 'replya'"):
        getattr(h2osim, "replya")  # noqa: B009 - the type checker knows better than to ask
