"""What is measured, and how: a frozen dataclass that imports nothing heavy, since the command line is built from it.

The docstrings under the fields are the help texts of `flatwise measure`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Literal, TypeAlias, get_args

import tyro

from flatwise.training.config import nearest

_Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
_Whole = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
_Bytes = Annotated[str | None, tyro.conf.arg(metavar="BYTES", help_behavior_hint="")]

Quantity: TypeAlias = Literal["eigenvalues", "trace", "density", "frobenius", "landscape"]
Split: TypeAlias = Literal["train", "test"]
Mode: TypeAlias = Literal["eval", "train"]
Precision: TypeAlias = Literal["float32", "float64"]
Engine: TypeAlias = Literal["auto", "double", "forward", "differences", "one-sided"]
Slice: TypeAlias = Literal["line", "plane"]

QUANTITIES: tuple[str, ...] = get_args(Quantity)
USERS: dict[str, tuple[str, ...]] = {
    "top": ("eigenvalues",),
    "lowest": ("eigenvalues",),
    "tol": ("eigenvalues", "landscape"),
    "trace_samples": ("trace",),
    "probes": ("density",),
    "steps": ("density",),
    "norm_samples": ("frobenius",),
    "landscape": ("landscape",),
    "points": ("landscape",),
    "reach": ("landscape",),
}
"""The quantities that a setting belongs to; without any of them it would have no effect."""

DEFAULTS: dict[str, Any] = {
    "top": 3,
    "lowest": 1,
    "tol": 1e-2,
    "trace_samples": 30,
    "probes": 4,
    "steps": 50,
    "norm_samples": 30,
    "landscape": "line",
    "points": 21,
    "reach": 1.0,
}
_OF_THE_DATA: dict[str, Any] = {"split": "train", "batch_size": 1024, "mode": "eval", "dtype": "float32"}
_LEAST = {
    "top": 1,
    "lowest": 0,
    "trace_samples": 4,
    "probes": 1,
    "steps": 1,
    "norm_samples": 2,
    "points": 3,
    "samples": 1,
    "batch_size": 1,
    "seed": 0,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured of every network, and how. None stands for the default.

    Raises:
        ValueError: for a value out of its range, or a setting that would have no effect.
    """

    what: tuple[Quantity, ...] = ("eigenvalues", "trace", "density")
    """What to measure, besides the loss and the gradient norm."""

    top: _Whole = None
    """How many of the largest eigenvalues; default: 3."""

    lowest: _Whole = None
    """How many of the lowest eigenvalues; default: 1."""

    tol: _Number = None
    """Residual at which an eigenpair is accepted, relative to the largest eigenvalue; default: 0.01."""

    trace_samples: _Whole = None
    """Products for the trace; default: 30."""

    probes: _Whole = None
    """Random vectors for the spectral density; default: 4."""

    steps: _Whole = None
    """Products for each of them; default: 50."""

    norm_samples: _Whole = None
    """Products for the Frobenius norm; default: 30."""

    landscape: Annotated[Slice | None, tyro.conf.arg(metavar="{line,plane}", help_behavior_hint="")] = None
    """The loss along the top eigenvector, or on the plane of the top two; default: line."""

    points: _Whole = None
    """Points of a slice along each axis; default: 21."""

    reach: _Number = None
    """How far a slice goes on both sides, as a distance between weights; default: 1."""

    samples: _Whole = None
    """Measure on this many samples, drawn by the seed; default: all."""

    split: Annotated[Split | None, tyro.conf.arg(metavar="{train,test}", help_behavior_hint="")] = None
    """Measure on training or on test data; default: train."""

    batch_size: _Whole = None
    """Samples that pass through the model at once; default: 1024."""

    mode: Annotated[Mode | None, tyro.conf.arg(metavar="{eval,train}", help_behavior_hint="")] = None
    """The mode of the model; default: eval."""

    dtype: Annotated[Precision | None, tyro.conf.arg(metavar="{float32,float64}", help_behavior_hint="")] = None
    """The precision; default: float32."""

    engine: Engine = "auto"
    """How products with the Hessian are computed; see the page on how curvature is measured."""

    max_memory: _Bytes = None
    """Cut batches so that a product takes no more memory than this, such as 2GB; default: batches as they are."""

    seed: int = 0
    """Of all random vectors, and of the samples drawn."""

    def __post_init__(self) -> None:
        self._check_what()
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
        if self.tol is not None and not 0 < self.tol < 1:
            raise ValueError(f"tol must be above 0 and below 1, not {self.tol}")
        if self.reach is not None and not 0 < self.reach < float("inf"):
            raise ValueError(f"reach must be a finite number above 0, not {self.reach}")
        if self.landscape == "plane" and (self.top is not None and self.top < 2):
            raise ValueError("landscape plane is spanned by two eigenvectors, so top must be at least 2")
        self.memory()

    def _check_what(self) -> None:
        for quantity in self.what:
            if quantity not in QUANTITIES:
                raise ValueError(f"there is no quantity {quantity!r}{nearest(quantity, QUANTITIES)}")
        if not self.what or len(set(self.what)) < len(self.what):
            raise ValueError("what must name one or more quantities, each of them once")
        for name, owners in USERS.items():
            if (value := getattr(self, name)) is not None and not set(owners) & set(self.what):
                raise ValueError(f"{name} {value} has no effect without {' or '.join(owners)} in what; leave it out")

    def settled(self) -> Plan:
        """The plan with the defaults of its quantities written out; what belongs to others stays None."""
        used = {name for name, owners in USERS.items() if set(owners) & set(self.what)}
        missing = {n: value for n, value in DEFAULTS.items() if n in used and getattr(self, n) is None}
        return replace(self, **missing)

    def on_data(self) -> Plan:
        """The plan with the defaults about data written out, for networks whose data we put together."""
        return replace(self, **{n: value for n, value in _OF_THE_DATA.items() if getattr(self, n) is None})

    def memory(self) -> float | None:
        """`max_memory` in bytes.

        Raises:
            ValueError: it is not a number of bytes.
        """
        return None if self.max_memory is None else _bytes(self.max_memory)

    def to_dict(self) -> dict[str, Any]:
        """The settings that have an effect as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if v is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        """The inverse of `to_dict`."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"a plan of measurements has no {name!r}{nearest(name, known)}")
        given: dict[str, Any] = values | {"what": tuple(values["what"])}
        return cls(**given)

    def key(self, *others: Any) -> str:
        """Eight letters and digits that stand for all settings, and for whatever else is given."""
        text = json.dumps([self.to_dict(), *others], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


_UNITS = {
    "": 1.0,
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
}


def _bytes(text: str) -> float:
    match = re.fullmatch(r"\s*([\d.]+(?:e\+?\d+)?)\s*([a-z]*)\s*", text.lower())
    if match and match[2] in _UNITS and match[1].count(".") < 2 and float(match[1]) > 0:
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError(f"max_memory must be a number of bytes above 0, such as 2GB, 500MB or 1e9, not {text!r}")
