import io
from itertools import combinations

import numpy as np
import pytest
import torch
from curvature.spectra import operator, rotated

from flatwise import vectors as V
from flatwise.curvature import EigenTracker, Operator, from_matrix, top_eigenpairs


def drifting(t, n=120):
    """A matrix that changes slowly with t: its top eigenvalues grow and its eigenvectors turn."""
    base = rotated([4 + t, 3 + t / 2, *np.linspace(-1, 2.8, n - 2)], seed=0)
    return from_matrix(base + 0.1 * t * rotated(np.linspace(-1, 1, n), seed=1))


def exact(H):
    n = H.size
    dense = torch.stack([H([e])[0] for e in torch.eye(n, dtype=torch.float64)])
    values, vectors = torch.linalg.eigh(dense)
    return values.flip(0), vectors.flip(1)


def test_it_follows_the_pairs_with_few_products_and_steady_signs():
    tracker, before = EigenTracker(k=2, tol=1e-3), None
    for t in np.linspace(0, 1, 8):
        H = drifting(t)
        pairs = tracker.update(H)
        assert tracker.pairs is pairs
        values, vectors = exact(H)
        assert pairs.values == pytest.approx(values[:2].tolist(), rel=1e-4)
        for i, v in enumerate(pairs.vectors):
            assert abs(v[0] @ vectors[:, i]) > 0.9999
        if before is not None:
            assert all(V.dot(a, b) > 0.9 for a, b in zip(before.vectors, pairs.vectors, strict=True))
            assert pairs.products < top_eigenpairs(H, 2, tol=1e-3).products
        before = pairs


def test_signs_agree_also_where_pairs_change_places():
    first, second = torch.diag(torch.tensor([5.0, 4, 1, 0])), torch.diag(torch.tensor([4.0, 5, 1, 0]))
    tracker = EigenTracker(k=2, tol=1e-6)
    before = tracker.update(from_matrix(first)).vectors
    after = tracker.update(from_matrix(second)).vectors
    assert V.dot(before[0], after[1]) > 0.99
    assert V.dot(before[1], after[0]) > 0.99


def test_an_eigenvalue_that_overtakes_is_found():
    n, e = 400, torch.eye(400)
    bulk = torch.linspace(0, 1, n)
    tracker = EigenTracker()
    assert tracker.update(from_matrix(torch.diag(bulk + 5 * e[0]))).values[0] == pytest.approx(5, rel=1e-3)
    pairs = tracker.update(from_matrix(torch.diag(bulk + 5 * e[0] + 6 * e[7])))
    assert pairs.values[0] == pytest.approx(6 + 7 / (n - 1), rel=1e-3)


def test_the_random_part_differs_from_update_to_update():
    H, drawn = operator(np.linspace(0, 1, 50)), []
    tracker = EigenTracker(tol=1e-12)
    for _ in range(4):
        first = []
        pairs = tracker.update(Operator(lambda v, first=first: first.append(V.clone(v)) or H(v), H.like))
        drawn.append(V.unit(V.project_out(first[0], pairs.vectors[0])))
    cosines = [abs(V.dot(a, b)) for a, b in combinations(drawn, 2)]
    assert max(cosines) < 0.6


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_resumed_tracker_goes_on_bitwise(stop):
    straight, resumed = EigenTracker(k=2, seed=4), EigenTracker(k=2, seed=4)
    times = [0, 0.2, 0.4, 0.6, 0.8]
    for t in times[:stop]:
        straight.update(drifting(t))
        resumed.update(drifting(t))
    file = io.BytesIO()
    torch.save(resumed.state_dict(), file)
    file.seek(0)
    resumed = EigenTracker(k=2, seed=4)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for t in times[stop:]:
        a, b = straight.update(drifting(t)), resumed.update(drifting(t))
        assert a.values == b.values
        assert a.residuals == b.residuals
        assert a.products == b.products
        assert all(torch.equal(x[0], y[0]) for x, y in zip(a.vectors, b.vectors, strict=True))


def test_an_operator_of_another_size_is_refused():
    tracker = EigenTracker()
    tracker.update(operator(np.linspace(0, 1, 5)))
    with pytest.raises(ValueError, match="start vector 0 has other shapes than the operator's vectors"):
        tracker.update(operator(np.linspace(0, 1, 6)))
