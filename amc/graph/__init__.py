"""Which channels of a network can change together, and cutting them."""
