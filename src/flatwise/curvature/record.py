"""How a number came about: enough to say whether two of them may be compared, and to measure again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from flatwise.objective import Circumstances, Objective, circumstances

Engine: TypeAlias = Literal["double", "forward", "differences", "one-sided"]


@dataclass(frozen=True, kw_only=True)
class Record(Circumstances):
    """The circumstances of a measurement of curvature; plain values all of them.

    Attributes:
        engine: how products are computed: "double", "forward", "differences" or "one-sided".
        reason: why so, and what was done differently from training.
        error: the estimated relative error of a product; 0 where products are exact up to rounding.
        step: the training step of the weights, if it was given.
        samples: in the mean, over all processes; what `weight` made of them, where that was given.
        processes: how many shared the data.
        parameters: the number of coordinates.
        mode: of the model: "eval", "train", or "current (train)" and the like.
        seed: of random numbers in the loss.
        draws: whether the loss draws any, as dropout does; every evaluation saw the same.
        checked: whether two evaluations were found to agree.
        dtype: of the weights, the coarsest one.
        autocast: the dtype under whose autocast the loss computes, whether the loss opens it or the caller; None without.
        device: of the weights, the first one.
        device_name: the model of the device; of a CPU, the instructions that torch's kernels use, such as "AVX2".
        tf32: whether float32 may be rounded to TF32 (on a CPU: bfloat16) in products of matrices or in convolutions.
        deterministic: whether only deterministic algorithms were allowed.
        torch: its version.
        subset: which samples, where they were drawn from the data by `Objective.subset`.
    """

    engine: Engine
    reason: str
    error: float


def record(objective: Objective, engine: Engine, reason: str, error: float, step: int | None) -> Record:
    """The record of an objective as it is measured now."""
    found = circumstances(objective, objective.preflight(), step)
    return Record(engine=engine, reason=reason, error=error, **found)
