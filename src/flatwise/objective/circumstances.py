"""Under which circumstances something was measured: enough to say whether two numbers may be compared, and to measure again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flatwise import vectors as V

if TYPE_CHECKING:
    from flatwise.objective.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What an objective was as it was measured; plain values all of them.

    Attributes:
        step: the training step of the weights, if it was given.
        samples: in the mean, over all processes; what `weight` made of them, where that was given.
        processes: how many shared the data.
        parameters: the number of coordinates.
        mode: of the model: "eval", "train", or "current (train)" and the like.
        seed: of random numbers in the loss.
        draws: whether the loss draws any, as dropout does; every evaluation saw the same.
        checked: whether two evaluations were found to agree.
        dtype: of the weights, the coarsest one.
        device: of the weights, the first one.
        tf32: whether float32 may be rounded to TF32 (on a CPU: bfloat16) in products of matrices or in convolutions.
        deterministic: whether only deterministic algorithms were allowed.
        torch: its version.
        subset: which samples, where they were drawn from the data by `Objective.subset`.
    """

    step: int | None
    samples: float
    processes: int
    parameters: int
    mode: str
    seed: int
    draws: bool
    checked: bool
    dtype: str
    device: str
    tf32: bool
    deterministic: bool
    torch: str
    subset: str | None = None


def circumstances(objective: Objective, draws: bool, step: int | None) -> dict[str, Any]:
    """The fields of the `Circumstances` of an objective as it is measured now."""
    weights = V.present(objective.weights)
    coarsest = max(weights, key=lambda t: torch.finfo(t.dtype).eps)
    return {
        "step": step,
        "samples": objective.samples,
        "processes": objective.processes,
        "parameters": V.size(weights),
        "mode": _mode(objective),
        "seed": objective.seed,
        "draws": draws,
        "checked": objective.is_checked,
        "dtype": str(coarsest.dtype).removeprefix("torch."),
        "device": str(objective.device),
        "tf32": _rounds_float32(objective.device),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch": str(torch.__version__),
        "subset": objective.drawn,
    }


def _rounds_float32(device: torch.device) -> bool:
    """By the settings of each backend: the older ones, which set these, cannot be read once one of these was set."""
    backends: Any = torch.backends
    library = (
        (backends.cudnn, backends.cuda.matmul) if device.type == "cuda" else (backends.mkldnn, backends.mkldnn.matmul)
    )
    whole, products = library
    return any(part.fp32_precision in ("tf32", "bf16") for part in (products, whole.conv, whole.rnn))


def _mode(objective: Objective) -> str:
    if objective.mode != "current":
        return objective.mode
    flags = {m.training for m in objective.model.modules()}
    return f"current ({'mixed' if len(flags) > 1 else 'train' if True in flags else 'eval'})"
