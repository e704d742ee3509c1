"""Skipped steps in a row: a run whose weights stand still looks from outside like any other."""

from __future__ import annotations

import sys
import warnings

from flatwise.optim import messages

TOO_MANY = 10


class Skips:
    """Counts them, and warns when there are too many: once, until a step is taken again.

    Where a GradScaler skips a step, `step` is not called, so that its search for a scale does not count.
    """

    def __init__(self) -> None:
        self._in_a_row = 0

    def note(self, finite: bool) -> None:
        """Take the step just made into the count."""
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if self._in_a_row == TOO_MANY:
            warnings.warn(messages.NOTHING_BUT_SKIPS.format(count=TOO_MANY), UserWarning, stacklevel=_users_level())


def _users_level() -> int:
    """How far above the caller the user's line is: schedulers and scalers of torch wrap `step`, some more than once."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("flatwise.", "torch.")):
        frame, level = frame.f_back, level + 1
    return level
