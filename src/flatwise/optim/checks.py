"""What a user passes in, checked at the first moment it can be known."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import OptState
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer

from flatwise import vectors as V
from flatwise.methods import Method
from flatwise.methods.checks import non_negative
from flatwise.optim import messages, views


def base(optimizer: object, wrapper: type) -> None:
    """An instance of a torch optimizer that steps along `.grad`, with parameters that can be displaced."""
    if isinstance(optimizer, type):
        raise TypeError(
            f"base_optimizer must be an instance, got the class {optimizer.__name__}: "
            f"pass {optimizer.__name__}(model.parameters(), lr=...)"
        )
    if isinstance(optimizer, wrapper):
        raise TypeError("base_optimizer is a SharpnessAware already; pass the optimizer that it wraps")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"base_optimizer must be a torch.optim.Optimizer, got a {type(optimizer).__name__}: make one first, "
            "such as SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), SAM(rho=0.05), model=model)"
        )
    if type(optimizer).__module__.startswith("accelerate."):
        raise TypeError(
            "base_optimizer is what accelerator.prepare returned: wrap the plain optimizer, then prepare the SharpnessAware"
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "LBFGS evaluates the loss itself and cannot step along a given direction; use another base optimizer"
        )
    if getattr(optimizer, "is_second_order", False):
        raise ValueError(
            f"{type(optimizer).__name__} differentiates gradients again, whose graph is gone after a pass; "
            "use another base optimizer"
        )
    if "rho" in optimizer.defaults:
        raise ValueError(
            f"{type(optimizer).__name__} keeps a rho of its own in its parameter groups, where the norm of their displacement "
            "belongs; use another base optimizer"
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(
            "with maximize=True the base optimizer climbs, and SAM would look for its loss uphill, not downhill: "
            "leave maximize out and train on the negative of what is to be maximised"
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    _parameters(parameters)
    if not any(p.requires_grad for p in parameters):
        raise ValueError("no parameter of base_optimizer requires a gradient; there is nothing to train")


def group(value: dict[str, Any]) -> None:
    """A group to be added. Its parameters are made a list: an iterator could be read only once."""
    if isinstance(value["params"], Iterator):
        value["params"] = list(cast(Iterator[Any], value["params"]))
    found: list[Any] = [value["params"]] if isinstance(value["params"], Tensor) else list(value["params"])
    _parameters([p[1] if isinstance(p, tuple) else p for p in found])


def _parameters(parameters: Sequence[Tensor]) -> None:
    """Parameters with values that can be moved along a real direction."""
    if any(is_lazy(p) for p in parameters):
        raise ValueError(messages.LAZY)
    if any(p.is_meta for p in parameters):
        raise ValueError(messages.META)
    if any(p.is_complex() for p in parameters):
        raise ValueError("complex parameters are not supported: hold real and imaginary parts in two real parameters")


def method(value: object) -> None:
    """An instance with `init` and `passes`."""
    if isinstance(value, type):
        raise TypeError(f"method must be an instance, got the class {value.__name__}: pass {value.__name__}()")
    if not (hasattr(value, "passes") and hasattr(value, "init")):
        raise TypeError(
            f"method must be one of flatwise.methods, got a {type(value).__name__}: "
            "SharpnessAware(base_optimizer, SAM(rho=0.05), model=model)"
        )


def model(value: object) -> None:
    """A module, or None."""
    if value is not None and not isinstance(value, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got a {type(value).__name__}; for several modules pass nn.ModuleList([a, b])"
        )
    if value is not None and any(is_lazy(t) for t in (*value.parameters(), *value.buffers())):
        raise ValueError(messages.LAZY)


def lacking(model: nn.Module, parameters: Sequence[Tensor]) -> int:
    """How many of the parameters are not the model's."""
    known = {id(p) for p in model.parameters()}
    return sum(id(p) not in known for p in parameters)


def warn_if_lacking(model: nn.Module | None, parameters: Sequence[Tensor], stacklevel: int) -> None:
    """Say that the model is another one, or not all of it. No error: a loss may have parameters, too."""
    if model is not None and (count := lacking(model, parameters)):
        found = {"count": count, "all": len(parameters), "kind": type(model).__name__}
        warnings.warn(messages.NOT_IN_MODEL.format(**found), UserWarning, stacklevel=stacklevel + 1)


def together(method: Method, base: Optimizer, model: nn.Module | None, apart: object, factor: object) -> None:
    """The method goes with all else that the optimizer has: its base, its model, how ranks are displaced, its schedule of rho."""
    perturb(apart, method)
    ratios(base.param_groups, method)
    schedule(factor, method)
    needs(method, base, model)


def perturb(value: object, method: Method) -> None:
    """'global', or 'local' or a mesh with a method whose evaluations are the same in number on every rank."""
    if isinstance(value, str) and value == "global":
        return
    is_mesh = hasattr(value, "get_group") and getattr(value, "ndim", 0) == 1
    if not (is_mesh or (isinstance(value, str) and value == "local")):
        raise ValueError(f"perturb must be 'global', 'local' or a DeviceMesh of one dimension, got {value!r}")
    if method.adaptive:
        raise ValueError(
            f"perturb={value!r} cannot be had with an adaptive method: replicas would ask for different evaluations"
        )


def each(value: object, parts: int | None, method: Method) -> None:
    """A dialogue per part needs parts, and as many evaluations in each."""
    if not isinstance(value, bool):
        raise TypeError(f"each must be True or False, got {value!r}")
    if value and parts is None:
        raise ValueError("each=True needs parts=m, the number of parts into which the batch is split")
    if value and method.adaptive:
        raise ValueError("each=True cannot be had with an adaptive method: parts would ask for different evaluations")


def ratios(groups: Sequence[dict[str, Any]], method: Method) -> list[float]:
    """For each parameter, its group's rho as a multiple of the method's."""
    rho = getattr(method, "rho", None)
    found: list[float] = []
    for group in groups:
        parameters = group["params"]
        size = 1 if isinstance(parameters, Tensor) else len(list(parameters))
        found += [_ratio(group.get("rho", rho), rho)] * size
    return found


def group_rhos(groups: Sequence[dict[str, Any]], method: Method) -> None:
    """A group's own rho has an effect. A rho of 0 may stay: a method without one displaces nothing anyway."""
    asked = [group["rho"] for group in groups if group.get("rho")]
    if asked and not hasattr(method, "rho"):
        raise ValueError(
            f"rho={asked[0]} of a parameter group has no effect: the method {type(method).__name__} has no rho; leave it out"
        )


def _ratio(own: Any, rho: float | None) -> float:
    if rho is None:
        return 1.0
    non_negative("rho of a parameter group", own)
    if rho == 0 and own > 0:
        raise ValueError(
            f"the method's rho is 0 but a parameter group asks for rho={own}; give the method a rho above 0"
        )
    return own / rho if rho else 0.0


def scaler(value: Any) -> Any:
    """A GradScaler, or None also where it is switched off."""
    if value is None:
        return None
    if not (hasattr(value, "scale") and hasattr(value, "is_enabled")):
        raise TypeError(f"scaler must be a torch.amp.GradScaler, got {value!r}")
    return value if value.is_enabled() else None


def closures(value: object) -> list[Callable[[], Any]]:
    """One closure, or a list of them."""
    found: list[Any] = list(cast(Sequence[Any], value)) if isinstance(value, (list, tuple)) else [value]
    if not found or not all(callable(c) for c in found):
        raise TypeError(f"step takes a closure or a non-empty list of closures, got {value!r}")
    return found


def loss(value: object) -> Tensor:
    """What a closure returned, as a tensor with one element."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.tensor(float(value))
    raise TypeError(messages.NO_LOSS.format(value=value))


def scheduled(method: Method, factor: float) -> Method:
    """The method with its rho times what a schedule returned."""
    non_negative("the factor of rho_schedule", factor)
    rho: float = cast(Any, method).rho * factor
    return cast(Any, method).with_rho(rho) if hasattr(method, "with_rho") else replace(cast(Any, method), rho=rho)


def schedule(value: object, method: Method) -> None:
    """A function of step and learning rate, for a method that has a rho."""
    if value is None:
        return
    if not callable(value):
        raise TypeError(
            f"rho_schedule must be one of flatwise.schedules, or a function (step, lr) -> factor, got {value!r}"
        )
    if not hasattr(method, "rho"):
        raise ValueError(f"rho_schedule has no effect: the method {type(method).__name__} has no rho")


def needs(method: Method, base: Optimizer, model: nn.Module | None) -> None:
    """What the method looks at is there."""
    name, wanted = type(method).__name__, views.needed(method)
    if "names" in wanted and model is None:
        raise ValueError(f"{name} goes by the names of parameters: pass model=..., or scaled='all'")
    if "momentum" in wanted and not views.has_momentum(base):
        raise ValueError(
            f"{name} displaces along the base optimizer's momentum, and {type(base).__name__} has none: give it some, "
            "as in SGD(..., momentum=0.9)"
        )
    if "subspace" in wanted:
        raise ValueError(
            f"{name} projects on a subspace and has none: pass subspace=flatwise.curvature.eigenspace(objective)"
        )


def initialises(base: Optimizer, gradient: V.Vector) -> bool:
    """Whether a step only makes the base optimizer's state, as checkpoint libraries do: none yet, lr 0, a gradient of 0.

    The norm waits for the device, and for all shards; a warm-up from lr 0 gets that far once, and is no such step.
    """
    if base.state or any(float(group.get("lr", 1.0)) != 0 for group in base.param_groups):
        return False
    return float(V.norm(gradient)) == 0


def not_under_scaler() -> None:
    """Refuse a closure that came through `GradScaler.step`."""
    if _stepping_scaler() is not None:
        raise RuntimeError(messages.SCALER_WITH_CLOSURE)


def same_scaler(known: Any) -> None:
    """The scaler that the passes knew is the one that steps now."""
    stepping = _stepping_scaler()
    if known is None and stepping is not None:
        raise RuntimeError(messages.SCALER_UNKNOWN)
    if known is not None and stepping is None:
        raise RuntimeError(messages.SCALER_LEFT_OUT)


def seen_by_scaler() -> bool:
    """Whether a scaler takes this step: it has looked at the gradients and would have skipped it."""
    return _stepping_scaler() is not None


def not_unscaled(value: Any, optimizers: Sequence[Optimizer]) -> None:
    """The scaler has not unscaled `.grad` yet: it would take what the passes leave there for unscaled."""
    states: dict[int, dict[str, Any]] = getattr(value, "_per_optimizer_states", {})
    if any(states.get(id(optimizer), {}).get("stage") is OptState.UNSCALED for optimizer in optimizers):
        raise RuntimeError(messages.UNSCALED_TOO_EARLY)


def not_scaled(value: Tensor, known: Any) -> None:
    """The scaler has not multiplied the loss already, as told by the operation that made it."""
    scale, made = getattr(known, "_scale", None), value.grad_fn
    if scale is None or made is None or made.name() != "MulBackward0":
        return
    factors = [_saved(made, name) for name in ("_raw_saved_self", "_raw_saved_other")]
    if any(isinstance(f, Tensor) and f.data_ptr() == scale.data_ptr() for f in factors):
        raise ValueError(messages.SCALED_BY_HAND)


def _saved(made: Any, name: str) -> Any:
    """What an operation keeps for its backward, in newer torch without running a hook that would unpack it; None if unknown."""
    try:
        raw = getattr(made, name, None)
        return getattr(raw, "data") if hasattr(raw, "data") else getattr(made, name.replace("_raw", ""), None)  # noqa: B009
    except RuntimeError:  # an earlier backward has freed it, and says so itself
        return None


def needs_passes() -> str:
    """What to tell about a step without passes, with a scaler or without."""
    return messages.NEEDS_PASSES if _stepping_scaler() is None else messages.SCALER_NEEDS_PASSES


def not_accumulated_outside() -> None:
    """Refuse a closure that came through Accelerate's optimizer while Accelerate leaves out the steps between."""
    frame = _caller("accelerate.optimizer")
    if frame is not None and frame.f_locals["self"].gradient_state.num_steps > 1:
        raise RuntimeError(messages.ACCELERATE_ACCUMULATES)


def _stepping_scaler() -> Any:
    """The `GradScaler` in whose `step` this happens, unless it is switched off."""
    frame = _caller("torch.amp.grad_scaler")
    return None if frame is None else scaler(frame.f_locals.get("self"))


def _caller(module: str) -> FrameType | None:
    """The frame of a module from which this is called; wrappers of frameworks and schedulers may lie between."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(16):
        if frame is None or frame.f_globals.get("__name__") == module:
            return frame
        frame = frame.f_back
    return None
