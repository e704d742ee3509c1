"""What a slice of a loss is when it is done: places, losses, and how they came about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from flatwise.landscape.parabola import fitted
from flatwise.objective import Circumstances


@dataclass(frozen=True)
class Mark:
    """A place on a slice that has a name: the weights themselves, or a checkpoint with its own buffers.

    Attributes:
        label: its name.
        place: its coordinates, one on a line, two in a plane.
        loss: the loss exactly there, with the buffers that belong to these weights.
    """

    label: str
    place: tuple[float, ...]
    loss: float


@dataclass(frozen=True)
class Line:
    """The loss along one direction. A loss that is not finite stays as it is, in its place.

    Attributes:
        kind: "line" around some weights, or "path" from one checkpoint (0) to another (1).
        name: of the direction.
        at: what stands at 0, in words.
        lengths: the multiples of the direction, ascending.
        losses: the loss at each of them.
        norm: of the direction: a length times this is a distance between weights.
        marks: the weights themselves, or both checkpoints.
        buffers: what the model's buffers were at each place: "none" (there are none), "kept", "interpolated" or "recomputed".
        record: the circumstances: data, mode, precision, step.
    """

    kind: Literal["line", "path"]
    name: str
    at: str
    lengths: list[float]
    losses: list[float]
    norm: float
    marks: list[Mark]
    buffers: str
    record: Circumstances

    @property
    def barrier(self) -> float:
        """How far the loss of a path rises above the straight line between those at both ends, >= 0 (arXiv 1912.05671).

        Infinity where the loss in between is not finite.

        Raises:
            ValueError: this is no path, or it does not hold both ends.
        """
        if not self._is_whole_path:
            raise ValueError("a barrier is that of a path whose positions hold 0 and 1")
        start, end = (self.losses[self.lengths.index(t)] for t in (0.0, 1.0))
        inner = [loss - start - t * (end - start) for t, loss in zip(self.lengths, self.losses) if 0 <= t <= 1]
        return max(inner) if all(map(math.isfinite, inner)) else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite becomes None. With the parabola of a line, and the barrier of a path."""
        curve = fitted(self.lengths, self.losses) if self.kind == "line" else None
        height = self.barrier if self._is_whole_path else None
        return plain(asdict(self) | {"parabola": curve and asdict(curve), "barrier": height})

    @property
    def _is_whole_path(self) -> bool:
        return self.kind == "path" and {0.0, 1.0} <= set(self.lengths)


@dataclass(frozen=True)
class Plane:
    """The loss over a plane. A loss that is not finite stays as it is, in its place.

    Attributes:
        kind: "plane" around some weights, or "plane through three" checkpoints.
        names: of both directions.
        at: what stands at (0, 0), in words.
        xs: the multiples of the first direction, ascending.
        ys: those of the second.
        losses: the loss at `ys[i]`, `xs[j]` is `losses[i][j]`.
        norms: of both directions.
        cosine: of the angle between them: with any other than 0, the picture is a sheared one.
        marks: the weights themselves, or the checkpoints.
        buffers: what the model's buffers were at each place: "none" (there are none), "kept", "interpolated" or "recomputed".
        record: the circumstances: data, mode, precision, step.
    """

    kind: Literal["plane", "plane through three"]
    names: tuple[str, str]
    at: str
    xs: list[float]
    ys: list[float]
    losses: list[list[float]]
    norms: tuple[float, float]
    cosine: float
    marks: list[Mark]
    buffers: str
    record: Circumstances

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite becomes None."""
        return plain(asdict(self))


def plain(value: Any) -> Any:
    """The same in values that JSON knows."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
