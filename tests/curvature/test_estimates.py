"""Trace, Frobenius norm, diagonal and spectral density, against float64 matrices: unbiased, and honest about their errors."""

import math

import numpy as np
import pytest
import torch
from curvature.spectra import rotated
from scipy import stats

from flatwise import curvature
from flatwise.curvature import diagonal, frobenius_norm, from_matrix, spectral_density, trace

METHODS = ["xtrace", "hutch++", "hutchinson"]
every_method = pytest.mark.parametrize("method", METHODS)


def networks_like(size=60, outliers=(30.0, 12.0, 7.0)):
    """A few large eigenvalues, many near zero, some negative."""
    bulk = torch.linspace(-0.5, 1.0, size - len(outliers), dtype=torch.float64)
    return rotated(torch.cat([torch.tensor(outliers, dtype=torch.float64), bulk]))


@every_method
def test_the_trace_is_unbiased_and_its_standard_error_true(method):
    """Over many seeds: z-scores have mean 0 and are spread as the standard errors say."""
    matrix = networks_like()
    estimates = [trace(from_matrix(matrix), 24, method=method, seed=1000 * s) for s in range(150)]
    values = np.array([e.value for e in estimates])
    error = values.std(ddof=1)
    assert abs(values.mean() - float(matrix.trace())) < 4 * error / math.sqrt(len(values))
    claimed = np.array([e.standard_error for e in estimates])
    assert 0.7 < math.sqrt((claimed**2).mean()) / error < 1.4


ESTIMATORS = {
    **{m: lambda h, s, m=m: trace(h, 12, method=m, seed=s) for m in METHODS},
    "Frobenius norm": lambda h, s: frobenius_norm(h, 12, seed=s),
    "diagonal": lambda h, s: diagonal(h, 12, seed=s),
    "density": lambda h, s: spectral_density(h, probes=12, steps=1, seed=s),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_neighbouring_seeds_share_no_vector(name):
    seen = []
    operator = curvature.Operator(lambda v: seen.append(tuple(v[0].tolist())) or [3 * v[0]], [torch.zeros(60)])
    for seed in range(3):
        ESTIMATORS[name](operator, seed)
    assert len(seen) >= 3 * 12
    assert len(set(seen)) == len(seen)


def test_estimates_of_neighbouring_seeds_are_spread_as_far_as_independent_ones():
    matrix, samples = networks_like(), 20
    n, trace_of = len(matrix), float(matrix.trace())
    known = math.sqrt(2 * n / (n + 2) * (float(matrix.norm()) ** 2 - trace_of**2 / n) / samples)
    values = [trace(from_matrix(matrix), samples, method="hutchinson", seed=s).value for s in range(10)]
    assert 0.5 < np.std(values, ddof=1) / known < 1.6


def test_a_subspace_taken_exactly_is_worth_its_products():
    """Where few eigenvalues stand out; the reason why xtrace is the default."""
    matrix = networks_like()
    spread = {
        m: np.std([trace(from_matrix(matrix), 24, method=m, seed=1000 * s).value for s in range(40)]) for m in METHODS
    }
    assert spread["xtrace"] < spread["hutch++"] < spread["hutchinson"] / 3


@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
@pytest.mark.parametrize("rank", [1, 4])
def test_the_trace_of_a_low_rank_is_exact(method, rank):
    factor = torch.randn(30, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = trace(from_matrix(factor @ factor.T), 24, method=method)
    assert estimate.value == pytest.approx(float((factor**2).sum()), rel=1e-10)
    assert abs(estimate.standard_error) < 1e-8


def test_the_error_of_a_trace_counts_what_rounding_may_hide():
    """A bulk of tiny eigenvalues, each product of which is rounding beside the top one, but not their sum."""
    values = torch.full((100_000,), 2e-9)
    values[0] = 1.0
    found = trace(curvature.Operator(lambda v: [values * v[0]], [values]), 10)
    low, high = found.interval
    assert low < float(values.double().sum()) < high
    assert found.standard_error < 1e-2


@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
def test_the_trace_of_a_small_matrix_is_exact(method):
    matrix = networks_like(4, outliers=(3.0,))
    assert trace(from_matrix(matrix), 30, method=method).value == pytest.approx(float(matrix.trace()), rel=1e-10)


@every_method
def test_products_are_counted(method):
    calls = []
    matrix = networks_like()
    operator = curvature.Operator(lambda v: calls.append(1) or [matrix @ v[0]], [torch.zeros(60, dtype=torch.float64)])
    assert trace(operator, 24, method=method).products == len(calls) == 24


def test_the_frobenius_norm():
    matrix = networks_like()
    estimates = [frobenius_norm(from_matrix(matrix), 60, seed=1000 * s) for s in range(60)]
    z = [(e.value - float(matrix.norm())) / e.standard_error for e in estimates]
    assert abs(np.mean(z)) < 0.7
    assert np.mean(np.abs(z) < 3) > 0.9


def test_the_diagonal_and_its_errors():
    matrix = networks_like()
    mean, error = diagonal(from_matrix(matrix), 200)
    z = (mean[0] - matrix.diagonal()) / error[0]
    assert float(z.abs().max()) < 5
    assert 0.7 < float(z.square().mean().sqrt()) < 1.4


def test_a_diagonal_operator_is_met_exactly():
    matrix = torch.diag(torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))
    mean, error = diagonal(from_matrix(matrix), 2)
    assert torch.equal(mean[0], matrix.diagonal())
    assert float(error[0].abs().max()) == 0


def test_errors_of_a_large_diagonal_are_no_rounding():
    """In float32, where the entries are a million times as large as what they scatter by."""
    noise = 1e-4 * torch.randn(80, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = noise + noise.T + 100 * torch.eye(80, dtype=torch.float64)
    beside = matrix - torch.diag(matrix.diagonal())
    _, error = diagonal(from_matrix(matrix.float()), 40)
    assert float(error[0].norm()) == pytest.approx(float(beside.norm()) / math.sqrt(40), rel=0.1)


# --- the spectral density ---------------------------------------------------------------------------------------------


def test_with_as_many_steps_as_eigenvalues_nodes_are_the_spectrum():
    matrix = networks_like()
    density = spectral_density(from_matrix(matrix), probes=1, steps=60)
    torch.testing.assert_close(density.nodes[0], torch.linalg.eigvalsh(matrix), rtol=0, atol=1e-8)
    assert float(density.weights.sum()) == pytest.approx(1)


def test_quadrature_is_exact_for_polynomials_of_the_random_vectors():
    """Weights are right: mean of x^p is z'H^p z / z'z, up to degree 2 * steps - 1."""
    matrix = networks_like()
    density = spectral_density(from_matrix(matrix), probes=3, steps=5)
    for probe in range(3):
        z = torch.cat([t.reshape(-1) for t in curvature.blocks.random_block(from_matrix(matrix), 1, 0, probe)[0]])
        for power in range(10):
            expected = z @ torch.linalg.matrix_power(matrix, power) @ z / (z @ z)
            found = (density.nodes[probe] ** power * density.weights[probe]).sum()
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_means_over_the_spectrum_are_honest():
    """Of a function that does not hang on the top eigenvalue alone: then eight samples are too skewed for any interval."""
    matrix = networks_like()
    values = torch.linalg.eigvalsh(matrix)
    z = []
    for seed in range(40):
        found = spectral_density(from_matrix(matrix), probes=8, steps=12, seed=100 * seed).mean(torch.sigmoid)
        z.append((found.value - float(torch.sigmoid(values).mean())) / found.standard_error)
    assert np.mean(np.abs(z) < 3.5) > 0.9


def test_the_blurred_density_is_that_of_the_spectrum():
    matrix = networks_like(200, outliers=(5.0, 3.0))
    density = spectral_density(from_matrix(matrix), probes=24, steps=40)
    points = density.grid(200)
    found, error = density.at(points, width=0.2)
    expected = torch.tensor(
        np.mean([stats.norm.pdf(points.numpy(), v, 0.2) for v in torch.linalg.eigvalsh(matrix).numpy()], axis=0)
    )
    assert float(((found - expected).abs() / (5 * error + 0.01)).max()) < 1
    assert float(torch.trapezoid(found, points)) == pytest.approx(
        1, abs=1e-2
    )  # the grid ends five default widths beyond


@pytest.mark.parametrize(("center", "around"), [(0.1, 0.0), (0.0, 0.0), (1e6, 5.0), (-1e-9, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_density_of_a_nearly_constant_spectrum_has_the_integral_one(center, around, dtype):
    matrix = torch.diag(center + around * torch.linspace(-1, 1, 50, dtype=dtype))
    density = spectral_density(from_matrix(matrix), probes=2, steps=10)
    points = density.grid()
    assert float(torch.trapezoid(density.at(points)[0], points)) == pytest.approx(1, abs=1e-3)


def test_the_share_below_zero():
    matrix = rotated(torch.cat([torch.full((30,), -1.0), torch.full((70,), 2.0)]).double())
    found = spectral_density(from_matrix(matrix), probes=40, steps=10).below(0.0)
    assert abs(found.value - 0.3) < 4 * found.standard_error
    assert found.products == 400


def test_an_invariant_subspace_leaves_nodes_without_weight():
    density = spectral_density(from_matrix(3 * torch.eye(6, dtype=torch.float64)), probes=2, steps=4)
    assert (density.nodes * density.weights).sum(1).tolist() == pytest.approx([3.0, 3.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda h: trace(h, 3), "samples must be at least 4"),
        (lambda h: trace(h, 5, method="hutch++"), "samples must be at least 6"),
        (lambda h: trace(h, method="hutch"), "method must be one of xtrace"),
        (lambda h: frobenius_norm(h, 1), "samples must be at least 2"),
        (lambda h: spectral_density(h, probes=0), "probes must be at least 1"),
        (lambda h: spectral_density(h).at(torch.zeros(1), width=0.0), "width must be above 0"),
    ],
)
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(from_matrix(networks_like()))


@pytest.mark.parametrize("estimator", [trace, frobenius_norm, diagonal, spectral_density])
def test_what_is_no_operator_and_what_is_not_finite(estimator):
    with pytest.raises(TypeError, match="operator must be an Operator"):
        estimator("matrix")
    broken = curvature.Operator(lambda v: [t * math.nan for t in v], [torch.zeros(8)])
    with pytest.raises(ValueError, match="NaN or infinite"):
        estimator(broken)
