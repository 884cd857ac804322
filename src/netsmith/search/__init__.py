"""Searching for the best network within a budget."""
