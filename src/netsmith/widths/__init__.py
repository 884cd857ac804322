"""Which channels of a network share one order and one width; reordering and resizing them."""
