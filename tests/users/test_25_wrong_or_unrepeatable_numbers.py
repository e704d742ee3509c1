"""Problem 25: wrong or unrepeatable numbers.

hessian-eigenthings #42 (they depend on the GPU), #23 and #4 (on the mini-batch), #20 ("at which step was this measured?");
PyHessian #17 (a wrong weight in its spectral density, for months), #19 (unused layers), #12; curvlinops #207, Laplace #193 (much
slower after a change). hessian-eigenthings averages the means of unequal batches, and its Lanczos stops before it has arrived.
"""

import math

import pytest
import torch
from torch import nn
from users.plain import batches, loss_of, network

import flatwise as fw
from flatwise.curvature import from_matrix, hessian, spectral_density, top_eigenpairs, trace


def flat(vector):
    return torch.cat([t.reshape(-1) for t in vector])


def matrix_of(operator):
    """The whole Hessian, column by column."""
    columns = torch.eye(operator.size, dtype=torch.float64)
    shapes = [t.shape for t in operator.like]
    sizes = [math.prod(s) for s in shapes]
    return torch.stack([flat(operator([c.view(s) for c, s in zip(column.split(sizes), shapes)])) for column in columns])


@pytest.fixture(scope="module")
def operator():
    model = network(dtype=torch.float64)
    data = batches(2, dtype=torch.float64)
    return hessian(fw.Objective(model, loss_of, data, mode="eval"), step=40)


@pytest.fixture(scope="module")
def exact(operator):
    return torch.linalg.eigh(matrix_of(operator))


def test_every_measurement_tells_how_it_came_about(operator):
    record = top_eigenpairs(operator).record
    assert (record.step, record.samples, record.processes, record.mode) == (40, 32, 1, "eval")
    assert (record.dtype, record.device, record.engine, record.error) == ("float64", "cpu", "double", 0.0)
    assert record.tf32 in (True, False)
    assert record.deterministic is torch.are_deterministic_algorithms_enabled()
    assert record.checked
    assert record.torch == torch.__version__


def test_a_residual_is_reported_and_true(operator, exact):
    pairs = top_eigenpairs(operator, k=3, tol=1e-6)
    for value, vector, residual, right in zip(pairs.values, pairs.vectors, pairs.residuals, exact[0].flip(0)):
        rest = flat(operator(vector)) - value * flat(vector)
        assert rest.norm().item() == pytest.approx(residual, rel=0.05, abs=1e-12)
        assert abs(value - right) <= residual + 1e-12
    assert pairs.converged


def test_where_it_did_not_arrive_it_says_so(operator):
    with pytest.warns(UserWarning, match="not converged after 3 products"):
        assert not top_eigenpairs(operator, tol=1e-9, max_products=3).converged


def test_random_estimates_have_standard_errors_that_hold(operator, exact):
    right = exact[0].sum().item()
    for method in ("xtrace", "hutch++", "hutchinson"):
        estimates = [trace(operator, 12, method=method, seed=100 * seed) for seed in range(8)]
        within = sum(abs(e.value - right) <= 2 * e.standard_error for e in estimates)
        assert within >= 6, method
        assert trace(operator, 12, method=method) == trace(operator, 12, method=method)  # seeded


def test_the_weights_of_the_spectral_density_are_right():
    """A known spectrum: half of it at 0, a third at 1, the rest at 5."""
    spectrum = torch.tensor([0.0] * 30 + [1.0] * 20 + [5.0] * 10, dtype=torch.float64)
    torch.manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))
    density = spectral_density(from_matrix(basis @ torch.diag(spectrum) @ basis.T), probes=16, steps=8)
    for low, high, share in ((-0.5, 0.5, 1 / 2), (0.5, 2.0, 1 / 3), (2.0, 6.0, 1 / 6)):
        within = density.below(high).value - density.below(low).value
        assert within == pytest.approx(share, abs=0.05)


def test_unequal_batches_count_by_their_samples():
    """Thirty samples and two: a mean of batch means would give the two as much weight as the thirty."""
    inputs, targets = batches(1, size=32, dtype=torch.float64)[0]
    whole, cut = (
        hessian(fw.Objective(network(dtype=torch.float64), loss_of, data, mode="eval"))
        for data in ([(inputs, targets)], list(zip(inputs.split([30, 2]), targets.split([30, 2]))))
    )
    torch.testing.assert_close(matrix_of(cut), matrix_of(whole))


def test_unused_layers_count_as_zeros():
    model = network(dtype=torch.float64)
    model.unused = nn.Linear(3, 3, dtype=torch.float64)
    used = type(model)(*list(network(dtype=torch.float64)))
    forward = lambda m, batch: loss_of(nn.Sequential(*list(m)[:3]), batch)
    found = hessian(fw.Objective(model, forward, batches(1, dtype=torch.float64), mode="eval"))
    right = hessian(fw.Objective(used, loss_of, batches(1, dtype=torch.float64), mode="eval"))
    assert found.size == right.size + 12
    assert top_eigenpairs(found, tol=1e-6).values == pytest.approx(top_eigenpairs(right, tol=1e-6).values)


def test_the_same_measurement_twice_is_the_same_number(operator):
    assert top_eigenpairs(operator, k=2).values == top_eigenpairs(operator, k=2).values


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # forward mode, which it uses
def test_another_library_agrees():
    curvlinops = pytest.importorskip("curvlinops")
    model, data = network(dtype=torch.float64), batches(2, dtype=torch.float64)
    theirs = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False
    )
    ours = hessian(fw.Objective(model, loss_of, data, mode="eval"))
    ones = [torch.ones_like(t) for t in ours.like]
    torch.testing.assert_close(flat(ours(ones)), flat(theirs @ ones))


def test_the_costs_that_are_promised_are_counted():
    """In forward passes, so that a change that makes products slower shows on any machine."""
    runs = []

    def counted(model, batch):
        runs.append(1)
        return loss_of(model, batch)

    objective = fw.Objective(network(), counted, batches(1), mode="eval")
    operators = {engine: hessian(objective, engine, check=False) for engine in ("double", "differences", "one-sided")}
    operators["double, no graph kept"] = hessian(objective, "double", check=False, keep_graph=False)
    vector = [torch.ones_like(p) for p in objective.weights]
    cost = {}
    for engine, operator in operators.items():
        operator(vector)
        runs.clear()
        operator(vector)
        cost[engine] = len(runs)
    assert cost == {"double": 0, "double, no graph kept": 1, "differences": 2, "one-sided": 1}
