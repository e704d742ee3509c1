"""The Hessian as an adaptive optimizer sees it: the effective sharpness of Adam, RMSProp and their kin (arXiv 2207.14484).

Such an optimizer steps along `P^-1 m`, with a diagonal P that comes from past gradients, and m the gradient or its momentum.
Steps grow where the largest eigenvalue of `P^-1 H` is above the edge of gradient descent with that momentum. It has the
eigenvalues of the symmetric `P^-1/2 H P^-1/2`, which every estimator takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, RMSprop

from flatwise import vectors as V
from flatwise.curvature.adapters import Multiplies
from flatwise.curvature.algebra import congruent, noted, times
from flatwise.curvature.operator import Operator
from flatwise.objective import Objective
from flatwise.vectors import Vector

Settings: TypeAlias = Mapping[str, Any]
"""A parameter group of a torch.optim optimizer, or its state of a parameter."""


@dataclass(frozen=True)
class Preconditioner:
    """What an optimizer multiplies gradients with, as of its last step, and the momentum of its steps.

    Attributes:
        inverse: the diagonal of `P^-1`, >= 0, for every parameter of the objective, None for those that are not trained; times
            the learning rates, unless they were left out.
        momentum: how much of the old momentum is in the new one, in [0, 1).
        dampening: the new momentum has `1 - dampening` times the gradient. For a running mean, as Adam's, it is `momentum`.
        nesterov: whether it is Nesterov's momentum.
        name: what it is, for records.
    """

    inverse: Vector
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    name: str = "given"

    def direction(self, vector: Vector) -> Vector:
        """The unit direction in which the weights move, `P^-1/2 v`, of an eigenvector v of the preconditioned Hessian."""
        return V.unit(times(_root(self.inverse), vector))


def preconditioned(operator: Multiplies, preconditioner: Preconditioner) -> Operator:
    """`P^-1/2 H P^-1/2`, which is symmetric and has the eigenvalues of `P^-1 H`. What is not trained takes no part.

    With learning rates in it, its largest eigenvalue is to be compared with `theory.heavy_ball_edge(1, momentum, dampening)`
    (`theory.nesterov_edge(1, momentum)` if `nesterov`), which for Adam is `theory.adam_edge(1, beta1)`.

    Args:
        operator: the Hessian, or another one on the same vectors.
        preconditioner: that of an optimizer, as `preconditioner` reads it, or one of your own.

    Raises:
        TypeError: `operator` is nothing that multiplies Vectors.
        ValueError: a diagonal of other shapes, or one that is negative, NaN or infinite.
    """
    if any(bool((t < 0).any()) for t in V.present(preconditioner.inverse)):
        raise ValueError("a preconditioner must be positive, this one has negative entries")
    return noted(congruent(operator, _root(preconditioner.inverse)), f"preconditioned: {preconditioner.name}")


def preconditioner(optimizer: Any, objective: Objective, *, with_lr: bool = True) -> Preconditioner:
    """What a live optimizer multiplies gradients with: `torch.optim`'s SGD, Adam, AdamW, Adamax, RMSprop or Adagrad.

    Bias corrections and eps are those of the last step, by torch's formulas. Weight decay is left out: where it is added to the
    gradient (in all but AdamW), `shifted(hessian, weight_decay)` is the Hessian of the loss with it.

    Args:
        optimizer: one of these, or a `SharpnessAware` around it, whose base counts.
        objective: says which parameters there are, in which order.
        with_lr: whether learning rates are in it. Then the edge is that at learning rate 1, and groups may have their own.

    Raises:
        TypeError: an optimizer of another kind.
        ValueError: a parameter with which no step was taken yet, groups of different momenta, `maximize=True`, or an optimizer
            that has none of the parameters.
    """
    base = _base(optimizer)
    rule = _RULES[type(base)]
    home = {p: group for group in base.param_groups for p in group["params"]}
    groups = [home.get(p) for p in objective.parameters()]
    momentum = _common([rule.momentum(group) for group in groups if group is not None])
    inverse = [
        None if group is None else rule.inverse(_state(base, p, rule, objective), group) * _rate(group, with_lr)
        for p, group in zip(objective.parameters(), groups, strict=True)
    ]
    name = f"{type(base).__name__}'s, {'with' if with_lr else 'without'} learning rates"
    return Preconditioner(inverse, *momentum, name=name)


# --- the formulas of torch.optim --------------------------------------------------------------------------------------


class Momentum(NamedTuple):
    """As in `Preconditioner`."""

    momentum: float
    dampening: float = 0.0
    nesterov: bool = False


class Rule(NamedTuple):
    """How an optimizer multiplies gradients, from its state of a parameter and the parameter's group; and its momentum."""

    inverse: Callable[[Settings, Settings], Tensor]
    momentum: Callable[[Settings], Momentum]
    has_state: bool = True


def _adam(state: Settings, group: Settings) -> Tensor:
    first, second = (1 - float(beta) ** float(state["step"]) for beta in group["betas"])
    squares = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    return 1 / (first * ((squares / second).sqrt() + group["eps"]))


def _adamax(state: Settings, group: Settings) -> Tensor:
    return 1 / ((1 - float(group["betas"][0]) ** float(state["step"])) * state["exp_inf"])


def _rmsprop(state: Settings, group: Settings) -> Tensor:
    squares = state["square_avg"] - state["grad_avg"] ** 2 if group["centered"] else state["square_avg"]
    return 1 / (squares.sqrt() + group["eps"])


def _adagrad(state: Settings, group: Settings) -> Tensor:
    decay = 1 + (float(state["step"]) - 1) * group["lr_decay"]
    return 1 / (decay * (state["sum"].sqrt() + group["eps"]))


def _running_mean(group: Settings) -> Momentum:
    return Momentum(float(group["betas"][0]), float(group["betas"][0]))


_RULES: dict[type, Rule] = {
    SGD: Rule(
        lambda state, group: torch.ones_like(state["parameter"]),
        lambda group: Momentum(group["momentum"], group["dampening"] if group["momentum"] else 0.0, group["nesterov"]),
        has_state=False,
    ),
    Adam: Rule(_adam, _running_mean),
    AdamW: Rule(_adam, _running_mean),
    Adamax: Rule(_adamax, _running_mean),
    RMSprop: Rule(_rmsprop, lambda group: Momentum(group["momentum"])),
    Adagrad: Rule(_adagrad, lambda group: Momentum(0.0)),
}


# --- reading an optimizer ---------------------------------------------------------------------------------------------


def _base(optimizer: Any) -> Any:
    """The torch.optim optimizer inside of ours, or inside of a framework's wrapper."""
    base = optimizer
    while type(base) not in _RULES and (inner := getattr(base, "base", getattr(base, "optimizer", None))) is not None:
        base = inner
    if type(base) not in _RULES:
        known = ", ".join(rule.__name__ for rule in _RULES)
        raise TypeError(
            f"the steps of {type(base).__name__} are not known here, only those of torch.optim's {known}; make a "
            "Preconditioner(inverse=...) with its diagonal"
        )
    return base


def _state(base: Any, parameter: Tensor, rule: Rule, objective: Objective) -> Settings:
    """The optimizer's state of a parameter; all of them have made a step."""
    state = base.state.get(parameter, {})
    if rule.has_state and not state.get("step", 0):
        name = next(n for n, p in objective.model.named_parameters() if p is parameter)
        raise ValueError(
            f"the optimizer has made no step with {name!r} yet, so there is nothing it would multiply its gradient with; "
            "take a step first. If the loss does not use it, leave it out of the optimizer"
        )
    return {"parameter": parameter.detach(), **state}


def _rate(group: Settings, with_lr: bool) -> float:
    if group["maximize"]:
        raise ValueError("with maximize=True the optimizer climbs; an edge is for what descends")
    return float(group["lr"]) if with_lr else 1.0


def _common(momenta: Sequence[Momentum]) -> Momentum:
    if not momenta:
        raise ValueError("the optimizer has none of the objective's parameters; is it another model's?")
    if len(set(momenta)) > 1:
        raise ValueError(f"the groups have different momenta, so there is no common edge: {sorted(set(momenta))}")
    return momenta[0]


def _root(inverse: Vector) -> Vector:
    return V.each(lambda ts: [t.sqrt() for t in ts], inverse)
