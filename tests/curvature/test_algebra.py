"""Operators made of operators, against the same algebra of matrices."""

import math

import pytest
import torch
from curvature.networks import problem
from curvature.spectra import rotated
from curvature.test_parts import dense
from test_objective import cross_entropy

from flatwise import Objective
from flatwise.curvature import (
    Operator,
    combined,
    congruent,
    from_matrix,
    hessian,
    restricted,
    scaled,
    shifted,
    top_eigenpairs,
)

LIKE = [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)]
A, B = rotated(torch.linspace(-3, 5, 10), seed=1), rotated(torch.linspace(0, 2, 10), seed=2)
H, G = from_matrix(A, LIKE), from_matrix(B, LIKE)
same = lambda operator, matrix: torch.testing.assert_close(dense(operator), matrix, rtol=1e-12, atol=1e-12)


def test_multiples_shifts_sums_and_differences():
    same(scaled(H, -2.0), -2 * A)
    same(shifted(H, 0.5), A + 0.5 * torch.eye(10))
    same(combined(H, G), A + B)
    same(combined(H, G, -1.0), A - B)
    same(shifted(scaled(combined(H, G, 3.0), 2.0), -1.0), 2 * (A + 3 * B) - torch.eye(10))


def test_blocks():
    same(restricted(H, [True, False]), A[:6, :6])
    same(restricted(H, [False, True]), A[6:, 6:])
    same(restricted(H, [True, True]), A)
    same(restricted(restricted(H, [False, True]), [True, True]), A[6:, 6:])


def test_a_change_of_scale():
    scales = [torch.linspace(0.5, 2, 6, dtype=torch.float64).view(2, 3), torch.tensor([1.0, 0.0, -1.0, 3.0]).double()]
    d = torch.cat([s.reshape(-1) for s in scales])
    same(congruent(H, scales), d[:, None] * A * d)
    same(congruent(H, [None, scales[1]]), d[6:, None] * A[6:, 6:] * d[6:])
    assert top_eigenpairs(congruent(H, scales), tol=1e-10).values[0] == pytest.approx(
        float(torch.linalg.eigvalsh(d[:, None] * A * d)[-1])
    )


def test_the_smallest_eigenvalue_is_the_largest_of_the_negative():
    assert top_eigenpairs(scaled(H, -1.0), tol=1e-10).values[0] == pytest.approx(3.0)


def test_records_and_errors_are_passed_on():
    model, data, _ = problem("mlp")
    differences = hessian(Objective(model, cross_entropy, data), "differences", step=3)
    exact = hessian(Objective(model, cross_entropy, data))
    ones = [torch.ones_like(t) for t in exact.like]
    made = [
        scaled(differences, 2.0),
        shifted(differences, 1.0),
        combined(exact, differences),
        congruent(differences, ones),
    ]
    assert all(operator.error == differences.error > 0 for operator in made)
    assert made[0].record == made[1].record == made[3].record == differences.record
    assert restricted(differences, [True, False, False, True]).record.parameters == 33


def test_half_precision_stays_half():
    half = from_matrix(A.to(torch.bfloat16))
    vector = [torch.ones(10, dtype=torch.bfloat16)]
    for operator in (scaled(half, 2.0), shifted(half, 1.0), congruent(half, [torch.full((10,), 0.5)])):
        assert operator(vector)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: combined(H, from_matrix(A)), "vectors of different shapes"),
        (lambda: congruent(H, [torch.ones(2, 3)]), "the vector of scales has 1 entries, the operator's vectors have 2"),
        (lambda: congruent(H, [torch.ones(6), torch.ones(4)]), "the vector of scales has other shapes"),
        (lambda: congruent(H, [torch.full((2, 3), math.nan), torch.ones(4)]), "the scales hold NaN"),
        (lambda: congruent(H, [None, None]), "the block is empty"),
        (lambda: restricted(H, [True]), "1 places were given"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda m: scaled(m, 1.0),
        lambda m: shifted(m, 1.0),
        lambda m: combined(H, m),
        lambda m: combined(m, H),
        lambda m: congruent(m, [torch.ones(10)]),
        lambda m: restricted(m, [True]),
    ],
)
def test_what_is_no_operator_is_refused(call):
    with pytest.raises(TypeError, match="operator must be an Operator"):
        call("A")


def test_matrices_are_operators_as_they_are():
    same(combined(A, B, -1.0), A - B)
    same(shifted(A, 2.0), A + 2 * torch.eye(10))
    assert top_eigenpairs(scaled(A, -1.0), tol=1e-10).values[0] == pytest.approx(3.0)


def test_a_block_of_an_operator_that_wants_whole_vectors():
    """Operators of somebody else's need not know None."""
    whole = Operator(lambda v: [t * 2 for t in v], LIKE)
    same(restricted(whole, [False, True]), 2 * torch.eye(4).double())
