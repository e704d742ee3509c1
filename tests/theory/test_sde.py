"""The equations: drift and noise against brute force, what they refuse, and how fast simulations converge."""

import math

import pytest
import torch
from theory.equations import network, quadratic, slope
from torch import nn

from flatwise.theory import SCHEMES, Brownian, Ensemble, discrete, sam_sde, sgd_sde, simulate
from flatwise.theory.fields import gradient, sam

LR = 0.1


def test_drift_and_noise_have_the_mean_and_covariance_of_a_mini_batch():
    ensemble = Ensemble(network())
    equation = sam_sde(ensemble, LR, rho=0.1, order=3)
    x = ensemble.weights.unsqueeze(0)
    followed = ensemble.fields(equation.field, x)[:, 0]
    mean, apart = followed.mean(0), followed - followed.mean(0)
    found, noise = equation.coefficients(x)
    torch.testing.assert_close(found[0], -mean)
    torch.testing.assert_close(equation.drift(x)[0], -mean)
    torch.testing.assert_close(noise[:, 0].T @ noise[:, 0], LR * apart.T @ apart / len(apart))


def test_paths_do_not_know_of_each_other():
    ensemble = Ensemble(network())
    x = ensemble.weights + 0.1 * torch.arange(3, dtype=torch.float64).unsqueeze(1)
    together = ensemble.fields(sam(0.1), x)
    alone = torch.cat([ensemble.fields(sam(0.1), row.unsqueeze(0)) for row in x], dim=1)
    one_by_one = Ensemble(network(), vectorised=False).fields(sam(0.1), x)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(together, one_by_one)


def test_a_chunk_without_vmap_is_refused():
    with pytest.raises(ValueError, match="chunk has no effect"):
        Ensemble(network(), vectorised=False, chunk=2)


def test_each_path_can_have_a_batch_of_its_own():
    ensemble = Ensemble(network())
    x = ensemble.weights.expand(4, -1)
    which = torch.tensor([5, 0, 0, 3])
    found = ensemble.drawn(gradient, x, which)
    torch.testing.assert_close(found, ensemble.fields(gradient, x[:1])[which, 0])


# --- orders of convergence --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "order"), [(name, s.without_noise) for name, s in SCHEMES.items()])
def test_without_noise_a_scheme_has_its_order(scheme, order):
    equation = sgd_sde(quadratic([1.0, -2.0], [[1.0, 3.0]], [[0.0, 1.0]]), LR)
    exact = torch.tensor([math.exp(-1.0), 1 / 3 + (-2 - 1 / 3) * math.exp(-3.0)], dtype=torch.float64)
    steps = [0.1, 0.05, 0.025, 0.0125]
    errors = [(simulate(equation, 1.0, dt=dt, scheme=scheme).last[0] - exact).norm() for dt in steps]
    assert slope(steps, errors) == pytest.approx(order, abs=0.15)


CURVATURES, SHIFTS = [[3.0], [-1.0], [1.0]], [[0.0], [0.0], [0.0]]
STEPS = [1 / 8, 1 / 16, 1 / 32, 1 / 64]


def geometric(scheme, lr=0.5, paths=2000):
    """Simulated and exact ends of `dX = -a X dt + sqrt(lr / M) sum_k (a_k - a) X dW_k`, on the same noise."""
    equation = sgd_sde(quadratic([1.0], CURVATURES, SHIFTS), lr)
    a = torch.tensor(CURVATURES, dtype=torch.float64)[:, 0]
    volatilities = (a - a.mean()) * (lr / len(a)) ** 0.5
    fine = STEPS[-1] / 2
    w = Brownian(7, (paths, len(a)), fine).increment(0, round(1 / fine))
    exact = torch.exp(-a.mean() - (volatilities**2).sum() / 2 + w @ volatilities)
    runs = [simulate(equation, 1.0, paths=paths, dt=dt, resolution=fine, scheme=scheme, seed=7) for dt in STEPS]
    return [run.last[:, 0] for run in runs], exact


@pytest.mark.parametrize("scheme", SCHEMES)
def test_single_paths_converge_with_the_strong_order(scheme):
    found, exact = geometric(scheme)
    errors = [((f - exact) ** 2).mean().sqrt() for f in found]
    assert slope(STEPS, errors) == pytest.approx(SCHEMES[scheme].strong, abs=0.15)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_means_converge_with_the_weak_order(scheme):
    """The same noise in both, so that most of the sampling error drops out of the difference; of an even function."""
    found, exact = geometric(scheme, lr=0.1, paths=4000)
    errors = [abs(float((f**2 - exact**2).mean())) for f in found]
    assert slope(STEPS, errors) == pytest.approx(SCHEMES[scheme].weak, abs=0.3)


def test_the_noise_of_additive_equations_has_the_stationary_variance():
    """Ornstein and Uhlenbeck: variance lr * v / (2 a), with the variance v of the shifts."""
    equation = sgd_sde(quadratic([0.0], [[2.0], [2.0]], [[1.0], [-1.0]]), LR)
    run = simulate(equation, 4.0, paths=4000, dt=0.02, observe=lambda x: {"w": x[:, 0]}, every=200)
    variance = float(run.last.var())
    assert variance == pytest.approx(LR / 4, rel=4 * math.sqrt(2 / 4000) + 0.02)


def test_the_equation_follows_the_method_with_an_error_linear_in_the_learning_rate():
    """On quadratics both means are known: (1 - lr a)^n and exp(-a t), so the gap of the simulations must be theirs."""
    rates, gaps = [0.2, 0.1, 0.05], []
    for lr in rates:
        objective = quadratic([1.0], [[1.0], [1.0]], [[0.5], [-0.5]])
        many = {"paths": 4000, "observe": lambda x: {"w": x[:, 0]}, "seed": 3}
        taken = discrete(Ensemble(objective), gradient, lr, round(1 / lr), **many)
        followed = simulate(sgd_sde(objective, lr), 1.0, dt=lr / 8, **many)
        gap = float(followed.mean("w")[-1] - taken.mean("w")[-1])
        expected = math.exp(-1) - (1 - lr) ** round(1 / lr)
        assert gap == pytest.approx(expected, abs=4 * float(followed.standard_error("w")[-1]) * 2**0.5 + lr / 16)
        gaps.append(expected)
    assert slope(rates, gaps) == pytest.approx(1.0, abs=0.1)


def test_the_discrete_method_is_sam():
    ensemble = Ensemble(network())
    run = discrete(ensemble, sam(0.1), LR, 3, paths=2, seed=5)
    which = torch.Generator().manual_seed(5)
    x = ensemble.weights.expand(2, -1)
    for _ in range(3):
        x = x - LR * ensemble.drawn(sam(0.1), x, torch.randint(6, (2,), generator=which))
    assert torch.equal(run.last, x)
    assert run.times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3])


# --- noise ------------------------------------------------------------------------------------------------------------


def test_coarse_steps_see_the_sum_of_the_fine_ones():
    motion = Brownian(3, (2, 4), 0.25)
    torch.testing.assert_close(motion.increment(4, 3), sum(motion.increment(i) for i in (4, 5, 6)))


def test_increments_are_independent_normals_with_the_variance_of_their_time():
    values = Brownian(1, (50_000,), 0.25).increment(0, 8)
    assert float(values.var()) == pytest.approx(2.0, rel=0.03)
    assert abs(float(values.mean())) < 4 * (2 / 50_000) ** 0.5
    other = Brownian(1, (50_000,), 0.25).increment(8, 8)
    assert abs(float((values * other).mean())) < 4 * 2 / 50_000**0.5


# --- what is refused --------------------------------------------------------------------------------------------------


class Fused(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LayerNorm(6), nn.Tanh())


class Normalised(nn.Sequential):
    def __init__(self):
        super().__init__(nn.BatchNorm1d(6), nn.Tanh())


class Dropped(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Dropout(0.5), nn.Tanh())


def test_a_wrong_third_derivative_is_found_out():
    with pytest.raises(RuntimeError, match="LayerNorm"):
        sam_sde(network(Fused), LR, rho=0.1, order=3)
    sam_sde(network(Fused), LR, rho=0.1, order=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("middle", [nn.Tanh, nn.ReLU, nn.GELU])
def test_a_right_third_derivative_is_not(middle, dtype):
    sam_sde(network(middle, dtype), LR, rho=0.1, order=3)


def test_the_losses_are_an_objective_or_its_ensemble():
    objective = network()
    one, other = (discrete(losses, gradient, LR, 2) for losses in (objective, Ensemble(objective)))
    assert torch.equal(one.last, other.last)
    for make in (lambda m: sam_sde(m, LR, rho=0.1), lambda m: discrete(m, gradient, LR, 2)):
        with pytest.raises(TypeError, match=r"must be a flatwise.Objective.* got Linear"):
            make(nn.Linear(2, 1))


def test_what_is_no_function_of_the_weights_is_refused():
    for middle, words in [(Normalised, "BatchNorm"), (Dropped, "random")]:
        with pytest.raises(ValueError, match=words):
            sgd_sde(network(middle), LR)
        sgd_sde(network(middle, mode="eval"), LR)


def test_batches_of_several_sizes_are_refused():
    objective = network()
    with pytest.raises(ValueError, match="sizes"):
        sgd_sde(objective.on([objective.data[0], tuple(t[:2] for t in objective.data[1])]), LR)


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ("multiple of dt", {"dt": 0.3}),
        ("multiple of resolution", {"dt": 0.1, "resolution": 0.04}),
        ("scheme", {"scheme": "milstein"}),
        ("paths", {"paths": 0}),
        ("start", {"start": torch.zeros(3)}),
        ("every", {"every": 0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(words, settings):
    with pytest.raises(ValueError, match=words):
        simulate(sgd_sde(network(), LR), 1.0, **settings)
