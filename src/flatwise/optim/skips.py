"""Skipped steps in a row: a run whose weights stand still looks from outside like any other."""

from __future__ import annotations

import warnings

from flatwise.optim import messages

TOO_MANY = 10


class Skips:
    """Counts them, and warns when there are too many: once, until a step is taken again.

    Where a GradScaler skips a step, `step` is not called, so that its search for a scale does not count.
    """

    def __init__(self) -> None:
        self._in_a_row = 0

    def note(self, finite: bool, stacklevel: int) -> None:
        """Take the step just made into the count; `stacklevel` is that of the user's line, as seen from the caller."""
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if self._in_a_row == TOO_MANY:
            warnings.warn(messages.NOTHING_BUT_SKIPS.format(count=TOO_MANY), UserWarning, stacklevel=stacklevel + 1)
