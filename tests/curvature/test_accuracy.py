"""What is measured in float32 against the whole Hessian in float64, for every network of the table, initial and trained.

Lengths are relative to the largest absolute eigenvalue.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from curvature.brute_force import NETWORKS, STATES, problem
from scipy import stats
from test_objective import flat

from flatwise import vectors as V
from flatwise.curvature import diagonal, frobenius_norm, from_matrix, hessian, spectral_density, top_eigenpairs, trace

CLUSTER = 0.02
"""Eigenvalues that are closer have no eigenvectors of their own, only a subspace."""

ROUNDING = 2e-5
"""Of a product in float32; normalisation over few features makes it the largest."""

WITHOUT_FORWARD = {"LSTM", "cnn, GroupNorm and LayerNorm"}
"""torch has no forward derivative of a layer's backward."""


@dataclass(frozen=True)
class Engine:
    """What an engine promises besides what it says of itself, `H.error`."""

    name: str
    tol: float
    value: float  # the error of an eigenvalue
    vector: float  # what of a vector is outside of its eigenspace
    without: frozenset = frozenset()


ENGINES = [
    Engine("double", 1e-5, value=1e-4, vector=1e-3),
    Engine("forward", 1e-5, value=1e-4, vector=1e-3, without=frozenset(WITHOUT_FORWARD)),
    Engine("differences", 3e-3, value=1e-3, vector=3e-2),
    Engine("one-sided", 3e-3, value=1e-2, vector=0.1),
]

every_network = pytest.mark.parametrize("name", NETWORKS)
every_state = pytest.mark.parametrize("state", STATES)


def measured(p, engine, **options):
    return top_eigenpairs(hessian(p.objective(), engine.name), 2, tol=engine.tol, **options)


def check(p, pairs, expected, engine):
    """Values, eigenspaces and residuals, against the exact ones."""
    assert pairs.values == pytest.approx(expected, abs=engine.value * p.scale)
    for value, vector, residual in zip(pairs.values, map(flat, pairs.vectors), pairs.residuals, strict=True):
        assert p.outside(vector.double(), value, CLUSTER * p.scale) < engine.vector
        slack = (pairs.record.error + ROUNDING) * p.scale  # an estimated error is true within a factor of two
        assert p.residual(value, vector.double()) < residual + slack
        assert residual < p.residual(value, vector.double()) + 2 * slack


@every_network
@every_state
def test_top_eigenpairs(name, state):
    p = problem(name, state)
    pairs = measured(p, ENGINES[0])
    assert pairs.converged
    check(p, pairs, p.values[-2:].flip(0).tolist(), ENGINES[0])


ENDS = {
    "smallest": lambda values: values[:2],
    "both": lambda values: torch.cat([values[:2], values[-2:]]),
    "magnitude": lambda values: values[values.abs().argsort(descending=True)[:2]],
}


@pytest.mark.parametrize("name", ["mlp", "cnn, BatchNorm in training mode", "LSTM", "transformer encoder"])
@pytest.mark.parametrize("which", ENDS)
def test_eigenpairs_at_other_ends_of_the_spectrum(name, which):
    p = problem(name, "initial")
    pairs = measured(p, ENGINES[0], which=which)
    assert pairs.converged
    check(p, pairs, ENDS[which](p.values).sort(descending=True).values.tolist(), ENGINES[0])


@every_network
@pytest.mark.filterwarnings("ignore:not converged")  # where the estimated error of products comes near the tolerance
@pytest.mark.parametrize("engine", ENGINES[1:], ids=lambda e: e.name)
def test_top_eigenpairs_by_the_other_engines(name, engine):
    p = problem(name, "trained")
    if name in engine.without:
        with pytest.raises(RuntimeError, match=f'engine="{engine.name}" is not possible'):
            hessian(p.objective(), engine.name)
        return
    check(p, measured(p, engine), p.values[-2:].flip(0).tolist(), engine)


# --- the whole spectrum -----------------------------------------------------------------------------------------------


def on_network_and_matrix(p):
    """The operator as it is measured, and the exact matrix on the same random vectors."""
    H = hessian(p.objective())
    return H, from_matrix(p.matrix, like=H.like)


@every_network
def test_estimates_of_the_network_are_those_of_its_exact_matrix(name):
    """With the same random vectors nothing but rounding is between them."""
    p = problem(name, "trained")
    H, exact = on_network_and_matrix(p)
    total = p.values.abs().sum().item()
    for method in ("xtrace", "hutch++", "hutchinson"):
        found, expected = (trace(operator, 12, method=method) for operator in (H, exact))
        assert found.value == pytest.approx(expected.value, abs=1e-4 * total)
        assert found.standard_error == pytest.approx(expected.standard_error, abs=1e-4 * total)
    assert frobenius_norm(H, 6).value == pytest.approx(frobenius_norm(exact, 6).value, rel=1e-4)
    assert distance(diagonal(H, 6), diagonal(exact, 6)) < 1e-4 * p.scale
    density, reference = (spectral_density(operator, probes=2, steps=8) for operator in (H, exact))
    for power in (1, 2, 3):
        moment = density.mean(lambda x, n=power: x**n).value
        assert moment == pytest.approx(reference.mean(lambda x, n=power: x**n).value, abs=1e-4 * p.scale**power)


def distance(a, b):
    return max(V.norm(V.add(s, t, -1.0)).item() for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize("name", ["tied weights and an unused parameter", "frozen parameters"])
@pytest.mark.parametrize(("method", "each"), [("xtrace", 2), ("hutch++", 3)])
def test_the_trace_is_exact_where_the_subspace_is_the_range(name, method, each):
    """Also where the range is smaller than the space: unused parameters, and shifts of all logits, change nothing."""
    p = problem(name, "trained")
    H = hessian(p.objective())
    found = trace(H, each * H.size, method=method)
    assert found.value == pytest.approx(p.matrix.trace().item(), abs=ROUNDING * p.scale)
    assert found.standard_error < ROUNDING * p.scale


SEEDS = 40
FAR = 1e-5
"""Of a right test, how often it may fail by chance."""

ESTIMATES = {
    "xtrace": (lambda p, s: trace(dense(p), 16, seed=s), lambda p: p.matrix.trace()),
    "hutch++": (lambda p, s: trace(dense(p), 18, method="hutch++", seed=s), lambda p: p.matrix.trace()),
    "hutchinson": (lambda p, s: trace(dense(p), 12, method="hutchinson", seed=s), lambda p: p.matrix.trace()),
    "Frobenius norm": (lambda p, s: frobenius_norm(dense(p), 16, seed=s), lambda p: p.matrix.norm()),
    "first moment": (lambda p, s: density(p, s).mean(lambda x: x), lambda p: p.values.mean()),
    "second moment": (lambda p, s: density(p, s).mean(torch.square), lambda p: p.values.square().mean()),
    "mean of the exponential": (lambda p, s: density(p, s).mean(torch.exp), lambda p: p.values.exp().mean()),
}
"""Each with what it estimates."""


def dense(p):
    return from_matrix(p.matrix)


@functools.cache
def density(p, seed):
    return spectral_density(dense(p), probes=8, steps=6, seed=seed)


@pytest.mark.parametrize("name", ["cnn, BatchNorm in training mode", "multi-head attention"])
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_intervals_hold_as_often_as_they_say(name, estimate):
    """95 %, up to what chance allows, and 90 % at least: quadratic forms are skewed, which no interval from few samples sees."""
    p, (of, truth) = problem(name, "trained"), ESTIMATES[estimate]
    exact = truth(p).item()
    intervals = np.array([of(p, 1000 * seed).interval for seed in range(SEEDS)])
    hits = ((intervals[:, 0] <= exact) & (exact <= intervals[:, 1])).sum()
    assert hits >= stats.binom.ppf(FAR, SEEDS, 0.9)
    widths, errors = intervals[:, 1] - intervals[:, 0], np.abs(intervals.mean(1) - exact)
    assert widths.mean() < 12 * errors.mean()  # 4.9 for a normal whose standard error is known


@pytest.mark.parametrize("name", ["tied weights and an unused parameter", "frozen parameters"])
def test_the_share_of_eigenvalues_below(name):
    """Cumulative weights: with all steps only the random vectors are between them and the counted shares."""
    p = problem(name, "trained")
    found = spectral_density(dense(p), probes=20, steps=len(p.values))
    for quantile in (0.2, 0.8, 0.95):
        value = torch.quantile(p.values, quantile).item()
        share = found.below(value)
        exact = (p.values < value).double().mean().item()
        assert abs(share.value - exact) < 4.5 * share.standard_error + 1e-9
        assert share.standard_error < 0.05


def test_the_diagonal():
    p = problem("mlp", "trained")
    mean, error = diagonal(dense(p), 400)
    z = ((mean[0] - p.matrix.diagonal()) / error[0].clamp(min=1e-12)).abs()
    assert float(z.max()) < 5
    assert 0.7 < float(z.square().mean().sqrt()) < 1.4
