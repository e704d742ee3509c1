"""What a closure from Lightning holds besides forward and backward, told by its shape: Lightning itself is not imported.

Lightning's precision plugins hand over `partial(plugin._wrap_closure, module, optimizer, closure)`: it runs the closure, and then
the hooks and the clipping that belong right before the update. A method runs the closure several times, and those once.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from flatwise.optim import messages

_told: weakref.WeakSet[Any] = weakref.WeakSet()


def taken_apart(closure: Any) -> tuple[Any, Callable[[], Any] | None]:
    """The closure that runs forward and backward, and what is to run once before the update; None where there is nothing."""
    plugin = _plugin(closure)
    if plugin is None:
        return closure, None
    module, optimizer, inner = closure.args
    if getattr(inner, "__name__", "") == "do_nothing_closure":  # of `step()` in manual optimization
        inner = None
    elif module.automatic_optimization and not hasattr(module, "counts"):
        inner = _Uncounted(module, inner)
    return inner, partial(plugin._after_closure, module, optimizer)


def is_automatic(closure: Any) -> bool:
    """Whether it is Lightning's own closure, around `training_step`, and not one from a user's manual optimization."""
    if _plugin(closure) is not None:
        return bool(closure.args[0].automatic_optimization)
    inner = closure.args[-1] if isinstance(closure, partial) and closure.args else closure
    return type(inner).__module__.startswith(("lightning.", "pytorch_lightning."))


def _plugin(closure: Any) -> Any:
    if not isinstance(closure, partial) or len(closure.args) != 3:
        return None
    plugin = getattr(closure.func, "__self__", None)
    return plugin if hasattr(plugin, "_after_closure") else None


class _Uncounted:
    """One step's closure of a module without our mixin: called again, it warns, once, that passes are mixed in logs."""

    def __init__(self, module: Any, closure: Any) -> None:
        self._module = module
        self._closure = closure
        self._called = False

    def __call__(self) -> Any:
        if self._called and self._module not in _told:
            _told.add(self._module)
            warnings.warn(messages.LIGHTNING_LOGS, UserWarning, stacklevel=2)
        self._called = True
        return self._closure()
