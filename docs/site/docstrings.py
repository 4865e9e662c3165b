"""Docstrings for the site: roles of Sphinx, ``:func:`~a.b.c```, become the name as code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Roles(Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for each module, class and function that griffe has read."""
        if obj.docstring is not None:
            role = r":\w+:`~?(?:[\w.]*\.)?(\w+)`"
            obj.docstring.value = re.sub(role, r"`\1`", obj.docstring.value)
