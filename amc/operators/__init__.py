"""What can be done to a site: one file an operator."""

from amc.operators.channels import legal_widths, width_of, widths_of

__all__ = ["legal_widths", "width_of", "widths_of"]
