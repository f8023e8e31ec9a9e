"""Reports of runs and batches, made from result.json and the journals alone."""

from amc.reports.table import final_table
from amc.reports.write import write_reports

__all__ = ["final_table", "write_reports"]
