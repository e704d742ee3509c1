"""The gradient of v'Hv, against torch.func in float64, closed forms, and finite differences of eigenvalues."""

import dataclasses
import math

import pytest
import torch
from curvature.networks import Checkpointed, problem
from test_objective import batches, cross_entropy, flat, loss_of_flat_weights, unflat
from torch import nn
from torch.func import functional_call, grad

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import curvature_gradient, hessian, top_eigenpairs

ENGINES = ["triple", "products", "gradients"]


def objective_of(name, dtype=torch.float64):
    model, data, mode = problem(name, dtype)
    return Objective(model, cross_entropy, data, mode=mode)


def brute_force(objective, vector):
    """By torch.func: the gradient of the second derivative along v, of the loss of all samples at once."""
    model, data = objective.model, objective.data
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    samples = sum(len(y) for _, y in data)
    model.train(objective.mode == "train")

    def loss(weights):
        given = dict(zip(names, weights, strict=True))
        parts = [nn.functional.cross_entropy(functional_call(model, given, (x,)), y, reduction="sum") for x, y in data]
        return sum(parts) / samples

    def inner(others):
        return sum((a * b).sum() for a, b in zip(others, vector, strict=True))

    def curvature(weights):
        slope = lambda w: inner(grad(loss)(w))
        return inner(grad(slope)(weights))

    weights = tuple(p.detach() for p in model.parameters() if p.requires_grad)
    return float(curvature(weights)), flat(grad(curvature)(weights))


def by_matrices(name, vector, h=1e-4):
    """From two Hessians by brute force, for what torch.func cannot do."""
    model, data, mode = problem(name)
    if isinstance(model, Checkpointed):
        model.reentrant = None
    home, along = V.clone(list(model.parameters())), flat(vector)
    ends = []
    for length in (h, -h):
        with torch.no_grad():
            for p, w, v in zip(model.parameters(), home, vector, strict=True):
                p.copy_(w + length * v)
        ends.append(loss_of_flat_weights(model, data, mode)[2] @ along)
    return (ends[0] - ends[1]) / (2 * h)


@pytest.mark.parametrize("name", ["mlp", "tied weights and an unused parameter", "BatchNorm, evaluation mode"])
def test_differentiated_three_times_it_is_exact(name):
    objective = objective_of(name)
    vector = V.random_like(objective.weights, 3)
    value, expected = brute_force(objective, vector)
    found = curvature_gradient(objective, vector, step=8)
    assert (found.engine, found.error, found.record.step) == ("triple", 0.0, 8)
    assert found.value == pytest.approx(value)
    torch.testing.assert_close(flat(found.vector), expected, rtol=1e-9, atol=1e-11)


CHOICES = {
    "mlp": "triple",
    "LSTM": "triple",
    "multi-head attention": "triple",
    "checkpointed block": "triple",
    "BatchNorm, training mode": "products",
    "transformer layer": "products",
    "reentrant checkpointed block": "gradients",
}


@pytest.mark.parametrize(("name", "engine"), CHOICES.items())
def test_the_way_that_is_right_is_found(name, engine):
    objective = objective_of(name)
    vector = V.unit(V.random_like(objective.weights, 3))
    expected = by_matrices(name, vector)
    found = curvature_gradient(objective, vector)
    assert found.engine == engine
    assert (flat(found.vector) - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize(("engine", "limit"), [("triple", 1e-6), ("products", 5e-4), ("gradients", 5e-3)])
@pytest.mark.parametrize("name", ["mlp", "tied weights and an unused parameter"])
def test_in_float32_the_estimated_error_is_about_the_true_one(name, engine, limit):
    objective = objective_of(name, torch.float32)
    vector = V.random_like(objective.weights, 3)
    value, expected = brute_force(objective_of(name), [t.double() for t in vector])
    found = curvature_gradient(objective, vector, engine)
    error = float((flat(found.vector).double() - expected).norm() / expected.norm())
    assert error < limit
    assert error < 2 * found.error + 1e-6
    assert found.value == pytest.approx(value, rel=2e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cubic_in_closed_form(engine):
    """f = mean of (a.w)^3 / 6: the gradient of v'Hv is the mean of (a.v)^2 a, weighted over unequal batches."""
    model = nn.Linear(4, 1, bias=False).double()
    rows = [x for x, _ in batches(6, 3, 1, shape=(4,))]
    objective = Objective(model, lambda m, x: (m(x) ** 3).mean() / 6, rows)
    a, v = torch.cat(rows), torch.linspace(-1, 2, 4, dtype=torch.float64)
    found = curvature_gradient(objective, [v.view(1, 4)], engine)
    torch.testing.assert_close(found.vector[0].view(-1), (a @ v).square() @ a / 10, rtol=1e-5, atol=1e-6)
    assert found.value == pytest.approx(float(((a @ v) ** 2 * (a @ model.weight.detach()[0])).mean()), rel=1e-5)


def test_of_a_quadratic_there_is_none():
    """And differences, which are rounding, do not speak against it."""
    model = nn.Linear(4, 2).double()
    objective = Objective(model, lambda m, b: (m(b[0]) ** 2).mean(), batches(5, 4, shape=(4,)))
    found = curvature_gradient(objective, V.random_like(objective.weights, 0))
    assert found.engine == "triple"
    assert float(V.norm(found.vector)) == 0
    assert found.value > 0


def test_along_an_eigenvector_it_is_the_gradient_of_the_eigenvalue():
    objective = objective_of("mlp")
    pairs = top_eigenpairs(hessian(objective), tol=1e-10)
    slope = curvature_gradient(objective, pairs.vectors[0])
    assert slope.value == pytest.approx(pairs.values[0])
    way = V.unit(V.random_like(objective.weights, 5))
    tops = []
    for length in (1e-4, -1e-4):
        with objective.displaced() as place:
            place.to(way, length)
            matrix = loss_of_flat_weights(objective.model, objective.data, "current")[2]
        tops.append(float(torch.linalg.eigvalsh(matrix)[-1]))
    assert float(V.dot(slope.vector, way)) == pytest.approx((tops[0] - tops[1]) / 2e-4, rel=1e-5)


def test_it_is_the_third_term_of_the_gradient_of_sam():
    """g(w + rho u) - g - rho H u - rho^2 / 2 of it is of third order: halving rho divides it by 8."""
    objective = objective_of("mlp")
    home, u = objective.gradient(), V.unit(objective.gradient())
    second, third = objective.hvp(u), curvature_gradient(objective, u).vector
    rests = []
    for rho in (0.02, 0.01):
        with objective.displaced() as place:
            place.to(u, rho)
            rest = V.add(objective.gradient(), home, -1.0)
        V.add_(rest, second, -rho)
        V.add_(rest, third, -(rho**2) / 2)
        rests.append(float(V.norm(rest)))
    assert rests[0] / rests[1] == pytest.approx(8, rel=0.1)


# --- trust ------------------------------------------------------------------------------------------------------------


class Cubed(torch.autograd.Function):
    """x^3 with right first and second derivatives, and a third that autograd does not see."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, along):
        (x,) = ctx.saved_tensors
        return along * (3 * x.detach() ** 2 + 6 * x.detach() * (x - x.detach()))


def test_a_wrong_third_derivative_is_not_believed():
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    objective = Objective(model, lambda m, b: Cubed.apply(m(b[0])).mean(), batches(7, 4))
    plain = Objective(model, lambda m, b: (m(b[0]) ** 3).mean(), batches(7, 4))
    vector = V.random_like(objective.weights, 0)
    found, expected = curvature_gradient(objective, vector), curvature_gradient(plain, vector)
    assert (found.engine, expected.engine) == ("products", "triple")
    assert "autograd's third derivative is wrong" in found.record.reason
    torch.testing.assert_close(flat(found.vector), flat(expected.vector), rtol=1e-6, atol=1e-8)
    with pytest.raises(RuntimeError, match=r'engine="triple" is not possible: .*wrong.* engine="products" is'):
        curvature_gradient(objective, vector, "triple")


def test_a_wrong_one_is_found_where_only_short_differences_are_right():
    """A LayerNorm of small numbers curves sharply, here over a fraction of the weights' norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.mul_(0.03)
        model[0].bias.mul_(0.03)
    exact = Objective(model, cross_entropy, batches(16, dtype=torch.float32))
    assert curvature_gradient(exact, exact.gradient()).engine == "products"


def test_kinks_do_not_speak_against_autograd_and_differences_over_them_warn():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    objective = Objective(model, cross_entropy, batches(64, dtype=torch.float32))
    gradient = objective.gradient()
    assert curvature_gradient(objective, gradient).engine == "triple"
    with pytest.warns(UserWarning, match="differences over two lengths agree to .* only: the loss has kinks"):
        curvature_gradient(objective, gradient, "gradients")


def test_what_cannot_be_differentiated_twice_leaves_gradients_alone():
    objective = objective_of("reentrant checkpointed block")
    vector = V.random_like(objective.weights, 0)
    for engine in ("triple", "products"):
        with pytest.raises(RuntimeError, match=f'engine="{engine}" is not possible: .* engine="gradients" is'):
            curvature_gradient(objective, vector, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_measuring_changes_nothing(engine):
    model, data, mode = problem("LSTM", torch.float32)
    objective = Objective(model, cross_entropy, data, mode=mode)
    before, random = V.clone(list(model.parameters())), torch.get_rng_state()
    found = curvature_gradient(objective, objective.gradient(), engine)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert found.record == dataclasses.replace(hessian(objective).record, **_differing(found))


def _differing(found):
    return {name: getattr(found.record, name) for name in ("engine", "reason", "error")}


def test_vectors_of_any_length():
    objective = objective_of("mlp")
    unit = V.unit(V.random_like(objective.weights, 1))
    for engine in ENGINES:
        one, many = (curvature_gradient(objective, V.scale(unit, length), engine) for length in (1.0, 1e3))
        torch.testing.assert_close(flat(many.vector), 1e6 * flat(one.vector), rtol=1e-4, atol=1e-2)
        assert many.value == pytest.approx(1e6 * one.value, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"engine": "double"}, 'engine must be "auto", "triple", "products" or "gradients"'),
        ({"along": [None] * 4}, "the vector has norm 0.0"),
        ({"along": [torch.full((6, 5), math.nan), None, None, None]}, "the vector has norm nan"),
        ({"along": [None]}, "the vector has 1 entries"),
    ],
)
def test_bad_arguments_are_refused(change, words):
    objective = objective_of("mlp")
    with pytest.raises(ValueError, match=words):
        curvature_gradient(**{"objective": objective, "along": unflat(torch.ones(57), objective.weights)} | change)


def test_a_loss_that_is_nan_is_told():
    model, data, _ = problem("mlp")
    objective = Objective(model, lambda m, b: cross_entropy(m, b) * math.nan, data)
    with pytest.raises(ValueError, match="the third derivative is NaN"):
        curvature_gradient(objective, V.random_like(objective.weights, 0), check=False)
