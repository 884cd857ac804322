"""The files that say what was done: one model each, for writer and reader."""
