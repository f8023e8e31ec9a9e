"""Write the reports of a run's folder."""

from __future__ import annotations

from pathlib import Path

from amc.deploy.result import read_result
from amc.reports.html import html_report
from amc.reports.markdown import markdown_report
from amc.reports.read import read_journal
from amc.runtime.files import write_text


def write_reports(folder: Path) -> None:
    """Write report.md and report.html beside the run's result.json. Raises BundleError."""
    result = read_result(folder / "result.json")
    journal = read_journal(folder / "journal.jsonl")
    write_text(folder / "report.md", markdown_report(result, journal))
    write_text(folder / "report.html", html_report(result, journal))
