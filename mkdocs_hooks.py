"""Of the site's build: docstrings introduce code by "::", which Markdown does not know; links out of docs/."""

from __future__ import annotations

import re
from typing import Any

REPOSITORY_FILES = re.compile(r"\]\(\.\./((?:benchmarks|CONTRIBUTING|CHANGELOG|src|tests)[^)]*)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to files that are not pages become their names."""
    return REPOSITORY_FILES.sub(r"] (`\1`)", markdown)


def on_page_content(html: str, **_: Any) -> str:
    return html.replace("<p>::</p>\n", "")
