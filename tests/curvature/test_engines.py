"""Every engine on every kind of layer, against the Hessian by brute force; and what an engine must leave alone."""

import gc
import resource

import pytest
import torch
from curvature.networks import NETWORKS, brute_force, problem
from test_objective import batches, cross_entropy, everything, flat, unflat
from torch import nn
from torch_releases import OLD

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import hessian, top_eigenpairs

ENGINES = ("double", "forward", "differences", "one-sided")
TOLERANCE = {"double": 1e-9, "forward": 1e-9, "differences": 1e-7, "one-sided": 1e-5}
"""Relative to the largest eigenvalue, in float64."""

IMPOSSIBLE = {
    (
        "double",
        "reentrant checkpointed block",
    ): 'engine="double" is not possible: it cannot be .* When use_reentrant=True',
    (
        "forward",
        "reentrant checkpointed block",
    ): 'engine="forward" is not possible: You must implement the jvp function',
}
if OLD:
    IMPOSSIBLE["forward", "checkpointed block"] = IMPOSSIBLE["forward", "reentrant checkpointed block"]


def objective_of(name, dtype=torch.float64):
    model, data, mode = problem(name, dtype)
    return Objective(model, cross_entropy, data, mode=mode)


def distance(a, b):
    return (flat(a).double() - flat(b)).norm().item()


# --- the products are right -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("engine", ENGINES)
def test_products_equal_brute_force(engine, name):
    objective, matrix = objective_of(name), brute_force(name)
    if (engine, name) in IMPOSSIBLE:
        with pytest.raises(RuntimeError, match=IMPOSSIBLE[engine, name]):
            hessian(objective, engine)
        return
    H = hessian(objective, engine)
    values, vectors = torch.linalg.eigh(matrix)
    for vector in (vectors[:, -1], 10 * vectors[:, 0], flat(V.random_like(objective.weights, 3))):
        expected = unflat(matrix @ vector, objective.weights)
        found = H(unflat(vector, objective.weights))
        assert (
            distance(found, flat(expected).split([t.numel() for t in found]))
            < TOLERANCE[engine] * values[-1] * vector.norm()
        )
    assert H.engine == engine


@pytest.mark.parametrize("name", NETWORKS)
def test_eigenpairs_in_float32_equal_those_of_brute_force(name):
    H = hessian(objective_of(name, torch.float32))
    pairs = top_eigenpairs(H, 2, tol=max(1e-4, 4 * H.error))
    values, vectors = torch.linalg.eigh(brute_force(name))
    for i, value in enumerate(pairs.values):
        assert value == pytest.approx(values[-1 - i].item(), rel=1e-4 if pairs.record.error == 0 else 1e-3)
        assert abs(flat(pairs.vectors[i]).double() @ vectors[:, -1 - i]) > 1 - 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_auto_differentiates_twice_where_that_is_right(name):
    H = hessian(objective_of(name))
    assert H.engine == ("differences" if name == "reentrant checkpointed block" else "double")
    assert ("attention by its formula" in H.reason) == (name in ("multi-head attention", "transformer layer"))


@pytest.mark.parametrize("engine", ["differences", "one-sided"])
@pytest.mark.parametrize("name", ["mlp", "LSTM", "multi-head attention", "BatchNorm, training mode"])
def test_the_error_of_differences_is_as_estimated(name, engine):
    objective, matrix = objective_of(name, torch.float32), brute_force(name)
    H = hessian(objective, engine)
    values, vectors = torch.linalg.eigh(matrix)
    found = H(unflat(vectors[:, -1].float(), objective.weights))
    apart = (flat(found).double() - values[-1] * vectors[:, -1]).norm() / values[-1]
    assert H.error / 30 < apart < 2 * H.error
    assert H.error < (1e-2 if engine == "one-sided" else 1e-3)


def bfloat16_inside(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return cross_entropy(model, batch)


@pytest.mark.parametrize("name", ["mlp", "multi-head attention", "BatchNorm, evaluation mode"])
def test_reported_residuals_hold_where_products_are_inexact(name):
    model, data, mode = problem(name, torch.float32)
    H = hessian(Objective(model, bfloat16_inside, data, mode=mode), "differences")
    with pytest.warns(UserWarning, match="not converged .*products are known to .* only.; raise tol"):
        pairs = top_eigenpairs(H, tol=1e-4)
    vector = flat(pairs.vectors[0]).double()
    exact = (brute_force(name) @ vector - pairs.values[0] * vector).norm().item()
    assert 0.02 * pairs.residuals[0] < exact < pairs.residuals[0]
    assert not pairs.converged


def test_kinks_are_seen_and_said():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    objective = Objective(model, cross_entropy, batches(60, dtype=torch.float32))
    with pytest.warns(UserWarning, match="differences of gradients agree to .*% only: .* many kinks") as caught:
        assert hessian(objective, "differences").error > 0.1
    assert caught[0].filename == __file__
    assert hessian(objective).engine == "double"


@pytest.mark.filterwarnings("ignore:differences of gradients agree:UserWarning", "ignore:not converged:UserWarning")
def test_a_search_that_turned_into_a_kink_is_not_believed():
    """Differences can be exact along one direction and not along the one that is found: a look at another length tells."""
    wrong, believed = 0, 0
    for seed in range(12):
        torch.manual_seed(seed)
        inputs, targets = torch.randn(30, 5), torch.randint(3, (30,))
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
        halves = [(inputs[:12], targets[:12]), (inputs[12:], targets[12:])]
        objective = Objective(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), halves, mode="eval")
        exact = top_eigenpairs(hessian(objective, "double")).values[0]
        pairs = top_eigenpairs(hessian(objective, "differences"))
        is_wrong = abs(pairs.values[0] - exact) > 0.1 * exact
        wrong, believed = wrong + is_wrong, believed + (is_wrong and pairs.converged)
    assert wrong >= 3
    assert believed == 0


def test_low_precision_is_seen_though_the_weights_are_in_float32():
    """Autocast inside the loss: the length that would be right for float32 is far too short."""
    model, data, _ = problem("mlp", torch.float32)
    exact = Objective(model, cross_entropy, data)
    H = hessian(Objective(model, bfloat16_inside, data), "differences")
    vector = top_eigenpairs(hessian(exact)).vectors[0]
    assert 1e-2 < H.error < 0.2
    assert H.product.length > 3 * hessian(exact, "differences").product.length
    assert V.cosine(H(vector), vector) > 0.95


def test_differences_in_an_autocast_region_of_the_caller():
    """The region keeps copies of the weights, which do not know that the weights have moved."""
    model, data, _ = problem("mlp", torch.float32)
    objective = Objective(model, cross_entropy, data)
    vector = top_eigenpairs(hessian(objective)).vectors[0]
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy(model, data[0])
        product = hessian(objective, "differences")(vector)
    assert V.cosine(product, vector) > 0.95


def test_products_of_half_precision_weights_are_in_float32():
    objective = objective_of("mlp", torch.bfloat16)
    vector = unflat(torch.linalg.eigh(brute_force("mlp"))[1][:, -1].float(), objective.weights)
    with pytest.warns(
        UserWarning, match=r"differences of gradients agree to .*% only: the gradient is noisy \(low prec"
    ):
        H = hessian(objective, "differences")
    assert {t.dtype for t in H(vector)} == {torch.float32}
    assert V.cosine(H(vector), vector) > 0.9


@pytest.mark.parametrize("engine", ENGINES)
def test_zeros_nones_and_scales(engine):
    objective = objective_of("tied weights and an unused parameter")
    H = hessian(objective, engine)
    vector = V.random_like(objective.weights, 0)
    assert V.norm(H([None] * len(vector))) == 0
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(
            flat(H(V.scale(vector, scale))), scale * flat(H(vector)), rtol=1e-4, atol=1e-5 * scale
        )
    with pytest.raises(ValueError, match="the vector has 1 entries, the model"):
        H([vector[0]])


# --- measuring changes nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["BatchNorm, evaluation mode", "transformer layer", "GRU"])
def test_nothing_is_touched(engine, name):
    model, data, mode = problem(name)
    model.train()
    cross_entropy(model, data[0]).backward()
    before, places = everything(model), [p.data_ptr() for p in model.parameters()]
    H = hessian(Objective(model, cross_entropy, data, mode=mode), engine)
    H(V.random_like(H.like, 0))
    torch.testing.assert_close(everything(model), before, rtol=0, atol=0)
    assert [p.data_ptr() for p in model.parameters()] == places


def test_backward_leaves_gradients_alone_also_those_of_the_data():
    model, data, _ = problem("reentrant checkpointed block")
    data = [(x.requires_grad_(), y) for x, y in data]
    for leaf in (model.first.weight, data[0][0]):
        leaf.grad = torch.ones_like(leaf)
    kept = model.first.weight.grad
    hessian(Objective(model, cross_entropy, data))(V.random_like(list(model.parameters()), 0))
    assert model.first.weight.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert data[1][0].grad is None
    assert torch.equal(data[0][0].grad, torch.ones_like(data[0][0]))
    assert all(p.grad is None for p in list(model.parameters())[1:])


@pytest.mark.parametrize("engine", ["differences", "one-sided"])
@pytest.mark.parametrize("call", range(1, 5))
def test_weights_are_back_bitwise_after_an_exception(engine, call):
    model, data, _ = problem("mlp", torch.float32)
    before, calls = [p.detach().clone() for p in model.parameters()], []

    def fails(model, batch):
        calls.append(1)
        if len(calls) > armed:
            raise KeyError("now")
        return cross_entropy(model, batch)

    armed = 10**9
    H = hessian(Objective(model, fails, data[:1]), engine)
    armed = len(calls) + call - 1
    with pytest.raises(KeyError, match="now"):
        [H(V.random_like(H.like, seed)) for seed in range(5)]
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_one_sided_differences_take_the_gradient_at_the_weights_once_until_they_move():
    model, data, _ = problem("mlp")
    calls = []
    counting = lambda model, batch: calls.append(1) or cross_entropy(model, batch)
    objective = Objective(model, counting, data[:1])
    H = hessian(objective, "one-sided")
    vector = V.random_like(H.like, 0)
    for expected in (2, 1, 1):
        calls.clear()
        H(vector)
        assert len(calls) == expected
    model[0].weight.data = model[0].weight.data * 1.1  # not even a version counter sees this
    calls.clear()
    product = H(vector)
    assert len(calls) == 2
    torch.testing.assert_close(flat(product), flat(objective.hvp(vector)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "products"), [("double", 1000), ("differences", 1000), ("forward", 300), ("one-sided", 300)]
)
def test_a_thousand_products_leave_nothing_behind(engine, products):
    model, data, _ = problem("mlp", torch.float32)
    H = hessian(Objective(model, cross_entropy, data[:1]), engine)
    vector = V.random_like(H.like, 0)

    def alive():
        gc.collect()
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    for _ in range(20):
        H(vector)
    before, peak = alive(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(products):
        H(vector)
    assert alive() == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 3000  # kB; a graph each would be 10,000
