"""For the reference: has griffe show the section "Example:" of a docstring as code, as it does with "Examples:"."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^Example:\n((?:    .*\n?|\n)+)", re.MULTILINE)


def as_code(section: re.Match[str]) -> str:
    """The section, with a heading that griffe knows and a body that it shows as code."""
    body = section[1].rstrip()
    return f"Examples:\n{body}\n" if ">>>" in body else f"Examples:\n    ```python\n{body}\n    ```\n"


class ExampleSections(griffe.Extension):  # type: ignore[misc]
    """Renames the section in each docstring, and fences examples that are no dialogue with the interpreter."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Called by griffe with each module, class, function and attribute that it has read."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub(as_code, obj.docstring.value)
