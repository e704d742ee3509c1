"""The edge of stability of any method, found numerically from its own dialogue, by linearising it on a quadratic.

The loss is curved along one eigenvector and slopes elsewhere, such that the gradient has a given norm. What one period of
steps does to the component along the eigenvector, and to what the method and the base optimizer remember of it, is a
small matrix. Its eigenvalues are the multipliers; the edge is the smallest curvature at which one of them leaves the unit
circle. All of this is derived here, not published; where an edge is published, it comes out the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from flatwise.methods import Dialogue
from flatwise.theory.quadratic import Memory, Surroundings, Training, drawn, draws_of, period_of

Leaving: TypeAlias = Literal["turning back", "running away", "spiralling", ""]

SMALL = 1e-4
"""The alignment that stands for none: it changes multipliers by about its square."""
LOWEST, HIGHEST, GRID, FINER = 1e-6, 50.0, 40, 4
"""Where edges are looked for, in multiples of gradient descent's, and at how many places, before bisection. At so many times
more where steps differ: then what grows at one curvature may shrink again at a somewhat larger one."""
FLOOR = 1e-18
"""Below LOWEST an edge is looked for down to this, in the same multiples: small gradients bring SAM's there."""
OUTSIDE = 1 + 1e-10
"""A modulus above this is outside the unit circle: 1 itself is that of a component that a method leaves alone."""
UNEVEN = 1e-3
"""By how much the matrix may change with the size of the component, and still count as that of a linear map."""
GROUPS = 8
"""Of draws, for a standard error."""

_RANGES = {
    "lr": ("> 0", lambda x: x > 0),
    "gradient_norm": ("> 0", lambda x: x > 0),
    "momentum": (">= 0 and < 1", lambda x: 0 <= x < 1),
    "alignment": (">= 0 and < 1", lambda x: 0 <= x < 1),
    "weight": (">= 0", lambda x: x >= 0),
    "size": (">= 1", lambda x: x >= 1),
}

_NO_MAP = (
    "the step of {} along the eigenvector is not in proportion to the component there, however small that is: it has no "
    "multiplier, and no edge, but for a given size of it, by alignment"
)


@dataclass(frozen=True)
class MethodEdge:
    """Where a method's steps no longer shrink what lies along an eigenvector.

    Attributes:
        curvature: the smallest eigenvalue at which they do not; infinite where there is none, 0 where that is so at any.
            Looked for down to 1e-18 of gradient descent's, an edge where steps run away down to 1e-6 of it.
        multiplier: what the component is multiplied by in a period of steps there; NaN where there is no edge.
        period: steps after which the method does the same again.
        error: the standard error of the curvature, over draws; 0 where nothing is drawn, NaN of too few draws.
    """

    curvature: float
    multiplier: complex
    period: int
    error: float = 0.0

    @property
    def leaving(self) -> Leaving:
        """How: "turning back" (multiplier -1), "running away" (1), or "spiralling"; empty where there is no edge."""
        if math.isinf(self.curvature):
            return ""
        if abs(self.multiplier.imag) > UNEVEN:
            return "spiralling"
        return "turning back" if self.multiplier.real < 0 else "running away"


def method_edge(
    method: Dialogue,
    lr: float,
    gradient_norm: float,
    momentum: float = 0.0,
    *,
    nesterov: bool = False,
    alignment: float = 0.0,
    weight: float = 1.0,
    size: int = 1,
    draws: int = 1,
) -> MethodEdge:
    """The edge of a method: the smallest curvature along an eigenvector at which its steps do not shrink the component there.

    For SGD, SAM, USAM and Eigen-SAM it is what the formulas say, `sam_edge` and so on. Methods that track an eigenvector
    are given this one, exactly. With an alignment the component has the size that belongs to it, and goes back and forth
    with the memory of it; what counts is by what a step multiplies it: at the edge the steps go on with just this size.

    Args:
        method: with its hyper-parameters.
        lr: the learning rate of SGD, > 0.
        gradient_norm: of the gradient at the weights, > 0.
        momentum: of SGD, in [0, 1).
        nesterov: whether that is Nesterov's.
        alignment: the absolute cosine of the gradient with the eigenvector, in [0, 1); 0 is the limit of a small component.
        weight: the size of each weight, >= 0, for methods whose displacement goes by it (ASAM).
        size: the number of weights elsewhere, >= 1, for methods that displace at random.
        draws: for those, how many draws the multipliers are means over, >= 1; from 16 on with a standard error.

    Raises:
        TypeError: it is no method of this package or derived from `Dialogue`, or an argument is no number.
        ValueError: an argument is out of its range, or the method has no linear map; the message says why.
    """
    about = Surroundings(lr, gradient_norm, momentum, nesterov, alignment, weight, size)
    _check(method, about, draws)
    found = [_lowest(group, about) for group in _groups(method, draws)]
    values = torch.tensor([edge.curvature for edge in found], dtype=torch.float64)
    alone = math.nan if draws_of(method) else 0.0
    error = float(values.std() / math.sqrt(len(found))) if len(found) > 1 else alone
    return replace(found[0], curvature=float(values.mean()), error=error)


# --- looking for the edge ---------------------------------------------------------------------------------------------


def _lowest(methods: Sequence[Dialogue], about: Surroundings) -> MethodEdge:
    """Upwards from low curvatures until a multiplier is outside the unit circle, downwards where it is from the start; then
    bisection."""
    start, scale = Training(methods[0], 1.0, about).settled(), 2 / about.lr
    _check_linear(methods[0], about, start)

    def leading(curvature: float) -> complex:
        return _leading_multiplier(methods, curvature, about, start)

    period, below = period_of(methods[0]), 0.0
    for above in _places(GRID if period == 1 else FINER * GRID, scale):
        if abs(leading(above)) > OUTSIDE:
            below, above = (below, above) if below else _downwards(leading, above, scale)
            edge = _bisected(leading, below, above) if below else 0.0
            return MethodEdge(edge, leading(edge or above), period)
        below = above
    return MethodEdge(math.inf, complex(math.nan), period)


def _places(number: int, scale: float) -> list[float]:
    lowest, highest = math.log10(LOWEST * scale), math.log10(HIGHEST * scale)
    return torch.logspace(lowest, highest, number, dtype=torch.float64).tolist()


def _downwards(leading: Callable[[float], complex], above: float, scale: float) -> tuple[float, float]:
    """The first place below that is inside the unit circle, and one ten times higher; 0 where there is none down to the floor.

    A multiplier that comes to 1 from outside is not inside: such growth fades with the curvature, and is there at any.
    """
    while above > FLOOR * scale and abs(leading(above) - 1) > UNEVEN:
        if abs(leading(above / 10)) <= OUTSIDE:
            return above / 10, above
        above /= 10
    return 0.0, above


def _bisected(leading: Callable[[float], complex], below: float, above: float) -> float:
    while above - below > 1e-10 * above:
        middle = (below + above) / 2
        below, above = (below, middle) if abs(leading(middle)) > OUTSIDE else (middle, above)
    return above


def _leading_multiplier(methods: Sequence[Dialogue], curvature: float, about: Surroundings, start: Memory) -> complex:
    """The one of largest modulus, in the mean over methods that differ in what they draw; with an alignment the only one."""
    trainings = [Training(method, curvature, about) for method in methods]
    if about.alignment:
        return complex(sum(training.swung(start) for training in trainings) / len(trainings))
    mean = torch.stack([_matrix(training, start, SMALL) for training in trainings]).mean(0)
    return max(torch.linalg.eigvals(mean).tolist(), key=abs)


def _matrix(training: Training, start: Memory, size: float) -> Tensor:
    """How each component after a period hangs on each one before, by central differences of that size."""
    columns: list[Tensor] = []
    for which in range(len(start.vectors())):
        by = size * training.about.gradient_norm / (training.curvature if which == 0 else 1.0)
        up, down = (training.after_a_period(start.nudged(which, sign * by)).along() for sign in (1.0, -1.0))
        columns.append((up - down) / (2 * by))
    return torch.stack(columns, dim=1)


def _groups(method: Dialogue, draws: int) -> list[list[Dialogue]]:
    """Methods whose matrices are averaged, in groups that each give an edge."""
    if draws == 1:
        return [[method]]
    methods = [drawn(method, seed) for seed in range(draws)]
    return [methods[i::GROUPS] for i in range(GROUPS)] if draws >= 2 * GROUPS else [methods]


# --- what has no edge of this kind ------------------------------------------------------------------------------------


def _check(method: Dialogue, about: Surroundings, draws: int) -> None:
    if not isinstance(method, Dialogue):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"method must be one of flatwise.methods, such as SAM(rho=0.05), got {method!r}")
    for field in fields(about):
        words, inside = _RANGES.get(field.name, ("", lambda x: True))
        if not hasattr(value := getattr(about, field.name), "__float__"):
            raise TypeError(f"{field.name} must be a number, got {value!r}")
        if not (math.isfinite(value) and inside(value)):
            raise ValueError(f"{field.name} must be finite and {words}, got {value}")
    if about.nesterov and not about.momentum:
        raise ValueError("nesterov has no effect without momentum; leave it out")
    if draws < 1 or (draws > 1 and not draws_of(method)):
        raise ValueError(f"draws must be at least 1, and 1 for a method that draws nothing, got {draws}")
    _check_method(method, type(method).__name__, about)


def _check_method(method: Dialogue, name: str, about: Surroundings) -> None:
    if method.adaptive:
        raise ValueError(f"{name} decides by the data what it does, which is no linear map: take the method it then is")
    if "loss" in method.needs:
        raise ValueError(f"{name} goes by the value of the loss, which is open on a slope: it has no such edge")
    if "momentum" in method.needs and not about.momentum:
        raise ValueError(f"{name} displaces the weights along the momentum, which must be above 0 for that")
    if about.alignment and (period := period_of(method)) > 1:
        raise ValueError(f"the steps of {name} differ, with a period of {period}: leave alignment out")


def _check_linear(method: Dialogue, about: Surroundings, start: Memory) -> None:
    """Whether small components are multiplied by the same, whatever their size."""
    if about.alignment:
        return
    training = Training(method, 0.5 / about.lr, about)
    whole, half = (_matrix(training, start, size) for size in (SMALL, SMALL / 2))
    if float((whole - half).abs().max()) > UNEVEN * max(1.0, float(half.abs().max())):
        raise ValueError(_NO_MAP.format(type(method).__name__))
