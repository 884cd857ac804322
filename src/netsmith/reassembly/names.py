"""Names that a config may give: scores, metrics and styles of adapters. Without what they stand for."""

from __future__ import annotations

from typing import Literal, get_args

Style = Literal["identity", "linear", "conv3", "dery"]
STYLES: tuple[str, ...] = ("auto", *get_args(Style))
HeadMethod = Literal["auto", "keep", "ridge", "lda"]

# what a user registers joins these
METRICS = ["cka", "rbf_cka", "lr"]
SCORES = [
    "fisher", "grad_norm", "jacov", "knn", "logme", "naswot", "params", "snip", "stitch", "synflow",
]  # fmt: skip
