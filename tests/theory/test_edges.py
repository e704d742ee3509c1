import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatwise.theory import adam_edge, eigen_sam_edge, gd_edge, heavy_ball_edge, nesterov_edge, sam_edge, usam_edge

lrs = st.floats(1e-4, 10)
rhos = st.floats(1e-4, 10)
norms = st.floats(1e-6, 1e3)
momenta = st.floats(0, 0.99)
alignments = st.floats(-1, 1)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "edge"),
    [
        ((0.1, 0.1, 1), 10),
        ((0.1, 0.1, 0.01), 1.36510),
        ((0.03, 1, 0.1), 2.53247),
        ((0.3, 0.3, 0.05), 0.974048),
        ((0.1, 1e-4, 1), 19.96016),
    ],
)
def test_sam_edge_has_the_known_values(arguments: tuple[float, ...], edge: float) -> None:
    assert sam_edge(*arguments) == pytest.approx(edge, rel=4e-6)


def test_the_plain_edges() -> None:
    assert gd_edge(0.1) == 20
    assert heavy_ball_edge(0.1, 0.9) == pytest.approx(38)
    assert nesterov_edge(0.1, 0.9) == pytest.approx(3.8 / 0.28)
    assert heavy_ball_edge(0.3, 0.0) == nesterov_edge(0.3, 0.0) == gd_edge(0.3)
    assert usam_edge(0.1, 0.1) == 10
    assert adam_edge(0.1) == adam_edge(0.1, 0.9) == pytest.approx(380)
    assert heavy_ball_edge(0.1, 0.9, 0.9) == pytest.approx(380)
    assert adam_edge(0.3, 0.0) == gd_edge(0.3)


def test_limits() -> None:
    assert sam_edge(0.1, 0, 3.0) == sam_edge(0.1, 0, 0) == usam_edge(0.1, 0) == 20
    assert sam_edge(0.1, 0.1, 0) == 0
    assert sam_edge(0.1, 0, 1, momentum=0.9) == pytest.approx(heavy_ball_edge(0.1, 0.9))
    assert sam_edge(0.1, 0.1, 1e-300) == pytest.approx(math.sqrt(2e-300 / 0.01), rel=1e-6)
    assert sam_edge(0.1, 1e-13, 1.0) == pytest.approx(20, rel=1e-10)  # (sqrt(1 + x) - 1) / x would have lost it


def test_eigen_sam_edge_at_the_ends_of_the_alignment() -> None:
    assert eigen_sam_edge(0.1, 0.1, 0.0, 0.5, 0.0) == sam_edge(0.1, 0.1, 0.5)
    assert eigen_sam_edge(0.1, 0.1, 0.2, 0.5, 0.0) == 0
    assert eigen_sam_edge(0.1, 0.0, 0.2, 0.5, 0.0) == 20
    assert eigen_sam_edge(0.1, 0.1, 0.2, 0.5, 1.0) == pytest.approx(sam_edge(0.1, 0.1, 0.5))
    assert eigen_sam_edge(0.1, 0.1, 0.2, 0.5, 1 + 1e-7) == pytest.approx(sam_edge(0.1, 0.1, 0.5))
    assert eigen_sam_edge(0.1, 0.1, 1e9, 0.5, 1 + 1e-7) == pytest.approx(sam_edge(0.1, 0.1, 0.5))
    assert eigen_sam_edge(0.1, 0.1, 0.2, 0.5, 1e-12) < 1e-4


@given(lrs, rhos, norms, momenta)
def test_the_sam_edge_is_where_its_quadratic_equation_holds(lr: float, rho: float, norm: float, beta: float) -> None:
    x = sam_edge(lr, rho, norm, beta)
    assert lr * x + lr * rho * x**2 / norm == pytest.approx(2 * (1 + beta), rel=1e-9)


@given(lrs, rhos, st.floats(0, 5), norms, alignments.filter(lambda c: abs(c) > 1e-6))
def test_the_eigen_sam_edge_is_the_sam_edge_at_rho_kappa(
    lr: float, rho: float, alpha: float, norm: float, c: float
) -> None:
    kappa = 1 + alpha * (1 - c * c) / abs(c)
    assert eigen_sam_edge(lr, rho, alpha, norm, c) == pytest.approx(sam_edge(lr, rho * kappa, norm), rel=1e-9)
    assert eigen_sam_edge(lr, rho, alpha, norm, c) == eigen_sam_edge(lr, rho, alpha, norm, -c)


@given(lrs, rhos, norms, st.floats(1.01, 100))
def test_the_sam_edge_is_below_gd_and_monotone(lr: float, rho: float, norm: float, factor: float) -> None:
    rounding = 1 + 1e-12
    edge = sam_edge(lr, rho, norm)
    assert 0 < edge <= gd_edge(lr) * rounding
    assert edge <= sam_edge(lr, rho, norm * factor) * rounding
    assert sam_edge(lr, rho * factor, norm) <= edge * rounding
    assert sam_edge(lr * factor, rho, norm) < edge
    assert usam_edge(lr, rho) == pytest.approx(sam_edge(lr, rho, 1.0))
    if rho / (lr * norm) > 1e-6:
        assert edge < gd_edge(lr)


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_tensors_broadcast_and_keep_their_precision() -> None:
    lr, norm = torch.tensor([[0.1], [0.3]], dtype=torch.float64), torch.tensor([1.0, 0.01, 0.0], dtype=torch.float64)
    edges = sam_edge(lr, 0.1, norm)
    assert edges.shape == (2, 3)
    assert edges.dtype == torch.float64
    expected = [[sam_edge(a, 0.1, g) for g in norm.tolist()] for a in lr.flatten().tolist()]
    torch.testing.assert_close(edges, torch.tensor(expected, dtype=torch.float64))
    mixed = eigen_sam_edge(0.1, 0.1, torch.tensor([0.0, 0.2]), 0.5, 0.0)
    torch.testing.assert_close(mixed, torch.tensor([sam_edge(0.1, 0.1, 0.5), 0.0]))
    assert mixed.dtype == torch.float32
    assert gd_edge(torch.tensor([1, 2])).tolist() == [2.0, 1.0]
    assert sam_edge(torch.tensor(0.1, dtype=torch.float16), 0.1, 1.0).dtype == torch.float32


def test_numbers_of_any_kind_give_a_float() -> None:
    for one in (1, 1.0, np.float32(1), np.float64(1), np.int64(1)):
        edge = sam_edge(0.1, 0.1, one)
        assert type(edge) is float
        assert edge == 10


# --- what is refused --------------------------------------------------------------------------------------------------

FUNCTIONS: dict[Callable[..., object], dict[str, float]] = {
    gd_edge: {"lr": 0.1},
    heavy_ball_edge: {"lr": 0.1, "momentum": 0.9, "dampening": 0.5},
    adam_edge: {"lr": 0.1, "beta1": 0.9},
    nesterov_edge: {"lr": 0.1, "momentum": 0.9},
    sam_edge: {"lr": 0.1, "rho": 0.1, "gradient_norm": 1.0, "momentum": 0.0},
    usam_edge: {"lr": 0.1, "rho": 0.1},
    eigen_sam_edge: {"lr": 0.1, "rho": 0.1, "alpha": 0.2, "gradient_norm": 1.0, "alignment": 0.3},
}
OUTSIDE = {
    "lr": [0.0, -0.1],
    "rho": [-0.1],
    "alpha": [-1e-9],
    "gradient_norm": [-1.0],
    "momentum": [-0.1, 1.0],
    "dampening": [-0.1, 1.0],
    "beta1": [-0.1, 1.0],
    "alignment": [1.001, -2.0],
}
PLACES = [(function, name) for function, arguments in FUNCTIONS.items() for name in arguments]


@pytest.mark.parametrize(("function", "name"), PLACES)
def test_values_out_of_range_are_named(function: Callable[..., object], name: str) -> None:
    for wrong in [*OUTSIDE[name], math.nan, math.inf, -math.inf]:
        with pytest.raises(ValueError, match=f"^{name} must be finite and .*, got {wrong}"):
            function(**FUNCTIONS[function] | {name: wrong})
        inside = FUNCTIONS[function][name]
        with pytest.raises(ValueError, match=f"^{name} must be .*, got "):
            function(**FUNCTIONS[function] | {name: torch.tensor([inside, wrong])})


@pytest.mark.parametrize(("function", "name"), PLACES)
def test_what_is_no_number_is_refused(function: Callable[..., object], name: str) -> None:
    for wrong in (None, "0.1", True, 1j, [0.1], torch.tensor(True), torch.tensor(1j)):
        with pytest.raises(TypeError, match=f"^{name} must be a real number"):
            function(**FUNCTIONS[function] | {name: wrong})


# --- the edges are where they are said to be --------------------------------------------------------------------------


def sam_on_a_parabola(h: float, lr: float, rho: float, beta: float, w: float, steps: int) -> list[float]:
    """The last 48 weights of SAM with heavy-ball momentum on `h * w**2 / 2`."""
    buffer, path = 0.0, []
    for _ in range(steps):
        gradient = h * w
        buffer = beta * buffer + h * (w + rho * math.copysign(1, gradient))
        w -= lr * buffer
        path.append(w)
    return path[-48:]


@pytest.mark.parametrize(
    ("lr", "rho", "h", "cycle"),
    [(0.1, 0.1, 10.0, 0.1), (0.1, 0.1, 12.0, 0.15), (0.1, 0.1, 19.0, 1.9), (0.5, 0.02, 0.4, 0.2 * 0.02 / 1.8)],
)
def test_sam_settles_in_the_two_cycle_that_is_its_edge(lr: float, rho: float, h: float, cycle: float) -> None:
    for start in (0.003, 1.0, -20.0):
        path = sam_on_a_parabola(h, lr, rho, 0.0, start, steps=3000)
        assert all(a * b < 0 for a, b in pairwise(path))
        assert abs(path[-1]) == pytest.approx(cycle, rel=1e-9)
        assert sam_edge(lr, rho, abs(h * path[-1])) == pytest.approx(h, rel=1e-9)


@pytest.mark.parametrize(("beta", "product"), [(0.3, 0.5), (0.3, 2.4), (0.5, 1.0), (0.5, 2.5), (0.9, 3.0), (0.9, 3.6)])
def test_with_momentum_steps_that_turn_back_are_at_the_derived_edge(beta: float, product: float) -> None:
    h, lr, rho = 10.0, product / 10, 0.1
    for start in (0.01, 1.0, -5.0):
        path = sam_on_a_parabola(h, lr, rho, beta, start, steps=6000)
        assert all(a * b < 0 for a, b in pairwise(path))
        assert sam_edge(lr, rho, abs(h * path[-1]), beta) == pytest.approx(h, rel=1e-9)


@pytest.mark.parametrize("product", [0.05, 0.2, 0.5])
def test_with_large_momentum_and_low_curvature_sam_stays_below_the_derived_edge(product: float) -> None:
    h, lr, rho, beta = 10.0, product / 10, 0.1, 0.9
    for start in (0.01, 0.3, 1.0, -5.0):
        path = sam_on_a_parabola(h, lr, rho, beta, start, steps=6000)
        assert max(h / sam_edge(lr, rho, abs(h * w), beta) for w in path) < 0.8


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 10), momenta)
def test_the_momentum_edge_is_where_frozen_steps_grow(lr: float, rho: float, norm: float, beta: float) -> None:
    edge = sam_edge(lr, rho, norm, beta)
    for h, stable in ((edge * 0.999, True), (edge * 1.001, False)):
        effective = h + rho * h * h / norm
        step = np.array([[1 + beta - lr * effective, -beta], [1, 0]])  # of (w, w before)
        assert bool(max(abs(np.linalg.eigvals(step))) < 1) is stable


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("dampening", [0.0, 0.3, 0.9])
def test_the_edge_with_dampening_is_where_steps_of_torch_grow(beta: float, dampening: float) -> None:
    lr = 0.1
    edge = heavy_ball_edge(lr, beta, dampening if beta else 0.0)  # torch dampens momentum alone
    for h, grows in ((edge * 0.99, False), (edge * 1.01, True)):
        w = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr, momentum=beta, dampening=dampening)
        for _ in range(4000):
            w.grad = h * w.detach()
            optimizer.step()
        assert (abs(w.item()) > 1) is grows


@given(st.floats(0.01, 1), momenta)
def test_the_edge_of_adam_is_where_preconditioned_steps_with_a_running_mean_grow(lr: float, beta: float) -> None:
    edge = adam_edge(lr, beta)
    assert heavy_ball_edge(lr, beta, beta) == pytest.approx(edge)
    for h, stable in ((edge * 0.999, True), (edge * 1.001, False)):
        effective = (1 - beta) * lr * h
        step = np.array([[1 - effective, -lr * beta], [(1 - beta) * h, beta]])  # of (w, running mean)
        assert bool(max(abs(np.linalg.eigvals(step))) < 1) is stable


def test_sam_in_several_dimensions_settles_at_the_edge_of_the_top_eigenvalue() -> None:
    h = torch.tensor([10, 9.5, 5, 2, 1, 0.1], dtype=torch.float64)
    w = torch.tensor([0.3, 2, -1, 1, 0.5, -3], dtype=torch.float64)
    for _ in range(3000):
        gradient = h * w
        w = w - 0.1 * h * (w + 0.1 * gradient / gradient.norm())
    assert sam_edge(0.1, 0.1, (h * w).norm().item()) == pytest.approx(10, rel=1e-6)


def test_with_noise_between_batches_the_median_stays_at_the_edge_until_the_noise_is_as_large_as_the_bounces() -> None:
    def median_ratio(spread: float) -> float:
        minima = (torch.randn(3000, generator=torch.Generator().manual_seed(0)) * spread * 0.1).tolist()
        w, ratios = 0.3, []
        for minimum in minima:
            gradient = 10 * (w - minimum)
            ratios.append(10 / sam_edge(0.1, 0.1, abs(gradient)))
            w -= 0.1 * 10 * (w - minimum + math.copysign(0.1, gradient))
        return float(np.median(ratios[1000:]))

    assert median_ratio(0.3) == pytest.approx(1, abs=0.03)
    assert median_ratio(3.0) < 0.8


@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0, 2), st.integers(0, 1000))
def test_one_eigen_sam_step_multiplies_the_top_component_as_the_edge_says(
    lr: float, rho: float, alpha: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    h = torch.rand(5, generator=generator, dtype=torch.float64).sort(descending=True).values + 0.1
    w = torch.randn(5, generator=generator, dtype=torch.float64)
    gradient = h * w
    norm, c = gradient.norm(), (gradient / gradient.norm())[0]
    v = torch.eye(5, dtype=torch.float64)[0]
    unit = gradient / norm
    displacement = rho * (unit + alpha * torch.sign(c) * (v - c * unit))
    after = w - lr * h * (w + displacement)

    kappa = 1 + alpha * (1 - c * c) / abs(c)
    assert after[0] / w[0] == pytest.approx((1 - lr * h[0] * (1 + rho * kappa * h[0] / norm)).item(), rel=1e-9)
    edge = eigen_sam_edge(lr, rho, alpha, norm.item(), c.item())
    assert lr * edge * (1 + rho * kappa.item() * edge / norm.item()) == pytest.approx(2, rel=1e-9)
