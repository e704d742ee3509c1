"""What failed, and why, told once for all that failed for the same reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def by_reason(failures: Mapping[str, str]) -> dict[str, str]:
    """From names and reasons to each reason once: whom it stopped, in words, and the reason."""
    names: dict[str, list[str]] = {}
    for name, reason in failures.items():
        names.setdefault(reason, []).append(name)
    return {_several(those): reason for reason, those in names.items()}


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
