"""Kinds of data sources, without what opens them."""

from __future__ import annotations

FILE_KINDS = ("folder", "images", "masks", "parquet")
"""Kinds of sources that name files."""

KINDS = ["digits", "torchvision", "hf", *FILE_KINDS]
"""Words before the colon of a source; what a user registers joins them."""
