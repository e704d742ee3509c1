import gc
import math

import numpy as np
import pytest
import torch
from curvature.spectra import gram, operator, rotated, true_residuals
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import Operator, from_matrix, hessian, top_eigenpairs


def check(H, pairs, expected, tol):
    """The values, true residuals and orthonormal vectors of eigenpairs whose values are known."""
    scale = max(abs(float(x)) for x in expected)
    rounding = 30 * V.epsilon(H.like) * max(scale, 1.0)
    k = len(pairs.values)
    assert pairs.values == pytest.approx(sorted(map(float, expected), reverse=True)[:k], abs=tol * scale + rounding)
    assert pairs.values == sorted(pairs.values, reverse=True)
    assert true_residuals(H, pairs) == pytest.approx(pairs.residuals, abs=rounding)
    torch.testing.assert_close(gram(pairs.vectors), torch.eye(k), rtol=0, atol=1e-5)


# --- spectra ----------------------------------------------------------------------------------------------------------

SPECTRA = {
    "spread": np.linspace(-1, 4, 60),
    "outliers": [50, 30, 29, 7, *np.linspace(-0.5, 1, 60)],
    "cluster": [1, 1 - 1e-4, 1 - 2e-4, 1 - 3e-4, *np.linspace(-0.5, 0.9, 50)],
    "multiple": [5, 5, 5, 5, *np.linspace(-1, 4.5, 60)],
    "large negative": [-1000, -500, *np.linspace(-20, 3, 40)],
    "negative definite": np.linspace(-9, -0.3, 40),
    "few distinct": [2] * 20 + [1] * 20,
    "low rank": [3, 2] + [0] * 40,
    "identity": [1] * 12,
    "zero": [0] * 9,
    "tiny": 1e-9 * np.linspace(-1, 4, 30),
    "huge": 1e12 * np.linspace(-1, 4, 30),
}


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra(name, k):
    H = operator(SPECTRA[name])
    pairs = top_eigenpairs(H, k, tol=1e-9, max_products=2000)
    assert pairs.converged
    check(H, pairs, SPECTRA[name], 1e-9)


@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra_in_float32_at_the_default_tolerance(name):
    H = operator(SPECTRA[name], dtype=torch.float32)
    pairs = top_eigenpairs(H, 3)
    assert pairs.converged
    assert max(pairs.residuals) <= max(1e-2 * abs(pairs.values[0]), 1e-5 * max(map(abs, SPECTRA[name])))
    check(H, pairs, SPECTRA[name], 1e-2)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9), st.data())
def test_any_small_spectrum_with_any_multiplicities(eigenvalues, data):
    k = data.draw(st.integers(1, len(eigenvalues)))
    H = operator(eigenvalues, seed=len(eigenvalues))
    check(H, top_eigenpairs(H, k, tol=1e-9), eigenvalues, 1e-9)


def test_all_pairs_of_an_operator():
    H = operator(np.linspace(-3, 2, 8))
    check(H, top_eigenpairs(H, 8, tol=1e-12), np.linspace(-3, 2, 8), 1e-10)


def test_diagonal_matrices_leave_a_start_vector_alone():
    H = from_matrix(torch.diag(torch.tensor([1.0, 4, 2, 3])))
    for place in range(4):
        unit_vector = [torch.eye(4)[place]]
        assert top_eigenpairs(H, 2, start=unit_vector, tol=1e-5).values == pytest.approx([4, 3])


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_every_end_of_a_spectrum(name, which):
    H, spectrum = operator(SPECTRA[name]), sorted(map(float, SPECTRA[name]), reverse=True)
    pairs = top_eigenpairs(H, 3, tol=1e-9, which=which, max_products=2000)
    ends = {
        "largest": spectrum[:3],
        "smallest": spectrum[-3:],
        "both": spectrum[:3] + spectrum[-3:],
        "magnitude": sorted(sorted(spectrum, key=abs)[-3:], reverse=True),
    }
    scale = max(map(abs, spectrum))
    assert pairs.converged
    assert pairs.values == pytest.approx(ends[which], abs=1e-8 * scale + 1e-14)
    assert true_residuals(H, pairs) == pytest.approx(pairs.residuals, abs=1e-13 * max(scale, 1))


@pytest.mark.parametrize(
    ("which", "scipy"), [("largest", "LA"), ("smallest", "SA"), ("both", "BE"), ("magnitude", "LM")]
)
def test_ends_are_those_of_scipy_also_through_restarts(which, scipy):
    matrix = rotated(np.linspace(-1.1, 1, 150))
    k = 4 if which == "both" else 2
    expected = eigsh(matrix.numpy(), k=k, which=scipy, tol=1e-10)[0]
    pairs = top_eigenpairs(from_matrix(matrix), 2, tol=1e-7, which=which, max_basis=k + k + 12, max_products=3000)
    assert pairs.products > k + k + 12
    assert pairs.values == pytest.approx(sorted(expected, reverse=True), abs=1e-7)


@pytest.mark.parametrize(("name", "factor"), [("spread", 1), ("outliers", 1), ("large negative", 1), ("cluster", 3)])
def test_values_are_known_sooner_than_vectors_and_as_well_as_asked_for(name, factor):
    H, spectrum = operator(SPECTRA[name]), sorted(map(float, SPECTRA[name]), reverse=True)
    both = [top_eigenpairs(H, 2, tol=1e-4, target=target, max_products=1000) for target in ("vectors", "values")]
    assert both[1].products <= both[0].products
    assert both[1].converged
    assert both[1].values == pytest.approx(spectrum[:2], abs=factor * 1e-4 * abs(spectrum[0]))


FAR_ENDS = {
    "1000 over a bulk": ([1000, *np.linspace(-1, 0, 300)], "smallest"),
    "30 over a bulk": ([30, *np.linspace(-1, 0, 300)], "smallest"),
    "two over a bulk": ([100, 60, *np.linspace(-0.1, 0.05, 300)], "smallest"),
    "-1000 below a bulk": ([-1000, *np.linspace(-5, 0.5, 300)], "largest"),
    "both ends of a negative one": ([-500, *np.linspace(-3, 1, 300)], "both"),
    "falling to zero": ([*1000 * 0.6 ** np.arange(20), *np.zeros(300)], "largest"),
}


@pytest.mark.parametrize("name", FAR_ENDS)
def test_a_value_amid_a_bulk_does_not_pass_for_its_edge_since_the_other_end_is_far(name):
    spectrum, which = FAR_ENDS[name]
    H, ends = operator(spectrum), {"largest": [max(spectrum)], "smallest": [min(spectrum)]}
    expected = ends.get(which, [max(spectrum), min(spectrum)])
    for seed in range(10):
        pairs = top_eigenpairs(H, 1, which=which, target="values", seed=seed)
        assert pairs.converged
        assert pairs.values == pytest.approx(expected, rel=0.02)


def test_gaps_are_distances_to_the_next_eigenvalue_wanted_or_not():
    pairs = top_eigenpairs(operator([9, 7, 4, *np.linspace(-1, 1, 40)]), 2, tol=1e-8)
    assert pairs.gaps == pytest.approx([2, 2], rel=1e-6)
    assert top_eigenpairs(operator([9, 6]), 1, tol=1e-8).gaps == pytest.approx([3])
    assert top_eigenpairs(operator([5]), 1).gaps == [math.inf]


# --- restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
def test_restarts_find_the_same_with_bounded_memory(k):
    spectrum = np.linspace(-1, 1, 300)
    matrix = rotated(spectrum)
    calls, held = [], []

    def product(vector):
        calls.append(1)
        if len(calls) % 25 == 0:
            held.append(sum(issubclass(type(o), torch.Tensor) and o.shape == (300,) for o in gc.get_objects()))
        return [matrix @ vector[0]]

    H = Operator(product, [torch.zeros(300, dtype=torch.float64)])
    pairs = top_eigenpairs(H, k, tol=1e-3, max_basis=4 * k + 6, max_products=2000)
    assert pairs.converged
    assert pairs.products > 3 * (4 * k + 6)
    assert held
    assert max(held) <= 4 * k + 6 + 4
    check(from_matrix(matrix), pairs, spectrum, 1e-3)


def test_a_restart_costs_few_products():
    H = operator(np.linspace(-1, 1, 400))
    whole = top_eigenpairs(H, 2, tol=1e-3, max_basis=400, max_products=2000)
    restarted = top_eigenpairs(H, 2, tol=1e-3, max_products=2000)
    assert restarted.values == pytest.approx(whole.values, abs=1e-4)
    assert restarted.products < 3 * whole.products


# --- start vectors ----------------------------------------------------------------------------------------------------


def test_a_warm_start_saves_products():
    H = operator([4, 3.9, *np.linspace(-1, 3.5, 200)])
    cold = top_eigenpairs(H, 2, tol=1e-4)
    warm = top_eigenpairs(H, 2, tol=1e-4, start=cold.vectors)
    assert warm.products < cold.products
    check(H, warm, [4, 3.9, 3.5], 1e-4)
    trusted = top_eigenpairs(H, 2, tol=1e-4, start=cold.vectors, search=0)
    assert trusted.products <= 4
    check(H, trusted, [4, 3.9, 3.5], 1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_warm_start_at_the_wrong_eigenvector_finds_the_right_one(seed):
    values = torch.cat([torch.tensor([3.0, 4.0]), torch.rand(5000, generator=torch.Generator().manual_seed(0))])
    H = Operator(lambda v: [values * v[0]], [values])
    wrong = [torch.nn.functional.one_hot(torch.tensor(0), len(values)).float()]
    pairs = top_eigenpairs(H, start=wrong, seed=seed)
    assert pairs.values[0] == pytest.approx(4, rel=1e-3)
    assert pairs.products < 12


@pytest.mark.parametrize("seed", range(4))
def test_a_warm_start_searches_before_it_refines(seed):
    bulk = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    values = torch.cat([torch.tensor([3.0, 2.8, 2.6]), bulk, torch.tensor([3.5])])
    H = Operator(lambda v: [values * v[0]], [values])
    noise = V.random_like([values] * 3, seed + 50)
    near = [[torch.eye(3, len(values))[i] + 1e-4 * noise[i]] for i in range(3)]
    pairs = top_eigenpairs(H, 3, start=near, seed=seed)
    assert pairs.values == pytest.approx([3.5, 3, 2.8], rel=1e-3)
    assert pairs.products < 15


def test_starts_may_be_fewer_or_more_than_k_dependent_zero_or_of_another_dtype():
    H = operator(np.linspace(-1, 4, 30))
    v = [torch.ones(30)]
    for starts in (v, tuple(v), [v], [v, v, v], [V.scale(v, 0.0)], [v, [torch.arange(30.0).half()]], [[None]], []):
        check(H, top_eigenpairs(H, 2, tol=1e-6, start=starts), np.linspace(-1, 4, 30), 1e-6)
    assert torch.equal(v[0], torch.ones(30))


def test_the_seed_decides_everything():
    H = operator(np.linspace(-1, 4, 30))
    random = torch.get_rng_state()
    first, again, other = (top_eigenpairs(H, 2, seed=seed) for seed in (0, 0, 1))
    assert first.values == again.values
    assert torch.equal(first.vectors[1][0], again.vectors[1][0])
    assert first.values != other.values
    assert torch.equal(torch.get_rng_state(), random)


# --- vectors of all kinds ---------------------------------------------------------------------------------------------


def test_mixed_shapes_dtypes_and_nones():
    like = [torch.zeros(3, 4), None, torch.zeros(5, dtype=torch.float64), torch.zeros(()), torch.zeros(0, 3)]
    spectrum = np.linspace(-2, 5, 18)
    H = from_matrix(rotated(spectrum), like)
    pairs = top_eigenpairs(H, 3, tol=1e-4)
    check(H, pairs, spectrum, 1e-4)
    for v in pairs.vectors:
        assert [None if t is None else (t.shape, t.dtype) for t in v] == [
            None if t is None else (t.shape, t.dtype) for t in like
        ]


def test_a_none_in_the_template_restricts_the_operator():
    matrix = rotated(np.linspace(-2, 5, 10))
    full = from_matrix(matrix, [torch.zeros(6, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)])

    def product(vector):
        return full([vector[0], torch.zeros(4, dtype=torch.float64)])

    block = Operator(product, [full.like[0], None])
    pairs = top_eigenpairs(block, 6, tol=1e-10)
    assert pairs.values == pytest.approx(torch.linalg.eigvalsh(matrix[:6, :6]).flip(0).tolist())
    assert all(v[1] is None for v in pairs.vectors)


def test_half_precision_vectors_are_widened():
    H = operator([8, *np.linspace(-1, 2, 30)], dtype=torch.float32)
    low = Operator(lambda v: [t.bfloat16() for t in H([v[0].float()])], [torch.zeros(31, dtype=torch.bfloat16)])
    pairs = top_eigenpairs(low, tol=5e-2)
    assert pairs.values[0] == pytest.approx(8, rel=1e-2)
    assert pairs.vectors[0][0].dtype == torch.float32


def test_products_that_share_storage_or_leave_out_entries():
    same = Operator(lambda v: v, [torch.zeros(4)])
    assert top_eigenpairs(same, 2).values == pytest.approx([1, 1])
    first_only = Operator(lambda v: [v[0] * 3, None], [torch.zeros(2), torch.zeros(2)])
    assert top_eigenpairs(first_only, 3, tol=1e-5).values == pytest.approx([3, 3, 0], abs=1e-6)


# --- networks ---------------------------------------------------------------------------------------------------------


def network(kind):
    torch.manual_seed(0)
    if kind == "mlp":
        model, shape = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)), (5,)
    else:
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)
        model, shape = nn.Sequential(*layers), (1, 4, 4)
    data = [(torch.randn(n, *shape).double(), torch.randint(4, (n,))) for n in (12, 9)]
    return model.double(), data


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize(("kind", "mode"), [("mlp", "current"), ("cnn", "train"), ("cnn", "eval")])
def test_hessians_of_networks_against_dense_and_scipy(kind, mode):
    model, data = network(kind)
    H = hessian(Objective(model, loss, data, mode=mode))

    def flat_product(x):
        pieces = torch.from_numpy(np.array(x).reshape(-1)).split([t.numel() for t in H.like])
        product = H([p.view_as(t) for p, t in zip(pieces, H.like, strict=True)])
        return torch.cat([t.reshape(-1) for t in product]).numpy()

    dense = np.stack([flat_product(e) for e in np.eye(H.size)])
    assert np.abs(dense - dense.T).max() < 1e-12
    exact = np.linalg.eigvalsh(dense)
    assert exact[0] < -1e-3  # it has negative curvature too
    scipy = eigsh(LinearOperator((H.size, H.size), matvec=flat_product), k=4, which="LA", tol=1e-10)[0]
    pairs = top_eigenpairs(H, 4, tol=1e-8, max_products=500)
    check(H, pairs, exact, 1e-8)
    assert pairs.values == pytest.approx(sorted(scipy, reverse=True), rel=1e-8)
    rough = top_eigenpairs(H)
    assert rough.values[0] == pytest.approx(exact[-1], abs=rough.residuals[0])
    assert rough.products < 25


# --- the end of the search --------------------------------------------------------------------------------------------


def test_the_products_are_counted():
    H, calls = operator(np.linspace(-1, 4, 50)), []
    counted = Operator(lambda v: calls.append(1) or H(v), H.like)
    assert top_eigenpairs(counted, 2, tol=1e-6).products == len(calls)


def test_the_tolerance_is_relative_also_where_all_eigenvalues_are_negative():
    H = operator(np.linspace(-300, -100, 300))
    loose, tight = top_eigenpairs(H, tol=1e-2), top_eigenpairs(H, tol=1e-4)
    assert 1e-4 * 100 < loose.residuals[0] <= 1e-2 * 100
    assert tight.residuals[0] <= 1e-4 * 100
    assert loose.products < tight.products


def test_a_tolerance_below_rounding_ends_at_rounding():
    H = operator(np.linspace(-1, 4, 100), dtype=torch.float32)
    pairs = top_eigenpairs(H, tol=1e-12, max_products=99)
    assert pairs.converged
    assert pairs.values[0] == pytest.approx(4, rel=1e-6)


def test_a_spent_budget_is_told():
    H = operator(np.linspace(-1, 4, 200))
    with pytest.warns(
        UserWarning, match=r"^not converged after 5 products: the largest residual is .* raise max_products"
    ):
        pairs = top_eigenpairs(H, 2, tol=1e-8, max_products=5)
    assert not pairs.converged
    assert pairs.products == 5
    assert true_residuals(H, pairs) == pytest.approx(pairs.residuals)
    with pytest.warns(UserWarning, match="not converged after 3 products"):
        assert top_eigenpairs(H, 3, start=pairs.vectors, tol=1e-8, max_products=3).products == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be from 1 to the size of the operator, 6, got 0"),
        ({"k": 7}, ValueError, "k must be from 1 to the size of the operator, 6, got 7"),
        ({"k": 1.0}, TypeError, "k must be an integer, got 1.0"),
        ({"k": True}, TypeError, "k must be an integer, got True"),
        ({"tol": 0}, ValueError, "tol must be a finite number > 0, got 0"),
        ({"tol": -1e-3}, ValueError, "tol must be a finite number > 0"),
        ({"tol": math.nan}, ValueError, "tol must be a finite number > 0, got nan"),
        ({"k": 3, "max_products": 2}, ValueError, "max_products must be at least k = 3, got 2"),
        ({"max_basis": 4}, ValueError, "max_basis must be at least 5 for k = 1 and these start vectors, got 4"),
        ({"which": "LA"}, ValueError, "which must be one of largest, smallest, both, magnitude, got 'LA'"),
        ({"which": "both", "k": 4}, ValueError, "the operator has 6 eigenvalues, fewer than 4 from both ends"),
        ({"target": "pairs"}, ValueError, "target must be one of vectors, values, got 'pairs'"),
        ({"search": -1}, ValueError, "search must be at least 0, got -1"),
        ({"start": [torch.zeros(5)]}, ValueError, "start vector 0 has other shapes"),
        ({"start": [torch.zeros(6)] * 2}, ValueError, "start vector 0 has 2 entries, the operator's vectors have 1"),
        ({"start": [torch.full((6,), math.nan)]}, ValueError, "a start vector holds NaN or infinity"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        top_eigenpairs(operator(np.linspace(-1, 1, 6)), **arguments)


def test_bad_operators():
    with pytest.raises(TypeError, match=r"operator must be an Operator, as hessian or from_matrix make it, .* got str"):
        top_eigenpairs("hessian")
    with pytest.raises(ValueError, match="product 1 with the operator is NaN or infinite"):
        top_eigenpairs(Operator(lambda v: [v[0] * math.nan], [torch.zeros(3)]))
    with pytest.raises(ValueError, match="the operator's product has other shapes"):
        top_eigenpairs(Operator(lambda v: [torch.zeros(2)], [torch.zeros(3)]))
    with pytest.raises(ValueError, match="the size of the operator, 0, got 1"):
        top_eigenpairs(Operator(lambda v: v, [None]))
