"""A local page on which a morphable artifact changes its size while it answers."""
