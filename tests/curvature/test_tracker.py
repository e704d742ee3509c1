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


def crossing(t, n=80):
    """Two eigenvalues that cross at t = 1/2 while their vectors turn slowly."""
    angle = torch.tensor(0.3 * t, dtype=torch.float64)
    turn = torch.eye(n, dtype=torch.float64)
    turn[0, 2], turn[2, 0], turn[0, 0], turn[2, 2] = -angle.sin(), angle.sin(), angle.cos(), angle.cos()
    values = torch.linspace(0, 2, n, dtype=torch.float64)
    values[0], values[1] = 5 - t, 4 + t
    return from_matrix(turn @ torch.diag(values) @ turn.T)


def test_a_pair_keeps_its_identity_where_eigenvalues_cross():
    tracker, seen = EigenTracker(k=2, tol=1e-5), []
    for t in np.linspace(0, 1, 6):
        pairs = tracker.update(crossing(t))
        falling = max(range(2), key=lambda i: abs(pairs.vectors[i][0][0]))
        assert pairs.values[falling] == pytest.approx(5 - t, abs=1e-6)
        seen.append((tracker.identities[falling], tracker.identities[1 - falling]))
    assert falling == 1
    assert set(seen) == {(0, 1)}


def test_a_pair_that_was_not_there_before_has_a_new_identity():
    n, e = 60, torch.eye(60)
    bulk = torch.linspace(0, 1, n)
    tracker, found = EigenTracker(k=2, tol=1e-5), []
    for outliers in ({3: 5, 9: 4}, {3: 5, 20: 6}, {9: 4, 20: 6}):
        tracker.update(from_matrix(torch.diag(bulk + sum(value * e[i] for i, value in outliers.items()))))
        found.append(tracker.identities)
    assert found == [[0, 1], [2, 0], [2, 3]]


def outliers(*values):
    return operator([*values, *np.linspace(-1, 1, 64 - len(values))])


def test_above_a_threshold_more_pairs_are_followed_and_below_it_fewer_again():
    tracker = EigenTracker(threshold=2.0, tol=1e-6)
    for values in ([5], [5, 4.5, 4, 3.5], [5, 4.5, 4, 3.5, 3], [5, 1.5], [1.5, 1.2], [1.5, 1.2]):
        pairs = tracker.update(outliers(*values))
        above = sum(value > 2 for value in values)
        assert sum(value > 2 for value in pairs.values) == above
        assert pairs.values[:above] == pytest.approx(values[:above], rel=1e-6)
        assert tracker.shortfall is None
    assert len(pairs.values) == 1


def test_a_budget_is_kept_and_what_it_was_too_small_for_is_told():
    tracker, spent = EigenTracker(k=2, tol=1e-6, budget=6), []
    for _ in range(6):
        spent.append(tracker.update(outliers(5, 4.9, 3)).products)
        shortfalls = tracker.shortfall
        assert (shortfalls is None) == tracker.pairs.converged
    assert max(spent) <= 6
    assert tracker.products == sum(spent)
    tracker = EigenTracker(k=2, tol=1e-9, budget=4)
    tracker.update(outliers(5, 4.9, 3))
    assert tracker.shortfall.startswith("not converged after 4 products")
    crowded = EigenTracker(threshold=2.0, budget=10, tol=1e-2)
    crowded.update(outliers(90, 8, 7, 6, 5, 4, 3))
    assert (
        crowded.shortfall == "all 2 eigenvalues that a budget of 10 products allowed for are above 2; there may be more"
    )
    with pytest.raises(ValueError, match="budget must be at least 3, got 2"):
        EigenTracker(k=3, budget=2)


def test_without_a_budget_a_warning_tells():
    spread = operator(np.linspace(-1, 1, 3000), dtype=torch.float32)
    with pytest.warns(UserWarning, match="not converged after 100 products"):
        EigenTracker(tol=1e-6).update(spread)


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
        assert straight.identities == resumed.identities
        assert all(torch.equal(x[0], y[0]) for x, y in zip(a.vectors, b.vectors, strict=True))


def test_an_edge_of_a_bulk_is_found_though_the_other_end_is_far():
    H = operator([-500, *np.linspace(-3, 0.5, 200)])
    for seed in range(10):
        assert EigenTracker(target="values", seed=seed).update(H).values[0] == pytest.approx(0.5, rel=0.02)


def test_an_operator_of_another_size_is_refused():
    tracker = EigenTracker()
    tracker.update(operator(np.linspace(0, 1, 5)))
    with pytest.raises(ValueError, match="start vector 0 has other shapes than the operator's vectors"):
        tracker.update(operator(np.linspace(0, 1, 6)))
