"""Under which circumstances something was measured: enough to say whether two numbers may be compared, and to measure again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flatwise import vectors as V
from flatwise.objective.looks import Look, autocast

if TYPE_CHECKING:
    from flatwise.objective.objective import Objective
    from flatwise.objective.preflight import Preflight


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
        autocast: the dtype under whose autocast the loss computes, whether the loss opens it or the caller; None without.
        device: of the weights, the first one.
        device_name: the model of the device; of a CPU, the instructions that torch's kernels use, such as "AVX2".
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
    autocast: str | None = None
    device: str
    device_name: str = ""
    tf32: bool
    deterministic: bool
    torch: str
    subset: str | None = None


def circumstances(objective: Objective, seen: Look | Preflight, step: int | None) -> dict[str, Any]:
    """The fields of the `Circumstances` of an objective as it is measured now; `seen` is what its loss was seen to do."""
    weights = V.present(objective.weights)
    coarsest = max(weights, key=lambda t: torch.finfo(t.dtype).eps)
    return {
        "step": step,
        "samples": objective.samples,
        "processes": objective.processes,
        "parameters": V.size(weights),
        "mode": _mode(objective),
        "seed": objective.seed,
        "draws": seen.draws,
        "checked": objective.is_checked,
        "dtype": str(coarsest.dtype).removeprefix("torch."),
        "autocast": seen.autocast or autocast(objective.device),
        "device": str(objective.device),
        "device_name": _name(objective.device),
        "tf32": _rounds_float32(objective.device),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch": str(torch.__version__),
        "subset": objective.drawn,
    }


def _name(device: torch.device) -> str:
    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(named(device)) if named else device.type


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
