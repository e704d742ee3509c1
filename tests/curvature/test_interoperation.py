"""Operators of other libraries as they are, against their dense matrices; our Hessian against theirs."""

import functools
import warnings

import numpy as np
import pytest
import torch
from curvature.spectra import rotated
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from test_objective import batches, cross_entropy, flat
from torch import nn

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import (
    Operator,
    as_operator,
    diagonal,
    frobenius_norm,
    hessian,
    spectral_density,
    top_eigenpairs,
    trace,
)

KINDS = {
    "GGNLinearOperator": {},
    "FisherMCLinearOperator": {"mc_samples": 3},
    "EFLinearOperator": {},
    "KFACLinearOperator": {"separate_weight_and_bias": False},
    "EKFACLinearOperator": {},
    "HessianLinearOperator": {},
}


def network(dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 3)).to(dtype)
    return model, batches(6, 6, dtype=dtype)


@functools.cache
def curvlinops_operator(kind, dtype=torch.float64):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.jit, when it is imported
        import curvlinops

        model, data = network(dtype)
        return getattr(curvlinops, kind)(model, nn.CrossEntropyLoss(), list(model.parameters()), data, **KINDS[kind])


def dense(operator):
    return torch.stack([operator @ e for e in torch.eye(operator.shape[0], dtype=torch.float64)], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_operators_of_curvlinops_are_taken_as_they_are(kind):
    theirs = curvlinops_operator(kind)
    matrix = dense(theirs)
    size = len(matrix)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    pairs = top_eigenpairs(theirs, 2, tol=1e-6)
    assert pairs.values == pytest.approx(values[-2:].flip(0).tolist(), rel=1e-8)
    assert abs(pairs.vectors[0][0] @ vectors[:, -1]) > 1 - 1e-8
    assert trace(theirs, 2 * size).value == pytest.approx(values.sum().item(), rel=1e-8)
    density = spectral_density(theirs, probes=1, steps=size)
    assert float(density.nodes.max()) == pytest.approx(values[-1].item(), rel=1e-8)
    z = V.random_like([torch.zeros(size, dtype=torch.float64)], 0)[0]
    assert density.mean(torch.square).value == pytest.approx(((matrix @ z) @ (matrix @ z) / (z @ z)).item(), rel=1e-6)
    assert frobenius_norm(theirs, 40).value == pytest.approx(values.norm().item(), rel=0.5)
    assert diagonal(theirs, 4)[0][0].shape == (size,)


@pytest.mark.parametrize("kind", ["GGNLinearOperator", "KFACLinearOperator"])
def test_vectors_have_the_shapes_of_a_template(kind):
    model, data = network()
    like = Objective(model, cross_entropy, data).weights
    H = as_operator(curvlinops_operator(kind), like)
    (vector,) = top_eigenpairs(H).vectors
    assert [t.shape for t in vector] == [t.shape for t in like]
    torch.testing.assert_close(flat(H(vector)), dense(curvlinops_operator(kind)) @ flat(vector))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_our_hessian_is_theirs(dtype, tolerance):
    model, data = network(dtype)
    ours = hessian(Objective(model, cross_entropy, data))
    theirs = as_operator(curvlinops_operator("HessianLinearOperator", dtype), ours.like)
    top, other = (top_eigenpairs(H, 3, tol=tolerance) for H in (ours, theirs))
    assert top.values == pytest.approx(other.values, rel=tolerance)
    for seed in range(3):
        vector = V.random_like(ours.like, seed)
        apart = V.norm(V.add(ours(vector), theirs(vector), -1.0))
        assert apart < tolerance * V.norm(ours(vector))


# --- matrices, SciPy, functions ---------------------------------------------------------------------------------------

EIGENVALUES = [5.0, 3.0, 1.0, *np.linspace(-1, 0.5, 17)]
MATRIX = rotated(EIGENVALUES)
ARRAY = MATRIX.numpy()

THINGS = {
    "torch matrix": MATRIX,
    "NumPy matrix": ARRAY,
    "SciPy sparse matrix": csr_matrix(ARRAY),
    "SciPy LinearOperator": aslinearoperator(ARRAY),
    "LinearOperator of a function": LinearOperator((20, 20), matvec=lambda x: ARRAY @ x),
    "LinearOperator in float32": LinearOperator((20, 20), matvec=lambda x: ARRAY @ x, dtype=np.float32),
}


@pytest.mark.parametrize("name", THINGS)
@pytest.mark.parametrize("like", [None, [torch.zeros(4, 3, dtype=torch.float64), None, torch.zeros(8)]])
def test_matrices_and_operators_of_scipy(name, like):
    H = THINGS[name] if like is None else as_operator(THINGS[name], like)
    assert as_operator(THINGS[name], like).size == 20
    pairs = top_eigenpairs(H, 3, tol=1e-4)
    exact = name != "LinearOperator in float32" and like is None
    assert pairs.values == pytest.approx(EIGENVALUES[:3], rel=1e-6 if exact else 1e-5)
    if like is not None:
        assert pairs.vectors[0][1] is None
        assert pairs.vectors[0][0].shape == (4, 3)
    assert trace(THINGS[name], 40).value == pytest.approx(sum(EIGENVALUES), abs=1e-5)


def test_a_function_with_a_template():
    like = [torch.zeros(20, dtype=torch.float64)]
    H = as_operator(lambda v: [MATRIX @ v[0]], like)
    assert trace(H, 40).value == pytest.approx(sum(EIGENVALUES))
    assert as_operator(H) is H


def test_symmetry_is_checked_by_two_products_or_not_at_all():
    skewed = MATRIX + torch.triu(torch.ones(20, 20, dtype=torch.float64))
    calls = []
    function = lambda v: calls.append(1) or [skewed @ v[0]]
    with pytest.raises(ValueError, match=r"the operator is not symmetric: u'Hv = .*, but v'Hu = "):
        as_operator(function, [MATRIX[0]])
    assert len(calls) == 2
    as_operator(function, [MATRIX[0]], check=False)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="not symmetric"):
        as_operator(aslinearoperator(skewed.numpy()))
    with pytest.raises(ValueError, match="finite and symmetric"):
        as_operator(skewed.numpy())
    as_operator(lambda v: [(MATRIX.bfloat16() @ v[0]).float().bfloat16()], [MATRIX[0].bfloat16()])


@pytest.mark.parametrize(
    ("thing", "like", "kind", "words"),
    [
        ("matrix", None, TypeError, "operator must be an Operator, .*, got str"),
        (nn.Linear(3, 3), None, TypeError, "got Linear"),
        (Objective(nn.Linear(3, 3), lambda m, b: m(b), []), None, TypeError, r"pass hessian\(objective\)"),
        (lambda v: v, None, TypeError, "a function needs a template of its Vectors: as_operator"),
        (
            aslinearoperator(np.ones((3, 4))),
            None,
            ValueError,
            r"must be square and not empty, got .* of shape \(3, 4\)",
        ),
        (
            aslinearoperator(np.eye(3) * 1j),
            None,
            ValueError,
            "must be real, of a floating point type, got torch.complex",
        ),
        (aslinearoperator(np.eye(3)), [torch.zeros(4)], ValueError, "the operator has 3 rows, the template 4 coord"),
        (Operator(lambda v: v, [torch.zeros(3)]), [torch.zeros(3)], TypeError, "an Operator has a template of its own"),
    ],
)
def test_what_is_no_symmetric_operator_is_refused(thing, like, kind, words):
    with pytest.raises(kind, match=words):
        as_operator(thing, like)


def test_estimators_refuse_it_too():
    with pytest.raises(TypeError, match="operator must be an Operator"):
        trace("matrix")
    with pytest.raises(TypeError, match="a function needs a template"):
        frobenius_norm(lambda v: v)
