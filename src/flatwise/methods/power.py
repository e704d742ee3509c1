"""Power iteration, with differences of gradients as products."""

from __future__ import annotations

from collections.abc import Generator

from flatwise import vectors as V
from flatwise.methods.dialogue import At, Evaluation, State
from flatwise.methods.products import difference_length, hessian_product
from flatwise.methods.ritz import SHORTEST, Search
from flatwise.vectors import Vector


def power_iteration(
    start: Vector, base: Vector, state: State, products: int, search: Search
) -> Generator[At, Evaluation, Vector]:
    """`v <- H v / |H v|`, some times (arXiv 2501.12666, algorithm 1), from our own start.

    The start, unlike in the official code, has a share of the gradient (`eigenvectors.SHARE`); with many products it does
    not matter. The iteration follows the eigenvalue of largest magnitude, also a negative one.

    Arguments as for `leading_ritz_vector`; `search` is told the Rayleigh quotient of the last product and its residual.
    """
    vector, length = V.unit(start), difference_length(state, base, SHORTEST)
    for _ in range(products):
        product = yield from hessian_product(base, vector, length)
        size, value = V.norm(product), V.dot(vector, product)
        search.value, search.residual = float(value), float((size**2 - value**2).clamp(min=0).sqrt())
        V.scale_(product, V.reciprocal(size))
        vector = product
    return vector
