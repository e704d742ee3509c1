"""The preconditioned Hessian of live optimizers, against torch's own steps and matrices in float64."""

import copy

import pytest
import torch
from curvature.networks import brute_force, problem
from curvature.test_parts import dense
from test_objective import cross_entropy, flat, loss_of_flat_weights
from torch import nn

from flatwise import Objective, SharpnessAware, methods, theory
from flatwise import vectors as V
from flatwise.curvature import (
    Preconditioner,
    hessian,
    preconditioned,
    preconditioner,
    shifted,
    top_eigenpairs,
)

OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "Nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "Adam": (torch.optim.Adam, {"lr": 0.01, "eps": 1e-3}),
    "Adam, other betas": (torch.optim.Adam, {"lr": 0.01, "betas": (0.5, 0.9)}),
    "AMSGrad": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "betas": (0.9, 0.5)}),
    "capturable Adam": (torch.optim.Adam, {"lr": torch.tensor(0.01, dtype=torch.float64), "foreach": False}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0}),
    "Adamax": (torch.optim.Adamax, {"lr": 0.01}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.01, "eps": 1e-2}),
    "centered RMSprop": (torch.optim.RMSprop, {"lr": 0.01, "centered": True, "alpha": 0.5}),
    "RMSprop with momentum": (
        torch.optim.RMSprop,
        {"lr": 0.01, "momentum": 0.7},
    ),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.3}),
}


def trained(make, arguments, steps=5):
    """A network and its optimizer after some steps on one batch each, and the weights before the last one."""
    model, data, _ = problem("mlp")
    optimizer = make(model.parameters(), **arguments)
    before = []
    for i in range(steps):
        before = V.clone(list(model.parameters()))
        optimizer.zero_grad()
        cross_entropy(model, data[i % 2]).backward()
        optimizer.step()
    return Objective(model, cross_entropy, data), optimizer, before


def stepped_along(optimizer, p):
    """The momentum, or the gradient, that the last step multiplied."""
    state, group = optimizer.state[p], optimizer.param_groups[0]
    if group.get("nesterov"):
        return p.grad + group["momentum"] * state["momentum_buffer"]
    if "exp_avg" in state:
        return state["exp_avg"]
    return state.get("momentum_buffer", p.grad)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "RMSprop with momentum"])
def test_a_step_of_torch_is_the_preconditioner_times_its_momentum(name):
    make, arguments = OPTIMIZERS[name]
    objective, optimizer, before = trained(make, arguments)
    found = preconditioner(optimizer, objective)
    for p, old, inverse in zip(objective.parameters(), before, found.inverse, strict=True):
        along = stepped_along(optimizer, p)
        torch.testing.assert_close(old - p.detach(), inverse * along, rtol=1e-9, atol=1e-13)
    plain = preconditioner(optimizer, objective, with_lr=False)
    torch.testing.assert_close(flat(plain.inverse) * float(arguments["lr"]), flat(found.inverse), rtol=1e-12, atol=0)


def test_rmsprop_adds_preconditioned_gradients_up_to_its_momentum():
    make, arguments = OPTIMIZERS["RMSprop with momentum"]
    _, earlier, _ = trained(make, arguments, steps=4)
    objective, optimizer, _ = trained(make, arguments, steps=5)
    old = [state["momentum_buffer"] for state in earlier.state.values()]
    for p, buffer, inverse in zip(
        objective.parameters(), old, preconditioner(optimizer, objective).inverse, strict=True
    ):
        new = optimizer.state[p]["momentum_buffer"] - 0.7 * buffer
        torch.testing.assert_close(0.01 * new, inverse * p.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SGD", (0.0, 0.0, False)),
        ("momentum", (0.9, 0.5, False)),
        ("Nesterov", (0.9, 0.0, True)),
        ("Adam", (0.9, 0.9, False)),
        ("RMSprop", (0.0, 0.0, False)),
        ("RMSprop with momentum", (0.7, 0.0, False)),
        ("Adagrad", (0.0, 0.0, False)),
        ("Adamax", (0.9, 0.9, False)),
    ],
)
def test_the_momentum_of_steps(name, expected):
    objective, optimizer, _ = trained(*OPTIMIZERS[name])
    found = preconditioner(optimizer, objective)
    assert (found.momentum, found.dampening, found.nesterov) == expected


@pytest.mark.parametrize("name", ["Adam", "momentum", "RMSprop"])
def test_the_preconditioned_hessian_is_that_of_the_matrices(name):
    objective, optimizer, _ = trained(*OPTIMIZERS[name])
    matrix = loss_of_flat_weights(objective.model, objective.data, "current")[2]
    found = preconditioner(optimizer, objective)
    operator = preconditioned(hessian(objective, step=5), found)
    root = flat(found.inverse).sqrt()
    torch.testing.assert_close(dense(operator), root[:, None] * matrix * root, rtol=1e-9, atol=1e-12)
    pairs = top_eigenpairs(operator, tol=1e-9)
    values = torch.linalg.eigvals(flat(found.inverse)[:, None] * matrix).real
    assert pairs.values[0] == pytest.approx(float(values.max()))
    assert pairs.record.step == 5
    assert pairs.record.reason.endswith(f"preconditioned: {type(optimizer).__name__}'s, with learning rates")
    moves = flat(found.direction(pairs.vectors[0]))
    product = flat(found.inverse) * (matrix @ moves)
    torch.testing.assert_close(product, pairs.values[0] * moves, rtol=0, atol=1e-6 * pairs.values[0])


@pytest.mark.parametrize("name", ["momentum", "Nesterov", "Adam", "RMSprop"])
def test_frozen_steps_on_the_quadratic_model_grow_above_the_edge_and_shrink_below(name):
    """The optimizer's own recursion, with the Hessian of a network and the preconditioner as it is."""
    objective, optimizer, _ = trained(*OPTIMIZERS[name])
    found = preconditioner(optimizer, objective, with_lr=False)
    operator = preconditioned(hessian(objective), found)
    top = top_eigenpairs(operator, tol=1e-9).values[0]
    edge = theory.nesterov_edge if found.nesterov else theory.heavy_ball_edge
    arguments = (found.momentum,) if found.nesterov else (found.momentum, found.dampening)
    lr_at_the_edge = edge(1.0, *arguments) / top
    values, vectors = torch.linalg.eigh(dense(operator))
    curved = vectors[:, values > 0]
    for factor, grows in ((0.98, False), (1.02, True)):
        w, buffer = curved.sum(1), torch.zeros(len(values), dtype=torch.float64)
        for _ in range(3000):
            gradient = vectors @ (values.clamp(min=0) * (vectors.T @ w))
            buffer = found.momentum * buffer + (1 - found.dampening) * gradient
            w = w - factor * lr_at_the_edge * (gradient + found.momentum * buffer if found.nesterov else buffer)
        assert (float((vectors[:, -1] @ w).abs()) > 1) is grows


def test_learning_rates_of_groups_are_folded_in():
    model, data, _ = problem("mlp")
    groups = [{"params": model[0].parameters(), "lr": 0.3}, {"params": [model[2].weight], "lr": 0.02}]
    objective, optimizer = Objective(model, cross_entropy, data), torch.optim.SGD(groups)
    found = preconditioner(optimizer, objective)
    assert [None if t is None else t.unique().tolist() for t in found.inverse] == [[0.3], [0.3], [0.02], None]
    operator = preconditioned(hessian(objective), found)
    root = flat(V.present(found.inverse)).sqrt()
    torch.testing.assert_close(
        dense(operator), root[:, None] * brute_force("mlp")[:54, :54] * root, rtol=1e-9, atol=1e-12
    )


def test_weight_decay_in_the_gradient_is_a_shift():
    objective, optimizer, _ = trained(torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1})
    found = preconditioner(optimizer, objective)
    matrix = loss_of_flat_weights(objective.model, objective.data, "current")[2] + 0.1 * torch.eye(57).double()
    root = flat(found.inverse).sqrt()
    operator = preconditioned(shifted(hessian(objective), 0.1), found)
    torch.testing.assert_close(dense(operator), root[:, None] * matrix * root, rtol=1e-9, atol=1e-12)


def test_the_base_of_a_sharpness_aware_optimizer_counts():
    model, data, _ = problem("mlp")
    optimizer = SharpnessAware(torch.optim.AdamW(model.parameters(), lr=0.01), methods.SAM(0.05), model=model)
    for p in optimizer.passes():
        p.backward(cross_entropy(model, data[0]))
    optimizer.step()
    objective = Objective(model, cross_entropy, data)
    before = copy.deepcopy(optimizer.state_dict())
    found, base = preconditioner(optimizer, objective), preconditioner(optimizer.base, objective)
    assert all(torch.equal(a, b) for a, b in zip(found.inverse, base.inverse, strict=True))
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)


def test_parameters_without_a_step_are_named():
    model, data, _ = problem("tied weights and an unused parameter")
    objective, optimizer = Objective(model, cross_entropy, data), torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"no step with 'unused' yet, .* take a step first"):
        preconditioner(optimizer, objective)
    cross_entropy(model, data[0]).backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"no step with 'unused' yet.* does not use it, leave it out of the optimizer"):
        preconditioner(optimizer, objective)
    used = torch.optim.Adagrad([p for n, p in model.named_parameters() if n != "unused"])
    with pytest.raises(ValueError, match=r"no step with 'first.weight' yet"):
        preconditioner(used, objective)
    used.step()
    assert preconditioned(hessian(objective), preconditioner(used, objective)).size == V.size(objective.weights) - 2


class MyAdam(torch.optim.Adam):
    """Somebody's own: nobody knows what its step does."""


@pytest.mark.parametrize("make", [MyAdam, torch.optim.RAdam])
def test_other_optimizers_are_refused(make):
    model, data, _ = problem("mlp")
    with pytest.raises(
        TypeError, match=rf"steps of {make.__name__} are not known .*SGD, Adam, .*Preconditioner\(inverse="
    ):
        preconditioner(make(model.parameters()), Objective(model, cross_entropy, data))


def test_what_has_no_edge_is_refused():
    model, data, _ = problem("mlp")
    objective = Objective(model, cross_entropy, data)
    with pytest.raises(ValueError, match="maximize=True"):
        preconditioner(torch.optim.SGD(model.parameters(), maximize=True), objective)
    with pytest.raises(ValueError, match="none of the objective's parameters"):
        preconditioner(torch.optim.SGD(nn.Linear(2, 2).parameters()), objective)
    groups = [{"params": model[0].parameters(), "momentum": 0.9}, {"params": model[2].parameters(), "momentum": 0.5}]
    with pytest.raises(ValueError, match="groups have different momenta"):
        preconditioner(torch.optim.SGD(groups), objective)
    with pytest.raises(ValueError, match="negative entries"):
        preconditioned(hessian(objective), Preconditioner([-torch.ones_like(t) for t in objective.weights]))
