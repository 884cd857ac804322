"""Records: what is written down about a network, for writer and reader."""
