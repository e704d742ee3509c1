"""Eigen-SAM: the displacement for a given vector, and the vector that it tracks on quadratics with a known spectrum."""

import pytest
import torch
from methods.quadratics import displaced_requests, evaluate_around, state_at
from reference import transcriptions

from flatwise.methods import SAM, EigenSAM, drive

RHO, ALPHA = 0.3, 0.5
NEVER = 10**6


def basis(dimension, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))[0]


def matrix(spectrum, seed=0):
    """A symmetric matrix with the given eigenvalues in random directions; its eigenvectors are the columns of the basis."""
    q = basis(len(spectrum), seed)
    return q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.T, q


H, Q = matrix([9.0, 4.0, 1.0, 0.5, -1.0, 0.1])
W = torch.linspace(-1, 1, 6, dtype=torch.float64)
G = H @ W


def given(vector, alpha=ALPHA, w=W):
    """A method and a state between two refreshes, with the eigenvector given."""
    method = EigenSAM(rho=RHO, alpha=alpha, every=NEVER)
    state = state_at(method, w, step=1)
    state.vectors["eigenvector"] = [vector]
    state.numbers["next_refresh"] = NEVER
    return method, state


def displacement(vector, alpha=ALPHA, w=W):
    """Where Eigen-SAM looks, and the direction that it returns."""
    method, state = given(vector, alpha, w)
    places, found = displaced_requests(method, w, H, state)
    assert len(places) == 1
    return places[0], found


def test_the_displacement_is_the_papers():
    epsilon, found = displacement(Q[:, 0])
    expected = transcriptions.eigen_sam_displacement([G], [Q[:, 0]], RHO, ALPHA)[0]
    torch.testing.assert_close(epsilon, expected)
    torch.testing.assert_close(found, H @ (W + expected))


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0])
def test_its_norm_and_its_alignment_have_closed_forms(alpha):
    v = Q[:, 0]
    c = (G @ v / G.norm()).item()
    epsilon, _ = displacement(v, alpha)
    torch.testing.assert_close(epsilon.norm().item(), transcriptions.eigen_sam_length(RHO, alpha, c))
    cosine = (epsilon @ v / epsilon.norm()).abs().item()
    torch.testing.assert_close(cosine, transcriptions.eigen_sam_alignment(alpha, c))


@pytest.mark.parametrize(("alpha", "alignment"), [(0.05, 0.060), (0.1, 0.109), (0.2, 0.206)])
def test_the_published_alignments_for_a_poorly_aligned_gradient(alpha, alignment):
    c = 0.01
    g_hat, v_perp = Q[:, 1], Q[:, 0]
    v = c * g_hat + (1 - c**2) ** 0.5 * v_perp
    w = torch.linalg.solve(H, g_hat)
    epsilon, _ = displacement(v, alpha, w)
    assert abs(epsilon @ v / epsilon.norm()).item() == pytest.approx(alignment, abs=5e-4)


def test_the_sign_of_the_vector_does_not_matter():
    assert torch.equal(displacement(Q[:, 0])[1], displacement(-Q[:, 0])[1])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_vector_along_the_gradient_adds_nothing(sign):
    epsilon, _ = displacement(sign * G / G.norm())
    torch.testing.assert_close(epsilon, RHO * G / G.norm())


def test_a_vector_orthogonal_to_the_gradient_adds_nothing():
    """The sign of zero is zero."""
    w = torch.zeros(6, dtype=torch.float64)
    w[0] = 1.0
    v = torch.zeros(6, dtype=torch.float64)
    v[1] = 1.0
    method, state = given(v, w=w)
    places, _ = displaced_requests(method, w, torch.eye(6, dtype=torch.float64), state)
    assert torch.equal(places[0], RHO * w)
    assert state.notes["alignment_displacement_tracked"] == 0


def test_alpha_zero_is_sam_bitwise():
    method, state = given(Q[:, 0], alpha=0.0)
    sam = SAM(rho=RHO)
    found = drive(method, evaluate_around(W, H), state)
    assert torch.equal(found[0], drive(sam, evaluate_around(W, H), state_at(sam, W))[0])


def test_a_zero_gradient_is_not_a_nan():
    epsilon, found = displacement(Q[:, 0], w=torch.zeros(6, dtype=torch.float64))
    assert torch.isfinite(epsilon).all()
    assert torch.isfinite(found).all()


def test_at_a_zero_gradient_nothing_is_aligned():
    w = torch.zeros(6, dtype=torch.float64)
    method, state = given(Q[:, 0], w=w)
    displaced_requests(method, w, H, state)
    assert state.notes == {"alignment_gradient_tracked": 0, "alignment_displacement_tracked": 0}


def test_along_the_top_eigenvector_the_multiplier_is_the_derived_one():
    """On a quadratic: 1 - lr l (1 + rho l kappa / |g|) with kappa = 1 + alpha (1 - c^2) / |c|."""
    lr, top = 0.01, 9.0
    v = Q[:, 0]
    c = (G @ v / G.norm()).item()
    kappa = 1 + ALPHA * (1 - c**2) / abs(c)
    _, found = displacement(v)
    after = (W - lr * found) @ v
    expected = (1 - lr * top * (1 + RHO * top * kappa / G.norm())) * (W @ v)
    torch.testing.assert_close(after, expected)


SPECTRA = {
    "gap": [10.0, 3.0, 1.0, 0.5, 0.0, -1.0],
    "larger negative": [3.0, 2.0, 0.5, 0.0, -1.0, -4.0, -10.0],
    "much larger negative": [1.0, 0.5, 0.2, 0.1, -0.5, -20.0],
    "all negative": [-1.0, -3.0, -5.0, -9.0],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_tracked_vector_belongs_to_the_largest_algebraic_eigenvalue(name):
    h, q = matrix(SPECTRA[name], seed=3)
    method = EigenSAM(rho=0.01, every=1, iterations=5)
    w = torch.linspace(-1, 1, len(SPECTRA[name]), dtype=torch.float64)
    state = state_at(method, w)
    for step in range(30):
        state.step = step
        drive(method, evaluate_around(w, h), state)
    v = state.vectors["eigenvector"][0]
    torch.testing.assert_close(v.norm().item(), 1.0)
    assert abs(v @ q[:, 0]).item() > 0.99


def probes_per_step(every, iterations, steps):
    """How many requests of a run were probes, step by step."""
    method = EigenSAM(rho=0.1, every=every, iterations=iterations)
    state = state_at(method, W)
    requests, evaluate, counts = [], evaluate_around(W, H), []
    for step in range(steps):
        state.step = step
        requests.clear()
        drive(method, lambda at: requests.append(at) or evaluate(at), state)
        counts.append((len(requests), sum(at.probe for at in requests)))
    return counts


@pytest.mark.parametrize(("every", "iterations"), [(3, 2), (1, 1), (4, 5)])
def test_refreshes_come_at_global_steps_zero_every_twice_every(every, iterations):
    counts = probes_per_step(every, iterations, 9)
    for step, (evaluations, probes) in enumerate(counts):
        refreshed = step % every == 0
        assert evaluations - probes == 2
        assert probes in ((iterations, iterations + 1) if refreshed else (0,)), step
    assert counts[0] == (iterations + 3, iterations + 1)


def test_refreshes_start_from_the_previous_vector():
    """One iteration a refresh would never arrive from a fresh start vector."""
    h, q = matrix([2.0, 1.5, 1.2, 1.0, 0.8, 0.5], seed=5)
    method = EigenSAM(rho=0.01, every=1, iterations=1)
    state = state_at(method, W)
    alignments = []
    for step in range(60):
        state.step = step
        drive(method, evaluate_around(W, h), state)
        alignments.append(abs(state.vectors["eigenvector"][0] @ q[:, 0]).item())
    assert alignments[-1] > 0.99
    assert alignments[-1] > alignments[0]


def test_the_start_vector_depends_on_the_seed_alone():
    def first(seed):
        method = EigenSAM(rho=0.1, every=1, iterations=1)
        state = state_at(method, W)
        state.seed = seed
        drive(method, evaluate_around(W, H), state)
        return state.vectors["eigenvector"][0]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
