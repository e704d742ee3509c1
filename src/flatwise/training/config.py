"""The settings of a run: frozen dataclasses that import nothing heavy, since the command line is built from them.

The docstrings under the fields are the help texts of `flatwise train` and `flatwise compare`.
"""

from __future__ import annotations

import json
import math
import operator
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import tyro

from flatwise.training import hyper

_Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
_Whole = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
_Text = Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")]
_Widths = Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="INT [INT ...]", help_behavior_hint="")]
_Words = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE [...]", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which method trains."""

    method: str = "sam"
    """The method by name: `flatwise list methods` shows them; or module:Class of your own."""


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """Hyper-parameters that many methods have, with a flag of their own; all others are words of `hyper`."""

    rho: _Number = None
    """Length of the displacement; default: the method's."""

    alpha: _Number = None
    """Weight of the eigenvector in Eigen-SAM's displacement, or what the method calls alpha; default: the method's."""

    every: _Whole = None
    """Steps between two refreshes of an eigenvector, or two dear steps; default: the method's."""

    iterations: _Whole = None
    """Hessian-vector products per refresh; default: the method's."""


SHORTCUTS = tuple(f.name for f in fields(Shortcuts))


@dataclass(frozen=True, kw_only=True)
class Settings(Shortcuts):
    """Everything about a run but the method's name and the seed: what the runs of a comparison share.

    Raises:
        ValueError: for a value out of its range, or a setting that would have no effect.
    """

    hyper: _Words = ()
    """Any hyper-parameters: samples=3 for methods that have it, tsam.samples=3 for one; `flatwise list methods` shows them."""

    rho_schedule: Literal["constant", "linear", "cosine", "learning-rate"] = "constant"
    """rho over the steps: constant, to 0 in a straight line or half a cosine, or in proportion to the learning rate."""

    parts: _Whole = None
    """m-sharpness: the method's dialogue on each of so many parts of the batch, the directions averaged."""

    data: str = "digits"
    """The data by name: `flatwise list data` shows them; or folder:PATH, or module:function of your own."""

    data_root: _Text = None
    """Where downloaded data lies; default: $FLATWISE_DATA, else a cache folder."""

    subset: _Whole = None
    """Train on this many samples, drawn by the seed; default: all."""

    label_noise: float = 0.0
    """Share of training labels replaced by random ones, 0 to 1."""

    validation: float = 0.0
    """Share of the training samples held out by the seed, never trained on, label noise included; 0 to below 1."""

    augment: bool = False
    """Random crops and flips while training."""

    preprocess: Literal["standard", "centred"] = "standard"
    """Inputs as suits the data, or pixels / 256 less the mean of each pixel over the training samples."""

    model: str = "mlp"
    """The model by name: `flatwise list models` shows them; or module:function of your own."""

    widths: _Widths = None
    """Hidden widths of the model; default: the model's."""

    init: Literal["default", "glorot"] = "default"
    """Initial weights: the model's own, or Glorot normal with zero biases."""

    pretrained: _Text = None
    """Start from trained weights, all but the last layer: imagenet (for vit-b-16), or the folder of a run."""

    loss: Literal["cross-entropy", "squared-error"] = "cross-entropy"
    """The loss; the squared error is the mean over all entries of (output - one-hot target)^2."""

    label_smoothing: float = 0.0
    """Share of each target that the cross-entropy spreads over all classes, in the measured losses too; 0 to below 1."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The base optimizer."""

    batch_size: int = 64
    """Samples per step; 0 is the full batch."""

    epochs: _Whole = None
    """Passes over the training data; default: 40."""

    steps: _Whole = None
    """Number of steps, instead of epochs."""

    evaluations: _Whole = None
    """A budget of gradient evaluations, instead of epochs: as many steps as it pays for at the method's cost."""

    lr: _Number = None
    """Learning rate; default: 0.05 for sgd, 0.001 for adamw."""

    momentum: _Number = None
    """Momentum of sgd; default: 0.9."""

    weight_decay: float = 5e-4
    """Weight decay of the base optimizer."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """The learning rate over the steps."""

    probe_every: _Whole = None
    """Steps between two measurements; 0: only at both ends; default: an epoch, or a hundredth of a full-batch run."""

    probe_samples: _Whole = None
    """Measure on this many training samples, drawn by the seed; default: all."""

    curvature: bool = True
    """Measure the Hessian: its top eigenpair at each measurement, its trace at the end."""

    eigen_tol: float = 1e-2
    """Relative residual at which a top eigenpair is accepted."""

    trace_samples: int = 20
    """Hessian-vector products spent on the trace at the end; 0: no trace."""

    checkpoint_every: _Whole = None
    """Steps between two checkpoints; default: a tenth of the run."""

    keep_every: _Whole = None
    """Keep the initial weights, checkpoints of every so many steps and the last, to measure them; default: the last two."""

    threads: int = 1
    """Threads of one run on the CPU."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the training passes (bfloat16: autocast); measurements are always in float32."""

    channels_last: bool = False
    """Lay images out channels last."""

    compile: bool = False
    """Run the training passes through torch.compile; measurements run the network as written."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_ranges(self)
        hyper.check(self.hyper, {name for name in SHORTCUTS if getattr(self, name) is not None})
        _check_length(self)
        _check_trace(self)
        if self.label_smoothing and self.loss != "cross-entropy":
            raise ValueError(
                f"label_smoothing {self.label_smoothing} has no effect with loss {self.loss}; leave it out"
            )
        if self.optimizer == "adamw" and self.momentum is not None:
            raise ValueError(f"momentum {self.momentum} has no effect with optimizer adamw; leave it out")

    def to_dict(self) -> dict[str, Any]:
        """The settings as a flat dict of JSON values."""
        return {name: list(cast("tuple[Any]", v)) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings, Chosen):
    """The settings of one run."""

    seed: int = 0
    """Seed of everything random: data, initial weights, order, method; below 2**32."""

    def command(self, out: str | Path) -> str:
        """The command line that makes this run again in the folder `out`."""
        words = ["flatwise", "train"]
        for f in fields(self):
            if (value := getattr(self, f.name)) != f.default or f.name == "method":
                words += _flag(f.name, value)
        return shlex.join([*words, "--out", str(out)])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the settings") -> TrainConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: for an unknown key (the nearest one is named) or a bad value; `source` says where it stood.
        """
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"{source}: there is no setting {key!r}{nearest(key, known)}")
        return cls(**{name: _frozen(value) for name, value in values.items()})

    @classmethod
    def from_file(cls, path: str | Path) -> TrainConfig:
        """Settings from a JSON file with some of the fields; the others keep their defaults.

        Raises:
            ValueError: when the file is no JSON object, or as in `from_dict`.
            FileNotFoundError: when there is none.
        """
        try:
            values: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not readable as JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds no JSON object of settings")
        return cls.from_dict(cast("dict[str, Any]", values), str(path))


def _flag(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", *(map(str, cast("tuple[Any]", value)) if isinstance(value, tuple) else [str(value)])]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known name, or all of them."""
    choices = list(known)
    if not choices:
        return "; there is none"
    close = get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(choices))}"


# --- what each field may be -------------------------------------------------------------------------------------------

_LEAST = {
    "subset": 1,
    "label_noise": 0,
    "label_smoothing": 0,
    "validation": 0,
    "parts": 2,
    "batch_size": 0,
    "epochs": 1,
    "steps": 1,
    "evaluations": 1,
    "trace_samples": 0,
    "momentum": 0,
    "weight_decay": 0,
    "probe_every": 0,
    "probe_samples": 1,
    "checkpoint_every": 1,
    "keep_every": 1,
    "threads": 1,
    "seed": 0,
}
_LIMITS: tuple[tuple[dict[str, int], Callable[[float, float], bool], str], ...] = (
    (_LEAST, operator.ge, "at least"),
    ({"label_noise": 1}, operator.le, "at most"),
    ({"momentum": 1, "eigen_tol": 1, "validation": 1, "label_smoothing": 1}, operator.lt, "below"),
    ({"seed": 2**32}, operator.lt, "below"),  # torch's generator on the CPU drops what is above: two seeds, one run
    ({"lr": 0, "eigen_tol": 0}, operator.gt, "above"),
)

_hints = cache(get_type_hints)


def _check_length(settings: Settings) -> None:
    given = [name for name in ("evaluations", "steps", "epochs") if getattr(settings, name) is not None]
    for name in given[1:]:
        raise ValueError(
            f"{name} {getattr(settings, name)} has no effect when {given[0]} is given; leave one of them out"
        )


def _check_trace(settings: Settings) -> None:
    if settings.trace_samples in (1, 2, 3):
        raise ValueError(f"trace_samples must be 0 for no trace, or at least 4, not {settings.trace_samples}")


def _check_types(settings: Settings) -> None:
    for name, hint in _hints(type(settings)).items():
        value = getattr(settings, name)
        if not any(_fits(value, kind) for kind in _kinds(hint)):
            wanted = " or ".join(_in_words(kind) for kind in _kinds(hint) if kind is not NoneType)
            raise ValueError(f"{name} must be {wanted}, not {value!r}")


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is UnionType else (hint,)


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return type(value) is tuple and _ENTRIES[get_args(kind)[0]](cast("tuple[Any, ...]", value))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _are_widths(values: tuple[Any, ...]) -> bool:
    return len(values) > 0 and all(type(w) is int and w > 0 for w in values)


def _are_words(values: tuple[Any, ...]) -> bool:
    return all(type(w) is str for w in values)


_ENTRIES: dict[type, Callable[[tuple[Any, ...]], bool]] = {int: _are_widths, str: _are_words}
"""What a tuple may hold, by the type of its entries."""


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of whole numbers above 0" if get_args(kind)[0] is int else "a list of words"
    return {float: "a finite number", int: "a whole number", bool: "true or false", str: "a name"}[kind]


def _check_ranges(settings: Settings) -> None:
    for limits, allowed, words in _LIMITS:
        for name, limit in limits.items():
            value = getattr(settings, name, None)
            if value is not None and not allowed(value, limit):
                raise ValueError(f"{name} must be {words} {limit}, not {value}")


def _frozen(value: Any) -> Any:
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else value
