"""What users bring along as `module:name`, imported: functions that make data and models, classes of methods."""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any


def load(name: str) -> Any:
    """What `module:name` stands for. The current folder counts as a place to import from.

    Raises:
        ValueError: there is no such module, or nothing of that name in it (the nearest is named).
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise ValueError(f"cannot import {module_name!r} for {name!r}: {error}") from error
    if not hasattr(module, attribute):
        nearest = get_close_matches(attribute, vars(module), n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"the module {module_name!r} has no {attribute!r}{hint}")
    return getattr(module, attribute)
