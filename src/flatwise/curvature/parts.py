"""Blocks of the Hessian: of a layer, of a parameter group, of any parameters, each as an operator of its own.

A block knows how the loss curves when its parameters move alone. Its largest eigenvalue is at most that of the whole Hessian,
and the traces of all blocks add up to the whole trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from flatwise import vectors as V
from flatwise.curvature.algebra import check_places, noted
from flatwise.curvature.hessian import hessian
from flatwise.curvature.operator import Operator
from flatwise.curvature.record import Engine
from flatwise.objective import Objective
from flatwise.vectors import Vector


def by_layer(objective: Objective) -> dict[str, list[bool]]:
    """The places of each layer's parameters: of every module that holds some itself, by its name, in the order of the model.

    Every parameter counts once: tied weights belong to the first module that holds them. Those of the model itself are named "".
    """
    names = [name.rpartition(".")[0] for name, _ in _named(objective)]
    return {layer: [name == layer for name in names] for layer in dict.fromkeys(names)}


def by_group(objective: Objective, optimizer: Any) -> dict[str, list[bool]]:
    """The places of the parameters of each of an optimizer's groups, by the group's "name", or as "group 0" and so on.

    Groups without a parameter of the objective are left out, and so are parameters that the optimizer has not.

    Args:
        objective: the loss.
        optimizer: a `torch.optim.Optimizer`, a `SharpnessAware`, or a wrapper that shows its `param_groups`.

    Raises:
        TypeError: it has no `param_groups`.
        ValueError: none of its parameters is one of the objective's.
    """
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        raise TypeError(f"optimizer must have param_groups, as torch.optim's have, got {type(optimizer).__name__}")
    found = {label: _places(objective, g["params"]) for label, g in zip(_labels(groups), groups, strict=True)}
    found = {label: places for label, places in found.items() if any(places)}
    if not found:
        raise ValueError("the optimizer has none of the objective's parameters; is it another model's?")
    return found


def matching(objective: Objective, *patterns: str) -> list[bool]:
    """The places of the parameters that one of the patterns means.

    Args:
        objective: the loss.
        patterns: a parameter's name ("0.weight"), a module's ("encoder.0", with all that is in it), or either with wildcards
            as in file names ("*.bias", "encoder.*.attention"). Names are those of the model inside of wrappers.

    Raises:
        ValueError: a pattern means nothing.
    """
    names = [name for name, _ in _named(objective)]
    for pattern in patterns:
        if not any(_means(pattern, name) for name in names):
            raise ValueError(f"{pattern!r} names no parameter that requires grad and no module with one: {_few(names)}")
    return [any(_means(pattern, name) for pattern in patterns) for name in names]


def hessian_blocks(
    objective: Objective,
    parts: Mapping[str, Sequence[bool]],
    engine: Engine | Literal["auto"] = "auto",
    *,
    step: int | None = None,
    check: bool = True,
    keep_graph: bool = False,
) -> dict[str, Operator]:
    """The Hessian of an objective over some of its parameters, for several such parts: an operator for each.

    Vectors run over all parameters of the objective and are None outside of the part. A product differentiates with respect to
    the part alone: the backward passes go no further down than its first layer.

    Args:
        objective: the loss.
        parts: names and places, such as `by_layer(objective)`, `by_group(objective, optimizer)`, or
            `{"biases": matching(objective, "*.bias")}`. They may overlap.
        engine, step, check: as for `hessian`. With differences each part finds its own length.
        keep_graph: whether every operator keeps a graph of its own between products, where it has one: faster, but there are
            as many graphs in memory as parts.

    Raises:
        ValueError: places that do not fit the objective, an empty part, or an unknown engine.
        RuntimeError: as `hessian`.
    """
    whole = objective.weights
    for places in parts.values():
        check_places(places, whole)
    if check:
        objective.check()
    found = objective.preflight()  # once, for all parts
    may_keep = engine == "double" or (engine == "auto" and found.twice)
    graph = keep_graph if may_keep else keep_graph or None
    options: dict[str, Any] = {"step": step, "check": check, "keep_graph": graph}
    inner = {name: hessian(_limited(objective, places), engine, **options) for name, places in parts.items()}
    return {name: noted(_block(whole, parts[name], inner[name]), f"block {name!r}") for name in parts}


def _limited(objective: Objective, places: Sequence[bool]) -> Objective:
    return objective.limited(p for p, keep in zip(objective.parameters(), places, strict=True) if keep)


def _block(whole: Vector, places: Sequence[bool], inner: Operator) -> Operator:
    """An operator on vectors of some tensors, as one on vectors of all, with None for the others."""

    def product(vector: Vector) -> Vector:
        found = iter(inner([v for v, keep in zip(vector, places, strict=True) if keep]))
        return [next(found) if keep else None for keep in places]

    return Operator(product, V.restrict(whole, places), inner.error, inner.record)


def _named(objective: Objective) -> list[tuple[str, nn.Parameter]]:
    """The objective's parameters with their names, in order."""
    own = frozenset(objective.parameters())
    return [(name, p) for name, p in objective.model.named_parameters() if p in own]


def _places(objective: Objective, some: Sequence[nn.Parameter]) -> list[bool]:
    chosen = frozenset(some)
    return [p in chosen for p in objective.parameters()]


def _labels(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Their names, with their places where several have one name."""
    names = [group.get("name", f"group {i}") for i, group in enumerate(groups)]
    return [name if names.count(name) == 1 else f"{name} (group {i})" for i, name in enumerate(names)]


def _means(pattern: str, name: str) -> bool:
    """Whether a pattern is the name of a parameter, or of a module around it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
