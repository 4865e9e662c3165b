"""The package as users get it: sdist, wheel, editable install and a checkout nobody installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from guide import guide_commands, guide_in

import h2osim

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = set(SETTINGS["tool"]["setuptools"]["packages"])
# Run by the installed package's Python: where it is and what it finds.
PROBE = """
import json
from pathlib import Path
import h2osim
from h2osim.support import bundled
from h2osim.traces.catalogue import bundled_traces
print(json.dumps({
    "package": str(Path(h2osim.__file__).parent),
    "traces": sorted(bundled_traces()),
    "carried": sorted(
        f"{name}/{path.relative_to(folder).as_posix()}"
        for name in ("traces", "proofs", "gpu")
        for folder in [getattr(bundled, name)()]
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] != "local"
    ),
}))
"""


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=clean | environment
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def carried_files(root: Path = ROOT) -> list[str]:
    """What has to travel: every file of the three folders but the user's own traces."""
    return sorted(
        path.relative_to(root).as_posix()
        for name in ("traces", "proofs", "gpu")
        for path in (root / name).rglob("*")
        if path.is_file() and path.relative_to(root).parts[1] != "local"
    )


def trace_files() -> list[Path]:
    return [ROOT / name for name in carried_files() if name.startswith("traces/")]


def bundled_names() -> list[str]:
    return sorted(path.parent.name for path in (ROOT / "traces").glob("*/trace.json"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that building leaves nothing behind in it."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    nowhere = (".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*nowhere, "local", ".hypothesis"))
    # What a user recorded must not travel with a build made from the checkout.
    mine = copy / "traces" / "local" / "mine"
    mine.mkdir(parents=True)
    (mine / "trace.json").write_text("{}", encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An sdist, and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source], folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A new virtual environment that sees this one's libraries but not its h2osim.

    A path listed in a .pth file is searched last, and the .pth files inside that folder (an
    editable h2osim among them) are not read.
    """
    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = run([python, "-c", ask], tmp_path).strip()
    Path(own, "outer.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    return python


def install(python: Path, *what: str | Path) -> None:
    # --force-reinstall because pip sees the outer environment's h2osim as well.
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall"]
    run([python, "-m", "pip", "install", *options, *what], python.parent)


def probe(python: str | Path, cwd: Path, **environment: str) -> dict[str, Any]:
    return json.loads(run([python, "-c", PROBE], cwd, **environment))


def test_every_subpackage_is_listed() -> None:
    top = Path(h2osim.__file__).parent
    found = {
        ".".join(("h2osim", *path.relative_to(top).parts))
        for path in (top, *top.rglob("*"))
        if path.is_dir() and "_carried" not in path.parts and any(path.glob("*.py"))
    }
    assert found == {name for name in PACKAGES if "._carried" not in name}


def test_every_bundled_trace_is_listed() -> None:
    prefix = "h2osim._carried.traces."
    places = {path.parent.relative_to(ROOT / "traces").as_posix() for path in trace_files()}
    folders = places - {"."}
    assert {name.removeprefix(prefix) for name in PACKAGES if name.startswith(prefix)} == folders
    assert set(bundled_names()) <= folders
    directories = SETTINGS["tool"]["setuptools"]["package-dir"]
    data = SETTINGS["tool"]["setuptools"]["package-data"]
    for name in bundled_names():
        assert directories[prefix + name] == f"traces/{name}"
        assert data[prefix + name] == ["trace.json", "*.safetensors"]


def test_the_citation_names_this_version() -> None:
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {h2osim.__version__}\n" in cited and "\nlicense: Apache-2.0\n" in cited


@pytest.mark.nightly
def test_what_is_uploaded_is_in_order(built: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("twine", reason="needs twine, of the extra dev")
    said = run([sys.executable, "-m", "twine", "check", "--strict", *built], tmp_path)
    assert said.count("PASSED") == 2


@pytest.mark.nightly
def test_wheel_has_one_top_level_name_and_everything_carried(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    info = f"h2osim-{h2osim.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"h2osim", info}
    prefix = "h2osim/_carried/"
    assert sorted(n.removeprefix(prefix) for n in names if n.startswith(prefix)) == carried_files()
    assert "h2osim/py.typed" in names
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in names
    core = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert not {"torch", "transformers", "matplotlib", "cupy-cuda12x", "pyarrow"} & set(core)
    for version in (12, 13):
        wheel_of = rf'^Requires-Dist: cupy-cuda{version}x\b.*extra == "gpu-cuda{version}"$'
        assert re.search(wheel_of, metadata, re.MULTILINE)


@pytest.mark.nightly
def test_sdist_holds_tests_and_docs(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers()}
    wanted = {"pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "tests/test_packaging.py"}
    assert wanted | set(carried_files()) <= names
    assert not any(name.startswith("traces/local") for name in names)


@pytest.mark.nightly
def test_wheel_works_from_elsewhere(built: tuple[Path, Path], fresh: Path, tmp_path: Path) -> None:
    install(fresh, built[1])
    found = probe(fresh, tmp_path)
    assert found["package"].startswith(str(tmp_path))
    assert found["traces"] == bundled_names()
    assert found["carried"] == carried_files()
    command = fresh.parent / "h2osim"
    assert run([command, "--version"], tmp_path) == f"h2osim {h2osim.__version__}\n"
    for name in bundled_names():
        assert name in run([command, "traces"], tmp_path)
    importable = "import importlib.util as u; print([u.find_spec(n) for n in ('traces', 'gpu')])"
    assert run([fresh, "-c", importable], tmp_path) == "[None, None]\n"


@pytest.mark.nightly
def test_a_users_policies_run_without_a_checkout(
    built: tuple[Path, Path], fresh: Path, tmp_path: Path
) -> None:
    """Those of docs/add-a-policy.md: by keys, with vectors as state, and a network of PyTorch."""
    pytest.importorskip("torch", reason="the page's network is one of PyTorch")
    install(fresh, built[1])
    mine = tmp_path / "mine"
    mine.mkdir()
    guide_in(mine)
    for line, words in guide_commands():
        assert words in run([fresh.parent / "h2osim", *line.split()[1:]], mine), line


@pytest.mark.nightly
def test_install_from_the_checkout(source: Path, fresh: Path, tmp_path: Path) -> None:
    install(fresh, source)
    found = probe(fresh, tmp_path)
    assert found["package"].startswith(str(tmp_path))
    assert found["carried"] == carried_files()


@pytest.mark.nightly
def test_editable_install(source: Path, fresh: Path, tmp_path: Path) -> None:
    install(fresh, "--editable", source)
    found = probe(fresh, tmp_path)
    assert found["package"] == str(source / "h2osim")
    assert found["carried"] == carried_files()
    assert "mine" in found["traces"]  # a trace in traces/local/ has a name of its own


def test_checkout_without_installation(source: Path, tmp_path: Path) -> None:
    found = probe(sys.executable, tmp_path, PYTHONPATH=str(source))
    assert found["package"] == str(source / "h2osim")
    assert found["carried"] == carried_files()
