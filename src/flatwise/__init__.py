"""flatwise: sharpness-aware training and the curvature of real training losses, on PyTorch.

Public names are resolved on first use, so that `import flatwise` and the command line's `--help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatwise import curvature as curvature
    from flatwise import landscape as landscape
    from flatwise import methods as methods
    from flatwise import objective as objective
    from flatwise import theory as theory
    from flatwise.objective import Objective as Objective
    from flatwise.optim import SharpnessAware as SharpnessAware
    from flatwise.optim import parameter_groups as parameter_groups
    from flatwise.optim import schedules as schedules
    from flatwise.optim import two_pass as two_pass
    from flatwise.optim import unwrap as unwrap

__version__ = "0.1.0"

_SUBPACKAGES = ("curvature", "landscape", "methods", "objective", "theory")
_HOMES = {"Objective": "flatwise.objective"} | dict.fromkeys(
    ("SharpnessAware", "parameter_groups", "schedules", "two_pass", "unwrap"), "flatwise.optim"
)

__all__ = [
    "Objective",
    "SharpnessAware",
    "__version__",
    "curvature",
    "landscape",
    "methods",
    "objective",
    "parameter_groups",
    "schedules",
    "theory",
    "two_pass",
    "unwrap",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"flatwise.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'flatwise' has no attribute {name!r}{_hint(name)}")


def _hint(name: str) -> str:
    """For a method that is looked for one level too high; private names are looked for by tools, which need no hint."""
    is_method = not name.startswith("_") and hasattr(import_module("flatwise.methods"), name)
    return f"; did you mean flatwise.methods.{name}?" if is_method else ""


def __dir__() -> list[str]:
    return __all__
