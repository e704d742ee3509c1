"""The methods by name, with their settings: a method listed here joins the command line, the tests and the tables.

A class of the user's own goes by `module:Class`, wherever a name does.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

from flatwise.methods.ae_sam import AESAM
from flatwise.methods.asam import ASAM
from flatwise.methods.dialogue import Dialogue
from flatwise.methods.eigen_sam import XSAM, EigenSAM, EigenvaluePenalty
from flatwise.methods.esam import ESAM
from flatwise.methods.friendly_sam import FriendlySAM
from flatwise.methods.gradient_norm import GradientNorm
from flatwise.methods.gsam import GSAM, WSAM
from flatwise.methods.looksam import LookSAM
from flatwise.methods.momentum_sam import MomentumSAM
from flatwise.methods.nso import NSO
from flatwise.methods.prgd import PRGD
from flatwise.methods.sam import SAM, SGD, USAM, ReverseSAM
from flatwise.methods.subspaces import Bulk, Dominant
from flatwise.methods.tsam import TSAM
from flatwise.methods.universal import DetSAM, FrobSAM, TraceSAM
from flatwise.methods.wrappers import Interval, Late, Stable, Wrapper
from flatwise.plugins import load


@dataclass(frozen=True)
class _Around:
    """A wrapper around a method, with the settings of both."""

    wrapper: type[Wrapper]
    method: type[Dialogue]


_LISTED: dict[str, type[Dialogue] | _Around] = {
    "sgd": SGD,
    "sam": SAM,
    "usam": USAM,
    "asam": ASAM,
    "eigen-sam": EigenSAM,
    "reverse-sam": ReverseSAM,
    "gradient-norm": GradientNorm,
    "eigenvalue-penalty": EigenvaluePenalty,
    "tsam": TSAM,
    "ssam": _Around(Stable, SAM),
    "trace-sam": TraceSAM,
    "det-sam": DetSAM,
    "frob-sam": FrobSAM,
    "nso": NSO,
    "x-sam": XSAM,
    "gsam": GSAM,
    "wsam": WSAM,
    "friendly-sam": FriendlySAM,
    "looksam": LookSAM,
    "momentum-sam": MomentumSAM,
    "ae-sam": AESAM,
    "esam": ESAM,
    "late-sam": _Around(Late, SAM),
    "interval-sam": _Around(Interval, SAM),
    "dom-sgd": _Around(Dominant, SGD),
    "bulk-sgd": _Around(Bulk, SGD),
    "prgd": PRGD,
}


def names() -> list[str]:
    """The names of all methods, as the command line knows them."""
    return list(_LISTED)


def settings(name: str) -> dict[str, Any]:
    """The hyper-parameters of the method of that name, also of the one that it wraps, with their defaults.

    Args:
        name: as in `names()`, or `module:Class` for a frozen dataclass derived from `Dialogue`.

    Raises:
        ValueError: no method has this name (the nearest one is named), or the module cannot be imported.
        TypeError: what `module:Class` stands for is no method that a name can stand for.
    """
    listed = _found(name)
    if isinstance(listed, _Around):
        return _defaults(listed.method) | _defaults(listed.wrapper)
    return _defaults(listed)


def by_name(name: str, **hyperparameters: Any) -> Dialogue:
    """The method of that name, which is one of `names()` or `module:Class`.

    Raises:
        ValueError: no method has this name (the nearest one is named), or the module cannot be imported.
        TypeError: the method does not have one of the hyper-parameters, or `module:Class` is no such class.
    """
    listed = _found(name)
    if not isinstance(listed, _Around):
        return listed(**hyperparameters)
    own = _defaults(listed.wrapper)
    within = {key: value for key, value in hyperparameters.items() if key not in own}
    outside = {key: value for key, value in hyperparameters.items() if key in own}
    return listed.wrapper(listed.method(**within), **outside)


def _found(name: str) -> type[Dialogue] | _Around:
    module, _, own = name.partition(":")
    if module and own:
        return _checked(name, load(name))
    if name not in _LISTED:
        near = difflib.get_close_matches(name.lower(), _LISTED, n=1, cutoff=0.0)[0]
        known = f"There are: {', '.join(_LISTED)}, or module:Class of your own"
        raise ValueError(f"no method is called {name!r}; did you mean {near!r}? {known}")
    return _LISTED[name]


def _checked(name: str, found: Any) -> type[Dialogue]:
    """A class of the user's, if it can be made and written down by its hyper-parameters."""
    if not isinstance(found, type) or not issubclass(found, Dialogue):
        raise TypeError(f"{name!r} must be a class derived from flatwise.methods.Dialogue, got {found!r}")
    if not is_dataclass(found):
        raise TypeError(f"{name!r} must be a dataclass: write @dataclass(frozen=True) above it")
    for f in fields(found):
        if f.init and not isinstance(f.default, (int, float, str, type(None))):
            raise TypeError(f"{f.name} of {name!r} needs a default that is a number, a text, True, False or None")
    return cast("type[Dialogue]", found)


def _defaults(method: type[Any]) -> dict[str, Any]:
    return {f.name: f.default for f in fields(method) if f.init and f.name != "method"}
