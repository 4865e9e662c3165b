"""The page as one text: templates, styles, scripts, Vega-Lite and data in one file."""

from __future__ import annotations

import json
from importlib.resources import files as package_files
from typing import TYPE_CHECKING, Any

from h2osim.report.comparison import comparison_table, comparison_title, traces_named
from h2osim.report.files import require
from h2osim.report.page.data import MEANINGS, WORDS, answer, page_data
from h2osim.report.page.gather import Contents
from h2osim.support.errors import UserError
from h2osim.support.given import printable

if TYPE_CHECKING:
    from rich.table import Table

#: The most that a page may take, in bytes: it is to be sent by mail.
LARGEST = 8_000_000
_SCRIPTS = ("unpacking.js", "charts.js", "tokens.js", "page.js")
_EXTRA = "'h2osim[report]'"


def require_libraries() -> None:
    """UserError, naming the extra, where a page cannot be made."""
    require("jinja2", _EXTRA, "a report")
    require("vl_convert", _EXTRA, "a report")


def render(found: Contents, command: str = "", title: str | None = None) -> str:
    """The page's HTML; UserError where it would be too large to send."""
    require_libraries()
    import jinja2

    # Every value is escaped, and `tojson` leaves no character that could end a script element.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("h2osim.report.page", "."), autoescape=True,
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    html = environment.get_template("page.html.j2").render(
        title=title or f"KV-cache eviction on {traces_named([one.name for one in found.traces])}",
        what=comparison_title(found.results),
        answer=answer(found),
        tables=tables(found),
        measures={name: WORDS[name] for name in found.measures},
        meanings=MEANINGS,
        sources=_sources(found),
        command=command,
        several=len(found.traces) > 1,
        data=page_data(found, command),
        specs=json.loads(_own("charts.json")),
        style=_own("page.css"),
        vega=_script(vega_lite()),
        script=_script("\n".join(map(_own, _SCRIPTS))),
    )
    html = printable(html)  # a title or a path may hold bytes that are no text
    if (size := len(html.encode())) > LARGEST:
        raise UserError(
            f"report: found {size / 1e6:.1f} MB, expected at most {LARGEST / 1e6:.0f}: name fewer "
            "budgets, policies or traces"
        )
    return html


def vega_lite() -> str:
    """Vega-Lite with what it needs, as one JavaScript text."""
    import vl_convert

    bundle: Any = vl_convert.javascript_bundle  # its types want an argument
    text: str = bundle()
    return text


def tables(found: Contents) -> list[dict[str, Any]]:
    """The tables of `h2osim compare`, as headings, rows and a caption each."""
    optimum = found.best["recall"].reset_coords(drop=True)
    made = [comparison_table(found.results.assign(optimum=optimum))]
    if "output_error" in found.measures:
        made.append(
            comparison_table(found.results, measure="output_error", ranked_by="output_error")
        )
    return [_plain(table) for table in made]


def _plain(table: Table) -> dict[str, Any]:
    rows = zip(*(list(map(str, column.cells)) for column in table.columns), strict=True)
    heads = [" ".join(str(column.header).split("\n")) for column in table.columns]
    return {"heads": heads, "rows": [list(row) for row in rows], "caption": str(table.caption)}


def _sources(found: Contents) -> list[dict[str, str]]:
    """Where everything comes from: each trace's facts, in order."""
    from h2osim.replays.facts import trace_facts

    return [
        trace_facts(trace)
        | {"path": str(trace.path or "in memory"), "recorded": trace.manifest["command"] or ""}
        for trace in found.traces
    ]


def _own(name: str) -> str:
    """A file beside this module."""
    return package_files("h2osim.report.page").joinpath(name).read_text(encoding="utf-8")


def _script(text: str) -> Any:
    """A script's text, which must not hold what ends the element it stands in."""
    from markupsafe import Markup

    return Markup(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"))
