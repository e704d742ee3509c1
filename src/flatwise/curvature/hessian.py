"""The Hessian of an objective as an operator, and the choice of the engine that multiplies with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args
from weakref import WeakKeyDictionary

from flatwise import vectors as V
from flatwise.curvature.checks import check_objective
from flatwise.curvature.engines import Differences, Forward, OneSided
from flatwise.curvature.lengths import central_guess, one_sided_guess, settle
from flatwise.curvature.operator import Operator
from flatwise.curvature.record import Engine, record
from flatwise.curvature.twice import Twice
from flatwise.objective import Objective
from flatwise.objective.preflight import few, first_sentence
from flatwise.vectors import Vector

Difference: TypeAlias = Literal["differences", "one-sided"]
Product: TypeAlias = Callable[[Vector], Vector]

COARSE = 0.1
"""The relative error of differences from which on a warning says so."""

_DIFFERENCES = {"differences": (Differences, central_guess), "one-sided": (OneSided, one_sided_guess)}
_settled: WeakKeyDictionary[Objective, dict[str, tuple[float, float]]] = WeakKeyDictionary()
"""For each objective and engine: the length of differences relative to the guess, and their error. It changes slowly."""


def hessian(
    objective: Objective,
    engine: Engine | Literal["auto"] = "auto",
    *,
    step: int | None = None,
    check: bool = True,
    keep_graph: bool | None = None,
) -> Operator:
    """The Hessian of an objective at the weights that its model has when the product is taken.

    The first call for an objective finds out, on a few samples, whether the loss can be differentiated twice, and makes sure that
    two evaluations agree. What was found and done is in the operator's `engine`, `reason` and `record`.

    Args:
        objective: the loss.
        engine: "double" differentiates twice: exact. "forward" differentiates the gradient forward: exact, sometimes faster, and
            not possible with every layer. "differences" takes gradients at two places: for whatever can be trained, in the
            memory of a gradient. "one-sided" takes one gradient a product and is less exact. "auto" is "double" where it is right
            and otherwise "differences".
        step: the training step of the weights, for the record.
        check: whether to make sure, once for each objective, that two evaluations agree.
        keep_graph: of "double", whether to keep the graph of the gradient between products at the same weights. A product then
            costs about 2 gradients in place of 3, and the graph stays in memory as long as the operator. None: where this process
            has one batch, whose graph takes no more than a product does anyhow. True: the graphs of all batches. A change of
            weights, buffers, modes or data between products is noticed; what a module or the loss function keeps elsewhere is
            not: make a new operator then.

    Raises:
        TypeError: no Objective.
        ValueError: an unknown engine, or keep_graph for an engine that has none.
        RuntimeError: the engine cannot differentiate this loss, or two evaluations do not agree; the message names the cause.
    """
    if engine not in (*get_args(Engine), "auto"):
        raise ValueError(f'engine must be "auto", "double", "forward", "differences" or "one-sided", got {engine!r}')
    check_objective(objective)
    if check:
        objective.check()
    chosen, reason = _choose(objective, engine)
    if keep_graph not in (None, True, False):
        raise TypeError(f"keep_graph must be True, False or None, got {keep_graph!r}")
    if chosen != "double" and keep_graph:
        raise ValueError(f'keep_graph has no effect on engine="{chosen}", which has no graph; leave it out')
    product, error = _product(objective, chosen, keep_graph)
    reason += "; graph kept between products" if isinstance(product, Twice) and product.keeps else ""
    again = _otherwise(objective, product)
    return Operator(product, objective.weights, error, record(objective, chosen, reason, error, step), again)


def _choose(objective: Objective, engine: Engine | Literal["auto"]) -> tuple[Engine, str]:
    found = objective.preflight()
    if engine == "double" and not found.twice:
        raise RuntimeError(f'engine="double" is not possible: {found.reason}. engine="differences" is')
    if engine == "auto":
        return ("double" if found.twice else "differences"), found.reason
    return engine, "asked for" + (f"; {found.reason}" if engine == "double" else "")


def _product(objective: Objective, engine: Engine, keep_graph: bool | None) -> tuple[Product, float]:
    """The function that takes products, and its relative error."""
    if engine == "double":
        return Twice(objective, keep_graph), 0.0
    if engine == "forward":
        return _tried(Forward, objective), 0.0
    return _difference(objective, engine)


def _tried(engine: Callable[[Objective], Product], objective: Objective) -> Product:
    """The engine, after a product on a few samples that shows whether it works."""
    some = few(objective)
    try:
        if some.data:
            engine(some.alone())(V.random_like(some.weights, objective.seed))
    except RuntimeError as error:
        why = first_sentence(error)
        raise RuntimeError(f'engine="forward" is not possible: {why}. engine="auto" finds one that is') from error
    return engine(objective)


def _difference(objective: Objective, engine: Difference) -> tuple[Product, float]:
    make, guess = _DIFFERENCES[engine]
    usual = guess(objective.weights)
    known = _settled.setdefault(objective, {})
    if engine not in known:
        length, error = settle(objective, make, usual)
        known[engine] = length / usual, error
        _warn_if_coarse(error)
    longer, error = known[engine]
    return make(objective, longer * usual), error


def _otherwise(objective: Objective, product: Product) -> Product | None:
    """Central differences of twice the length, where products are differences."""
    if not isinstance(product, (Differences, OneSided)):
        return None
    return Differences(objective, 2 * product.length)


def _warn_if_coarse(error: float) -> None:
    if not error < COARSE:
        warnings.warn(
            f"differences of gradients agree to {error:.0%} only: the gradient is noisy (low precision?) or has many kinks "
            "(ReLU). Measure in float32 or float64, or on more samples",
            stacklevel=5,
        )
