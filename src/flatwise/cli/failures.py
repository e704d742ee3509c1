"""What failed, said on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping


def tell_failures(failures: Mapping[str, str]) -> None:
    """A line for each reason."""
    from flatwise import report

    for names, reason in report.by_reason(failures).items():
        print(f"flatwise: {names} failed: {reason}", file=sys.stderr)
