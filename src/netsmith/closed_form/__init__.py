"""Fits by linear algebra, from sums over examples alone."""
