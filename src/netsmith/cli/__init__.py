"""The command line: one file a verb; each parses, validates and calls one library function."""
