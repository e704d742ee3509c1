"""Standard output as it is met: one that does not know a letter, and one whose reader has gone."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper


def replace_unknown_letters() -> None:
    """Where standard output cannot encode a letter, such as λ in ASCII, print a question mark; standard error copes anyway."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def say_no_more() -> None:
    """After a BrokenPipeError: what is left to write on standard output goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
