"""Recovering accuracy without training: least squares on what reaches every layer."""
