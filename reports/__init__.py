"""What a run has to show: report.md and report.html, made from its result.json and journal.jsonl alone."""

from amc.reports.table import final_table
from amc.reports.write import write_reports

__all__ = ["final_table", "write_reports"]
