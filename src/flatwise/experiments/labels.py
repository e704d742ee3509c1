"""How people read the name of a method."""

from __future__ import annotations

IRREGULAR = {"looksam": "LookSAM", "sam-equal-norm": "SAM at equal norm", "friendly-sam": "Friendly SAM"}
WORDS = frozenset({"eigenvalue", "gradient", "norm", "penalty"})
"""Names made of these are no acronyms and need no hyphen."""


def label(name: str) -> str:
    """`eigen-sam` is Eigen-SAM, `gradient-norm` Gradient norm, `x-sam` X-SAM; `module:Class` stays as it is."""
    if ":" in name:
        return name
    if name in IRREGULAR:
        return IRREGULAR[name]
    words = name.split("-")
    if set(words) <= WORDS:
        return " ".join(words).capitalize()
    *first, last = words
    return "-".join([*(word.upper() if len(word) < 3 else word.capitalize() for word in first), last.upper()])
