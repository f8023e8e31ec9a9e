"""One run, from the configuration to the bundle."""
