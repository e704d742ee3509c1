"""Slices around the weights that a model has: along any directions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flatwise import vectors as V
from flatwise.landscape.buffers import Buffering
from flatwise.landscape.checkpoints import Place
from flatwise.landscape.directions import checked_direction
from flatwise.landscape.grids import LENGTHS, PLANE, ascending
from flatwise.landscape.slices import Line, Mark, Plane
from flatwise.landscape.survey import Progress, survey
from flatwise.objective import Objective
from flatwise.vectors import Vector

HERE = "the weights"


def line(
    objective: Objective,
    direction: Vector,
    lengths: Iterable[float] | None = None,
    *,
    name: str = "direction",
    buffers: Buffering = "kept",
    statistics: Iterable[Any] | None = None,
    step: int | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> Line:
    """The loss along a direction from the weights of the model: one forward pass over the data for each length, and one at 0.

    The direction is taken as it is: along a unit vector, such as an eigenvector, lengths are distances; along a
    `random_direction` length 1 is as far as the weights are long. Weights and buffers are back afterwards, bitwise.

    Args:
        objective: the loss; also one that cannot be differentiated, such as the share of errors.
        direction: any Vector that is not zero.
        lengths: ascending multiples of the direction; by default 41 from -1 to 1.
        name: of the direction, for pictures.
        buffers: the running statistics of BatchNorm in evaluation mode: "kept" as they are, so that the slice belongs to the
            function whose Hessian is measured, or "recomputed" from data at each length, which doubles the cost.
        statistics: the batches from which they are recomputed; by default the data of the objective.
        step: the training step of the weights, for the record.
        check: whether to make sure, at the cost of two more passes, that two evaluations agree.
        progress: `progress(done, total)` is called after each pass.

    Raises:
        ValueError: an argument out of its range, a direction that does not fit, is zero or not finite.
        RuntimeError: two evaluations do not agree; the message names the cause.
    """
    along, xs = checked_direction(objective, direction, name), ascending("lengths", lengths, LENGTHS)
    how = survey(objective, buffers, statistics, False, step, check, progress)
    home = V.clone(objective.weights)
    places = (Place(V.add(home, along, x)) for x in xs)
    (here,), losses = how.losses([Place(home)], places, len(xs))
    mark = Mark(HERE, (0.0,), here)
    return Line("line", name, HERE, xs, losses, float(V.norm(along)), [mark], how.buffers, how.record)


def plane(
    objective: Objective,
    first: Vector,
    second: Vector,
    xs: Iterable[float] | None = None,
    ys: Iterable[float] | None = None,
    *,
    names: tuple[str, str] = ("first direction", "second direction"),
    buffers: Buffering = "kept",
    statistics: Iterable[Any] | None = None,
    step: int | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> Plane:
    """The loss over the plane of two directions from the weights of the model, one forward pass for each point of the grid.

    The directions are taken as they are. Two random ones are all but orthogonal; of others, `Plane.cosine` says how far
    the picture is sheared. Weights and buffers are back afterwards, bitwise.

    Args:
        objective: the loss; also one that cannot be differentiated, such as the share of errors.
        first: any Vector that is not zero.
        second: another, not parallel to it.
        xs: ascending multiples of the first; by default 25 from -1 to 1.
        ys: ascending multiples of the second; by default the same.
        names: of the directions, for pictures.
        buffers: "kept" or "recomputed", as for `line`.
        statistics: the batches from which they are recomputed; by default the data of the objective.
        step: the training step of the weights, for the record.
        check: whether to make sure, at the cost of two more passes, that two evaluations agree.
        progress: `progress(done, total)` is called after each pass.

    Raises:
        ValueError: an argument out of its range, a direction that does not fit, is zero or not finite, or parallel ones.
        RuntimeError: two evaluations do not agree; the message names the cause.
    """
    u, v = (checked_direction(objective, d, name) for d, name in zip((first, second), names, strict=True))
    cosine = float(V.cosine(u, v))
    if abs(cosine) > 1 - 1e-6:
        raise ValueError("the two directions are parallel, so they span no plane; use line")
    across, up = ascending("xs", xs, PLANE), ascending("ys", ys, PLANE)
    how = survey(objective, buffers, statistics, False, step, check, progress)
    home = V.clone(objective.weights)
    places = (Place(V.add(V.add(home, v, y), u, x)) for y in up for x in across)
    (here,), losses = how.losses([Place(home)], places, len(across) * len(up))
    norms, mark = (float(V.norm(u)), float(V.norm(v))), Mark(HERE, (0.0, 0.0), here)
    return Plane(
        "plane", names, HERE, across, up, rows(losses, len(across)), norms, cosine, [mark], how.buffers, how.record
    )


def rows(losses: list[float], width: int) -> list[list[float]]:
    """The losses of a grid, row by row."""
    return [losses[start : start + width] for start in range(0, len(losses), width)]
