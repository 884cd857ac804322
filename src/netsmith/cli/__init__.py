"""The command line: one file a verb; each parses, validates and calls one library function.

A verb's file imports the library inside `run`: help and errors of usage must not wait for torch.
"""
