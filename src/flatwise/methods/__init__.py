"""The methods: each a short dialogue with the training loss. A method listed here joins the command line and the tests."""

from __future__ import annotations

import difflib
from typing import Any

from flatwise.methods.dialogue import At, Dialogue, Evaluation, Method, Passes, State, drive
from flatwise.methods.eigen_sam import EigenSAM
from flatwise.methods.gradient_norm import GradientNorm
from flatwise.methods.sam import SAM, SGD, ReverseSAM

__all__ = [
    "SAM",
    "SGD",
    "At",
    "Dialogue",
    "EigenSAM",
    "Evaluation",
    "GradientNorm",
    "Method",
    "Passes",
    "ReverseSAM",
    "State",
    "by_name",
    "drive",
    "names",
]

_BY_NAME: dict[str, type[Method]] = {
    "sgd": SGD,
    "sam": SAM,
    "eigen-sam": EigenSAM,
    "reverse-sam": ReverseSAM,
    "gradient-norm": GradientNorm,
}


def names() -> list[str]:
    """The names of all methods, as the command line knows them."""
    return list(_BY_NAME)


def by_name(name: str, **hyperparameters: Any) -> Method:
    """The method of that name.

    Raises:
        ValueError: no method has this name; the nearest one is named.
        TypeError: the method does not have one of the hyper-parameters.
    """
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name.lower(), _BY_NAME, n=1, cutoff=0.0)[0]
        raise ValueError(f"no method is called {name!r}; did you mean {near!r}? There are: {', '.join(_BY_NAME)}")
    return _BY_NAME[name](**hyperparameters)
