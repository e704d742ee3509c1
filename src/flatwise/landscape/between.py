"""Slices between checkpoints: the straight path from one to another, and the plane through three."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flatwise import vectors as V
from flatwise.landscape.around import rows
from flatwise.landscape.buffers import Buffering, blended
from flatwise.landscape.checkpoints import Checkpoint, Place, place_of
from flatwise.landscape.grids import POSITIONS, ascending, spanning
from flatwise.landscape.slices import Line, Mark, Plane
from flatwise.landscape.survey import Progress, Survey, survey
from flatwise.objective import Objective
from flatwise.vectors import Vector


def path(
    objective: Objective,
    a: Checkpoint,
    b: Checkpoint,
    positions: Iterable[float] | None = None,
    *,
    names: tuple[str, str] = ("a", "b"),
    buffers: Buffering | None = None,
    statistics: Iterable[Any] | None = None,
    step: int | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> Line:
    """The loss along the straight line from one checkpoint to another, and beyond both: one forward pass for each position.

    At 0 and 1 the weights are those of the checkpoints, bitwise; the model's own weights and buffers are back afterwards.
    `Line.marks` holds the losses of the checkpoints with the buffers they were saved with, `Line.barrier` how far the loss
    rises in between.

    Args:
        objective: the loss; also one that cannot be differentiated, such as the share of errors.
        a: a state dict of the model, or a Vector of weights, where None means as in the model.
        b: another.
        positions: ascending, 0 is `a`, 1 is `b`; by default 31 from -0.25 to 1.25.
        names: of the checkpoints, for pictures.
        buffers: the running statistics of BatchNorm in evaluation mode: "recomputed" from data at each position, which doubles
            the cost; "interpolated" between those of the checkpoints, which in between belong to no network and may make a
            barrier of their own; or "kept" as in the model. By default recomputed where a layer uses such statistics, otherwise
            interpolated or, between Vectors, kept.
        statistics: the batches from which they are recomputed, such as training data where the loss is that of test data; by
            default the data of the objective.
        step: the training step of the weights, for the record.
        check: whether to make sure, at the cost of two more passes, that two evaluations agree.
        progress: `progress(done, total)` is called after each pass.

    Raises:
        TypeError: a checkpoint of another kind.
        ValueError: an argument out of its range, a checkpoint that does not fit to the model, or two that are the same.
        RuntimeError: two evaluations do not agree; the message names the cause.
    """
    ends = [place_of(objective, given, name) for given, name in zip((a, b), names, strict=True)]
    norm = float(V.norm(V.add(ends[1].weights, ends[0].weights, -1.0)))
    if norm == 0:
        raise ValueError(f"the checkpoints {names[0]!r} and {names[1]!r} have the same weights, so there is no path")
    ts = ascending("positions", positions, POSITIONS)
    how = survey(objective, buffers, statistics, _with_buffers(ends), step, check, progress)
    start, end = (place.weights for place in ends)
    places = (Place(V.add(V.scale(start, 1 - t), end, t), _buffers_between(how, ends, (1 - t, t))) for t in ts)
    own, losses = how.losses(ends, places, len(ts))
    marks = [Mark(name, (float(t),), loss) for t, (name, loss) in enumerate(zip(names, own, strict=True))]
    title, at = f"from {names[0]} to {names[1]}", names[0]
    return Line("path", title, at, ts, losses, norm, marks, how.buffers, how.record)


def plane_through(
    objective: Objective,
    a: Checkpoint,
    b: Checkpoint,
    c: Checkpoint,
    *,
    points: int = 25,
    margin: float = 0.25,
    names: tuple[str, str, str] = ("a", "b", "c"),
    buffers: Buffering | None = None,
    statistics: Iterable[Any] | None = None,
    step: int | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> Plane:
    """The loss over the plane through three checkpoints, one forward pass for each point of the grid (arXiv 1802.10026).

    `a` is at (0, 0), `b` on the first axis, `c` above it. Axes are orthogonal, coordinates are distances between weights,
    so angles and lengths in the picture are true. `Plane.marks` holds places and losses of the checkpoints themselves.

    Args:
        objective: the loss; also one that cannot be differentiated, such as the share of errors.
        a: a state dict of the model, or a Vector of weights, where None means as in the model.
        b: another.
        c: a third, not on the line through both.
        points: along each axis, >= 2.
        margin: how far the grid goes beyond the checkpoints, >= 0, as a share of their range.
        names: of the checkpoints, for pictures.
        buffers: "recomputed", "interpolated" or "kept", as for `path`. Beyond the triangle, interpolated ones are those of its
            border.
        statistics: the batches from which they are recomputed; by default the data of the objective.
        step: the training step of the weights, for the record.
        check: whether to make sure, at the cost of two more passes, that two evaluations agree.
        progress: `progress(done, total)` is called after each pass.

    Raises:
        TypeError: a checkpoint of another kind.
        ValueError: an argument out of its range, a checkpoint that does not fit to the model, or three on one line.
        RuntimeError: two evaluations do not agree; the message names the cause.
    """
    if points < 2 or not margin >= 0:
        raise ValueError(f"points must be at least 2 and margin at least 0, got {points} and {margin}")
    ends = [place_of(objective, given, name) for given, name in zip((a, b, c), names, strict=True)]
    triangle = _triangle(*(place.weights for place in ends))
    how = survey(objective, buffers, statistics, _with_buffers(ends), step, check, progress)
    xs, ys = (spanning([corner[i] for corner in triangle.corners], margin, points) for i in (0, 1))
    places = (Place(triangle.weights(x, y), _buffers_between(how, ends, triangle.shares(x, y))) for y in ys for x in xs)
    own, losses = how.losses(ends, places, points**2)
    marks = [Mark(name, corner, loss) for name, corner, loss in zip(names, triangle.corners, own, strict=True)]
    titles = (f"from {names[0]} to {names[1]}", f"away from there, to {names[2]}")
    grid = rows(losses, points)
    return Plane("plane through three", titles, names[0], xs, ys, grid, (1.0, 1.0), 0.0, marks, how.buffers, how.record)


def _with_buffers(ends: Sequence[Place]) -> bool:
    return all(place.buffers is not None for place in ends)


def _buffers_between(how: Survey, ends: Sequence[Place], shares: Sequence[float]) -> dict[str, Any] | None:
    known = [place.buffers for place in ends if place.buffers is not None]
    return blended(known, shares) if len(known) == len(ends) and how.buffers != "kept" else None


@dataclass(frozen=True)
class _Triangle:
    """Three places in a plane: the first corner, and orthonormal axes from there; `corners` are the coordinates of all three."""

    origin: Vector
    right: Vector
    up: Vector
    corners: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

    def weights(self, x: float, y: float) -> Vector:
        return V.add(V.add(self.origin, self.right, x), self.up, y)

    def shares(self, x: float, y: float) -> tuple[float, float, float]:
        """The barycentric coordinates of a point: which combination of the corners it is."""
        _, (base, _), (foot, height) = self.corners
        third = y / height
        second = (x - foot * third) / base
        return 1 - second - third, second, third


def _triangle(a: Vector, b: Vector, c: Vector) -> _Triangle:
    side, other = V.add(b, a, -1.0), V.add(c, a, -1.0)
    base = float(V.norm(side))
    right = V.unit(side)
    foot = float(V.dot(other, right))
    rest = V.project_out(other, right)
    height = float(V.norm(rest))
    if not base or height <= 1e-6 * float(V.norm(other)) or not height:
        raise ValueError("the three checkpoints lie on one line, so there is no plane through them; use path")
    return _Triangle(a, right, V.unit(rest), ((0.0, 0.0), (base, 0.0), (foot, height)))
