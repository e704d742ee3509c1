"""Memory that a process has freed, kept for its next step."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Options of glibc's mallopt, from its malloc.h."""

_NEVER = -1
"""As a trim threshold: give nothing back."""


def keep_memory() -> None:
    """Have freed memory stay with this process, instead of going back to the system, which clears it and hands it out again.

    A step of training frees its arrays, and the next one asks for as many; where they are large, a third of the time can go to
    that. A process then holds on to the most that it has needed. Only glibc can be told; elsewhere nothing changes.
    """
    tell = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if tell is not None:
        tell(_MMAP_MAX, 0)
        tell(_TRIM_THRESHOLD, _NEVER)
