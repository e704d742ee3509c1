"""The Gauss-Newton matrix and the residual, against Jacobians in float64, the Hessian, and curvlinops."""

import warnings

import pytest
import torch
from curvature.networks import brute_force, problem
from curvature.test_parts import dense
from test_objective import batches, cross_entropy, flat
from torch import nn
from torch.autograd.functional import hessian as autograd_hessian
from torch.autograd.functional import jacobian as autograd_jacobian
from torch.func import functional_call

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import (
    by_layer,
    chunked_cross_entropy,
    gauss_newton,
    hessian,
    restricted,
    split_hessian,
    top_eigenpairs,
    trace,
)


def outputs(model, batch):
    return model(batch[0])


def of_outputs(z, batch):
    return nn.functional.cross_entropy(z, batch[1])


def squares(z, batch):
    return ((z - nn.functional.one_hot(batch[1], 3)) ** 2).mean()


def objective_of(name, dtype=torch.float64, loss=of_outputs):
    model, data, mode = problem(name, dtype)
    return Objective(model, lambda model, batch: loss(outputs(model, batch), batch), data, mode=mode)


def by_jacobians(objective, loss):
    """The mean over samples of J' (d2 loss / d outputs2) J, batch by batch, since BatchNorm mixes them."""
    model, names = objective.model, [n for n, p in objective.model.named_parameters() if p.requires_grad]
    if objective.mode != "current":
        model.train(objective.mode == "train")
    weights = [p.detach() for p in model.parameters() if p.requires_grad]
    total, count = 0.0, 0
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for batch in objective.data:
            of_weights = lambda *w, b=batch: functional_call(model, dict(zip(names, w, strict=True)), (b[0],))
            z = of_weights(*weights).detach()
            jacobian = torch.cat(
                [j.reshape(z.numel(), -1) for j in autograd_jacobian(of_weights, tuple(weights))], dim=1
            )
            curved = autograd_hessian(lambda z, b=batch: loss(z, b), z).reshape(z.numel(), z.numel())
            total, count = total + len(batch[1]) * jacobian.T @ curved @ jacobian, count + len(batch[1])
    return total / count


NETWORKS = [
    "mlp",
    "tied weights and an unused parameter",
    "BatchNorm, training mode",
    "BatchNorm, evaluation mode",
    "LSTM",
    "multi-head attention",
    "transformer layer",
    "checkpointed block",
]


def agree(operator, matrix):
    """On two random vectors, which is all of the matrix with probability 1."""
    vectors = [V.random_like(operator.like, seed) for seed in range(2)]
    products = torch.stack([flat(operator(v)) for v in vectors])
    expected = torch.stack([matrix @ flat(v) for v in vectors])
    torch.testing.assert_close(products, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "loss"), [*((name, of_outputs) for name in NETWORKS), *((name, squares) for name in NETWORKS[:3])]
)
def test_it_is_that_of_the_jacobians_and_the_hessian_is_the_sum(name, loss):
    objective = objective_of(name, loss=loss)
    split = split_hessian(objective, outputs, loss)
    expected = by_jacobians(objective, loss)
    agree(split.gauss_newton, expected)
    for seed in range(2):
        vector = V.random_like(objective.weights, seed)
        rest = flat(objective.hvp(vector)) - expected @ flat(vector)
        torch.testing.assert_close(flat(split.residual(vector)), rest, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", [of_outputs, squares])
def test_for_convex_losses_no_eigenvalue_is_negative(loss):
    matrix = dense(gauss_newton(objective_of("mlp", loss=loss), outputs, loss))
    values = torch.linalg.eigvalsh(matrix)
    assert values[0] > -1e-12 * values[-1]
    assert torch.linalg.eigvalsh(brute_force("mlp"))[0] < -0.01  # that of the Hessian is


def test_it_is_that_of_curvlinops():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curvlinops = pytest.importorskip("curvlinops")
        objective = objective_of("mlp")
        parameters = list(objective.model.parameters())
        theirs = curvlinops.GGNLinearOperator(objective.model, nn.CrossEntropyLoss(), parameters, objective.data)
        vector = V.random_like(objective.weights, 0)
        expected = flat(theirs @ vector)
    torch.testing.assert_close(
        flat(gauss_newton(objective, outputs, of_outputs)(vector)), expected, rtol=1e-9, atol=1e-12
    )


def test_a_linear_model_has_no_residual():
    model = nn.Linear(5, 3).double()
    objective = Objective(model, cross_entropy, batches(7, 4))
    split = split_hessian(objective, outputs, of_outputs)
    assert float(dense(split.residual).abs().max()) < 1e-14
    assert float(dense(split.gauss_newton).abs().max()) > 0.01


def test_a_loss_that_is_linear_in_the_outputs_has_no_gauss_newton_part():
    mean = lambda z, batch: z.mean()
    objective = objective_of("mlp", loss=mean)
    split = split_hessian(objective, outputs, mean)
    assert float(dense(split.gauss_newton).abs().max()) == 0
    torch.testing.assert_close(dense(split.residual), dense(split.hessian))


def test_estimators_take_it_and_records_say_what_it_is():
    objective = objective_of("mlp")
    split = split_hessian(objective, outputs, of_outputs, step=5)
    matrix = by_jacobians(objective, of_outputs)
    pairs = top_eigenpairs(split.gauss_newton, 2, tol=1e-9)
    assert pairs.values == pytest.approx(torch.linalg.eigvalsh(matrix).flip(0)[:2].tolist())
    assert pairs.record.reason == "Gauss-Newton; differentiated twice"
    assert (pairs.record.step, pairs.record.checked, pairs.record.samples) == (5, True, 11.0)
    assert split.residual.reason == "differentiated twice; less Gauss-Newton"
    assert trace(split.gauss_newton, 2 * len(matrix)).value == pytest.approx(float(matrix.trace()))
    places = by_layer(objective)["2"]
    torch.testing.assert_close(dense(restricted(split.gauss_newton, places)), matrix[-21:, -21:], rtol=1e-8, atol=1e-11)


def test_of_some_parameters_alone():
    objective = objective_of("tied weights and an unused parameter")
    matrix = by_jacobians(objective, of_outputs)
    last = objective.limited(objective.model.last.parameters())
    torch.testing.assert_close(
        dense(gauss_newton(last, outputs, of_outputs)), matrix[-18:, -18:], rtol=1e-8, atol=1e-11
    )
    unused = objective.limited([objective.model.unused])
    assert float(dense(gauss_newton(unused, outputs, of_outputs)).abs().max()) == 0


def test_in_float32_with_differences_for_the_hessian():
    objective = objective_of("mlp", torch.float32)
    split = split_hessian(objective, outputs, of_outputs, "differences")
    assert split.residual.error == split.hessian.error > 0
    expected = by_jacobians(objective_of("mlp"), of_outputs)
    assert (dense(split.gauss_newton).double() - expected).norm() < 1e-5 * expected.norm()
    rest = brute_force("mlp") - expected
    assert (dense(split.residual).double() - rest).norm() < 1e-3 * brute_force("mlp").norm()


def test_measuring_changes_nothing():
    model, data, _ = problem("BatchNorm, training mode")
    objective = Objective(model, cross_entropy, data, mode="train")
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    G = gauss_newton(objective, outputs, of_outputs)
    G(V.random_like(G.like, 0))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, batch: nn.functional.cross_entropy(z, batch[1], reduction="sum"),
        lambda z, batch: nn.functional.cross_entropy(z, batch[1], label_smoothing=0.1),
        lambda z, batch: of_outputs(z, batch) * float("nan"),
    ],
)
def test_a_loss_that_is_not_the_objectives_is_refused(loss):
    objective = objective_of("mlp")
    with pytest.raises(
        ValueError, match=r"the objective's loss .*; they must be the same function, without regularisers"
    ):
        gauss_newton(objective, outputs, loss)
    assert gauss_newton(objective, outputs, loss, check=False).size == 57


def test_outputs_that_cannot_be():
    objective = objective_of("mlp")
    with pytest.raises(TypeError, match="outputs must return a tensor of real numbers, such as logits, got tuple"):
        gauss_newton(objective, lambda m, b: (m(b[0]),), of_outputs)
    with pytest.raises(ValueError, match="the outputs do not depend on any parameter"):
        gauss_newton(objective, lambda m, b: m(b[0]).detach(), of_outputs)


def test_what_cannot_be_differentiated_twice_has_no_products():
    with pytest.raises(RuntimeError, match="no Gauss-Newton products: it cannot be differentiated twice"):
        gauss_newton(objective_of("reentrant checkpointed block"), outputs, of_outputs)


def test_hidden_states_may_be_the_outputs():
    """A loss that has weights of its own in it is refused; where they are frozen it is a loss of the hidden states."""
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double(), batches(7, 4)
    model[2].requires_grad_(False)
    hidden = lambda m, b: m[:2](b[0])
    chunked = lambda h, b: chunked_cross_entropy(h, model[2].weight, b[1], model[2].bias, chunk=2)
    objective = Objective(model, cross_entropy, data)
    expected = dense(gauss_newton(objective, outputs, of_outputs))
    torch.testing.assert_close(dense(gauss_newton(objective, hidden, chunked)), expected, rtol=1e-9, atol=1e-12)
    assert hessian(objective).size == 24
