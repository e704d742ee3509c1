"""Curvature along a direction, against matrices in float64."""

import math

import pytest
import torch
from curvature.networks import brute_force, problem
from curvature.spectra import rotated
from test_objective import cross_entropy, flat

from flatwise import Objective, curvature
from flatwise import vectors as V
from flatwise.curvature import directional_curvature, from_matrix, hessian, restricted, top_eigenpairs


def test_along_gradient_update_and_any_vector():
    model, data, _ = problem("mlp")
    objective, matrix = Objective(model, cross_entropy, data), brute_force("mlp")
    H, before = hessian(objective, step=9), V.clone(objective.weights)
    update = V.scale(objective.gradient(), -0.1)
    for along in (objective.gradient(), update, V.random_like(before, 3)):
        found, v = directional_curvature(H, along), flat(along)
        assert float(found) == found.value == pytest.approx(float(v @ matrix @ v / (v @ v)))
        assert found.length == pytest.approx(float(v.norm()))
        assert found.residual == pytest.approx(float((matrix @ v - found.value * v).norm() / v.norm()))
        assert found.record is H.record
        assert found.cosines == []
    assert all(torch.equal(a, b) for a, b in zip(before, objective.weights, strict=True))


def test_an_eigenvector_has_its_eigenvalue_and_no_residual():
    H = from_matrix(rotated(torch.linspace(-2, 5, 12)))
    pairs = top_eigenpairs(H, 3, tol=1e-10)
    found = directional_curvature(H, V.scale(pairs.vectors[1], -7.0), pairs)
    assert found.value == pytest.approx(pairs.values[1])
    assert found.residual < 1e-8
    assert found.cosines == pytest.approx([0.0, -1.0, 0.0], abs=1e-8)
    assert found.share == pytest.approx(1)


def test_the_share_in_the_top_subspace():
    matrix = rotated(torch.linspace(-2, 5, 12))
    pairs = top_eigenpairs(from_matrix(matrix), 12, tol=1e-10)
    vector = [torch.linspace(0, 1, 12, dtype=torch.float64)]
    found = directional_curvature(from_matrix(matrix), vector, pairs)
    assert found.share == pytest.approx(1)
    assert found.value == pytest.approx(sum(c**2 * v for c, v in zip(found.cosines, pairs.values, strict=True)))
    assert min(abs(found.value - v) for v in pairs.values) <= found.residual


def test_it_takes_one_product():
    calls = []
    matrix = rotated(torch.linspace(0, 1, 5))
    operator = curvature.Operator(lambda v: calls.append(1) or [matrix @ v[0]], [torch.zeros(5, dtype=torch.float64)])
    directional_curvature(operator, [torch.ones(5)])
    assert len(calls) == 1


def test_vectors_of_any_length_count():
    """A tiny gradient in float32 is a direction like any other."""
    matrix = rotated(torch.linspace(1, 2, 6)).float()
    ones = directional_curvature(from_matrix(matrix), [torch.ones(6)])
    tiny = directional_curvature(from_matrix(matrix), [torch.full((6,), 1e-15)])
    assert tiny.value == pytest.approx(ones.value, rel=1e-6)


def test_of_a_block_the_part_in_the_block_counts():
    model, data, _ = problem("mlp")
    objective = Objective(model, cross_entropy, data)
    block, gradient = restricted(hessian(objective), [True, False, False, False]), objective.gradient()
    v, matrix = gradient[0].reshape(-1), brute_force("mlp")[:30, :30]
    assert directional_curvature(block, gradient).value == pytest.approx(float(v @ matrix @ v / (v @ v)))


@pytest.mark.parametrize(
    ("along", "words"),
    [
        ([torch.zeros(3)], r"norm 0.0; it must be finite and above 0"),
        ([None], r"norm 0.0"),
        ([torch.tensor([math.nan, 0, 0])], "norm nan"),
        ([torch.ones(2)], "the direction has other shapes"),
        ([], "the direction has 0 entries"),
    ],
)
def test_what_is_no_direction_is_refused(along, words):
    with pytest.raises(ValueError, match=words):
        directional_curvature(from_matrix(torch.eye(3)), along)


def test_what_is_no_operator_is_refused():
    with pytest.raises(TypeError, match="operator must be an Operator"):
        directional_curvature("eye", [torch.ones(3)])
