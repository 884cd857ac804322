"""Netsmith turns the trained networks you have into the network you need."""

__version__ = "0.1.0"
