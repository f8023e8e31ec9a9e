"""report.md: the report as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from amc.reports.facts import facts
from amc.reports.human import FILTERS
from amc.reports.read import SearchHistory
from amc.reports.table import columns, final_table, outcome, was_trained

_SPECIAL = re.compile(r"([\\`*\[\]|~$!])|(?<![0-9A-Za-z])(_)|(_)(?![0-9A-Za-z])")


def escape(text: str) -> str:
    """Escape text so that Markdown shows it literally, on one line, also in a table cell.

    >>> print(escape("a|b <i>"))
    a\\|b &lt;i&gt;
    """
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\g<0>", line)


def as_yaml(config: Mapping[str, Any]) -> str:
    """The configuration as YAML, in its own order."""
    text: str = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=100)
    return text.rstrip()


def fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def markdown_report(result: Mapping[str, Any], journal: SearchHistory) -> str:
    """The text of report.md. The template escapes all values that are not Markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,
        finalize=lambda value: value if isinstance(value, Markup) else escape(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    return environment.get_template("report.md.jinja").render(
        result=result,
        facts=facts(result, journal),
        outcome=outcome(result),
        columns=columns(result),
        rows=[(row.label, row.cells(was_trained(result))) for row in final_table(result)],
        config=Markup(fenced(as_yaml(result["config"]), "yaml")),
    )
