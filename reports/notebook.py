"""What a notebook shows of a run: the outcome in one sentence, the final table and the widths, as a piece of HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from amc.reports.table import columns, final_table, outcome, was_trained


def notebook_html(result: Mapping[str, Any]) -> str:
    """The content of result.json as HTML that takes the colours of the page around it. All texts are escaped."""
    trained = was_trained(result)
    numbers = _table(["", *columns(result)], ((row.label, *row.cells(trained)) for row in final_table(result)))
    shown = (
        f"<div><p><strong>{escape(str(result['task']))}</strong>: {escape(outcome(result))}</p>{numbers}"
        f"<details><summary>Widths</summary>{_widths(result['sites'])}</details></div>"
    )
    return shown.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be sent to a browser


def _widths(sites: Iterable[Mapping[str, Any]]) -> str:
    rows = (
        (str(site["name"]), f"{site['width']} of {site['of']}", f"{site['width'] / site['of']:.0%}") for site in sites
    )
    return _table(["site", "kept", "share"], rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
