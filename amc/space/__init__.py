"""The policies that may be chosen: their settings, exact costs and limits."""
