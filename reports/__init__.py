"""Reports of runs and batches, generated from result.json and the journals alone."""

from amc.reports.table import bits_line, columns, final_table, was_trained
from amc.reports.write import write_reports

__all__ = ["bits_line", "columns", "final_table", "was_trained", "write_reports"]
