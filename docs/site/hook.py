"""What `mkdocs build` shows besides the pages of docs/ (`mkdocs.yml` names this file).

The first page is README.md; the folders beside docs/ have pages too; a tutorial is a Python file,
shown as a page; the page of the commands is made from the commands. Links are those of the
checkout: they become links of the site, and those to files that are no page become plain text.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "gpu/README.md": "project/gpu.md",
    "traces/README.md": "project/traces.md",
    "proofs/README.md": "project/proofs/index.md",
    "tests/conformance/README.md": "project/conformance.md",
} | {
    path.relative_to(ROOT).as_posix(): f"project/proofs/{path.name}"
    for path in sorted((ROOT / "proofs").glob("*-*.md"))
}
"""Files of the checkout outside docs/, and their places in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no file of docs/."""
    made = {place: (ROOT / path).read_text(encoding="utf-8") for path, place in PAGES.items()}
    for script in sorted((DOCS / "tutorials").glob("*.py")):
        made[f"tutorials/{script.stem}.md"] = tutorial(script)
    made["reference/commands.md"] = commands()
    made["reference/python.md"] = python()
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the checkout into links of the site."""
    at = page.file.src_uri
    source = next((ROOT / path for path, place in PAGES.items() if place == at), DOCS / at)
    known = {file.src_uri for file in files.documentation_pages()} | {
        file.src_uri for file in files.media_files()
    }

    def turned(found: re.Match[str]) -> str:
        text, target, anchor = found["text"], found["target"], found["anchor"] or ""
        path = Path(os.path.normpath(source.parent / target))
        place = path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else ""
        if path.is_relative_to(ROOT):
            place = PAGES.get(path.relative_to(ROOT).as_posix(), place)
        if place.endswith(".py"):
            place = place.removesuffix(".py") + ".md"
        if place == "README.md":
            place = "index.md"
        if place not in known:
            return text.lstrip("!").strip("[]")
        return f"{text}({os.path.relpath(place, Path(at).parent)}{anchor})"

    link = r"(?P<text>!?\[[^\]]*\])\((?!https?:|#|mailto:)(?P<target>[^)#\s]+)(?P<anchor>#[^)]*)?\)"
    return re.sub(link, turned, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw themselves."""

    def formula(found: re.Match[str]) -> str:
        block = found["tag"] == "div"
        source = found["latex"].strip().removeprefix(r"\(").removeprefix(r"\[")
        source = source.removesuffix(r"\)").removesuffix(r"\]")
        for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
            source = source.replace(entity, sign)
        return convert(source, display="block" if block else "inline")

    kind = r'<(?P<tag>span|div) class="arithmatex">(?P<latex>.*?)</(?P=tag)>'
    return re.sub(kind, formula, html, flags=re.DOTALL)


# --- pages that are made --------------------------------------------------------------------


def tutorial(script: Path) -> str:
    """A script as a page: its docstring, then comments that begin a line as prose, code as code."""
    text = script.read_text(encoding="utf-8")
    head, body = re.match(r'"""(.*?)"""\n(.*)', text, re.DOTALL).groups()  # type: ignore[union-attr]
    parts = [f"# {head.strip()}\n\nRun it: `python docs/tutorials/{script.name}`"]
    for block in re.split(r"\n\s*\n(?=# |[^\s#])", body.strip("\n")):
        lines = block.splitlines()
        prose = 0
        while prose < len(lines) and lines[prose].startswith("#"):
            prose += 1
        if prose:
            parts.append("\n".join(line.lstrip("#").strip() for line in lines[:prose]))
        if code := "\n".join(lines[prose:]):
            fence = parts.pop().removesuffix("```") if parts[-1].startswith("```") else "```python"
            parts.append(f"{fence}\n{code}\n```")
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    import typer

    from h2osim.cli.app import app

    command = typer.main.get_command(app)
    parts = [
        "# Commands",
        "`h2osim COMMAND --help` prints the same. `h2osim bench`, `h2osim study` and the like have "
        "commands of their own.",
    ]
    parts += _command(command, ["h2osim"])
    return "\n\n".join(parts) + "\n"


def _command(command: Any, words: list[str]) -> list[str]:
    if hasattr(command, "commands"):
        own = []
        for name, one in command.commands.items():
            own += _command(one, [*words, name])
        return own if len(words) == 1 else [f"## {' '.join(words)}", command.help or "", *own]
    heading = f"{'##' if len(words) == 2 else '###'} {' '.join(words)}"
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    given = [_name(param) for param in shown if param.param_type_name == "argument"]
    usage = " ".join([*words, *given, "[OPTIONS]"])
    rows = ["| option | default | what it does |", "|---|---|---|"]
    rows += map(_row, shown)
    said = inspect.cleandoc(command.help or "")
    return [heading, said, f"```text\n{usage}\n```", "\n".join(rows)]


def _name(param: Any) -> str:
    return param.metavar or param.name.upper()


def _row(param: Any) -> str:
    names = [_name(param)]
    if param.param_type_name != "argument":
        names = [*param.opts, *param.secondary_opts]
    value = getattr(param.default, "value", param.default)
    default = "" if param.required or value in (None, False, ()) else f"`{value}`"
    said = " ".join((getattr(param, "help", None) or "").split())
    cells = (", ".join(f"`{name}`" for name in names), default, said)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def python() -> str:
    """The names that `h2osim` exports, from their docstrings."""
    import h2osim

    parts = [
        "# Python",
        "Every name here is imported from `h2osim` itself, as in `from h2osim import replay`. What "
        "calls return is described in [Results](../results.md). "
        "`python -c 'import h2osim; help(h2osim.replay)'` shows a docstring on a terminal.",
    ]
    titles = {"function": "Functions", "class": "Classes"}
    groups: dict[str, list[str]] = {title: [] for title in titles.values()}
    for name in h2osim.__all__:
        if name == "__version__":
            continue
        value = getattr(h2osim, name)
        module = importlib.import_module(value.__module__).__name__
        title = titles["class" if inspect.isclass(value) else "function"]
        groups[title].append(f"::: {module}.{name}")
    for title, entries in groups.items():
        parts += [f"## {title}", *entries]
    return "\n\n".join(parts) + "\n"
