"""The small networks of the two papers, in plain torch."""
