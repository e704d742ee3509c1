"""The graph of the gradient, kept between products: always that of the weights, buffers and modes as they are."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flatwise import Objective
from flatwise import vectors as V
from flatwise.curvature import hessian, top_eigenpairs


def network():
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def batches(*sizes):
    return [(torch.randn(n, 6).double(), torch.randint(3, (n,))) for n in sizes]


def counted(model, data, mode="eval"):
    calls = []
    return Objective(model, lambda m, b: calls.append(1) or cross_entropy(m, b), data, mode=mode), calls


def assert_fresh(H, objective, seed=3):
    """The product is that of a Hessian which keeps nothing."""
    v = V.random_like(H.like, seed)
    for kept, fresh in zip(H(v), hessian(objective, "double", keep_graph=False)(v), strict=True):
        torch.testing.assert_close(kept, fresh, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_loss_is_evaluated_once_for_many_products(mode):
    objective, calls = counted(network(), batches(20), mode)
    H = hessian(objective)
    assert H.reason.endswith("graph kept between products")
    calls.clear()
    pairs = top_eigenpairs(H, 3, tol=1e-8)
    assert pairs.products > 5
    assert len(calls) == 1
    assert_fresh(H, objective)


def test_several_batches_are_kept_only_if_asked_for():
    objective, calls = counted(network(), batches(9, 5, 7))
    usual, kept = hessian(objective), hessian(objective, keep_graph=True)
    assert "graph kept" not in usual.reason
    assert "graph kept" in kept.reason
    for H, evaluations in ((usual, 6), (kept, 3)):
        calls.clear()
        for seed in range(2):
            H(V.random_like(H.like, seed))
        assert len(calls) == evaluations
        assert_fresh(H, objective)


def moved(model):
    with torch.no_grad():
        model[0].weight.add_(0.1)


def moved_unseen(model):
    model[4].bias.data.mul_(1.5)


def moved_and_back(model):
    with torch.no_grad():
        before = model[0].weight.clone()
        model[0].weight.add_(1.0)
        model[0].weight.copy_(before)


def other_buffers(model):
    model[1].running_var.mul_(2.0)


def other_frozen_weights(model):
    with torch.no_grad():
        model[1].weight.mul_(0.5)


def swapped(model):
    model[0].weight.data = torch.randn(8, 6).double()


@pytest.mark.parametrize("change", [moved, moved_unseen, moved_and_back, other_buffers, other_frozen_weights, swapped])
def test_a_change_between_products_is_noticed(change):
    model = network()
    model[1].weight.requires_grad_(False)
    objective, _ = counted(model, batches(20))
    H = hessian(objective)
    H(V.random_like(H.like, 0))
    change(model)
    assert_fresh(H, objective)


def test_another_mode_between_products_is_noticed():
    objective, _ = counted(network(), batches(20), "current")
    H = hessian(objective)
    for training in (True, False, True):
        objective.model.train(training)
        H(V.random_like(H.like, 0))
        assert_fresh(H, objective)


class Once(torch.autograd.Function):
    """The square, whose graph refuses to be gone through a second time."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.used = 0
        return x * x

    @staticmethod
    def backward(ctx, along):
        ctx.used += 1
        if ctx.used > 2:
            raise RuntimeError("gone through already")
        return 2 * ctx.saved_tensors[0] * along


def test_where_a_graph_cannot_be_kept_products_are_made_afresh():
    model = network()
    objective = Objective(model, lambda m, b: cross_entropy(lambda x: Once.apply(m(x)), b), batches(20), mode="eval")
    H = hessian(objective, "double")
    for seed in range(4):
        assert_fresh(H, objective, seed)
    insisting = hessian(objective, "double", keep_graph=True)
    vectors = [V.random_like(H.like, seed) for seed in range(4)]
    with pytest.raises(RuntimeError, match="gone through already"):
        [insisting(v) for v in vectors]


def test_activation_checkpointing_may_be_recomputed_again_and_again():
    model, data = network(), batches(20)

    def loss(m, batch):
        return cross_entropy(lambda x: m[4](checkpoint(m[:4], x, use_reentrant=False)), batch)

    objective = Objective(model, loss, data, mode="train")
    H = hessian(objective)
    for seed in range(3):
        assert_fresh(H, objective, seed)


def test_the_graph_goes_with_the_operator_and_does_not_pile_up():
    model = network()
    objective, _ = counted(model, batches(20))
    H = hessian(objective)
    H(V.random_like(H.like, 0))
    graph = weakref.ref(H.product._graphs[0].gradient[0])
    moved(model)
    H(V.random_like(H.like, 0))
    gc.collect()
    assert graph() is None
    graph = weakref.ref(H.product._graphs[0].gradient[0])
    del H
    gc.collect()
    assert graph() is None


def test_it_has_no_effect_elsewhere_and_says_so():
    objective, _ = counted(network(), batches(20))
    with pytest.raises(ValueError, match='keep_graph has no effect on engine="one-sided"'):
        hessian(objective, "one-sided", keep_graph=True)


def other_data(model, data, objective):
    data[0] = (torch.randn(9, 6).double(), torch.randint(3, (9,)))


def data_in_place(model, data, objective):
    data[0][1].copy_(torch.randint(3, (20,)))


def other_seed(model, data, objective):
    objective.seed = 7


def replaced_parameter(model, data, objective):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def other_modes(model, data, objective):
    model.eval()


def other_statistics(model, data, objective):
    model[1].running_var.mul_(2.0)


CHANGES = [other_data, data_in_place, other_seed, replaced_parameter, other_modes, other_statistics]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("engine", ["double", "one-sided"])
def test_what_is_kept_is_made_anew_when_anything_that_the_loss_hangs_on_changes(engine, change):
    model, data = network(), batches(20)
    objective, _ = counted(model.train(), data, "current")
    H = hessian(objective, engine)
    H(V.random_like(H.like, 0))
    change(model, data, objective)
    v = V.random_like(H.like, 3)
    expected = hessian(objective, "double", keep_graph=False)(v)
    assert V.norm(V.add(H(v), expected, -1.0)) < 1e-3 * V.norm(expected)


def test_a_loss_function_that_is_a_module_is_looked_into():
    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = nn.Linear(6, 3).double().requires_grad_(False)

        def forward(self, model, batch):
            return ((model(batch[0]) - self.teacher(batch[0])) ** 4).mean()

    loss = Distance()
    objective = Objective(network(), loss, batches(20), mode="eval")
    H = hessian(objective)
    H(V.random_like(H.like, 0))
    with torch.no_grad():
        loss.teacher.weight.add_(1.0)
    assert_fresh(H, objective)


def test_buffers_that_change_from_batch_to_batch_do_so_in_kept_graphs_too():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3).double()
            self.register_buffer("scale", torch.ones(()).double())

        def forward(self, x):
            self.scale = self.scale * 0.5 + 0.5 * x.detach().abs().mean()
            return self.linear(x / self.scale)

    objective, _ = counted(Running(), batches(9, 5, 7), "train")
    assert_fresh(hessian(objective, keep_graph=True), objective)


def test_a_region_of_autocast_around_everything_does_not_spoil_what_comes_after_the_weights_have_moved():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(20, 6), torch.randint(3, (20,)))]
    objective, _ = counted(model, data)
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy(model, data[0]).backward()
        with torch.no_grad():
            model[0].weight.mul_(3.0)
        inside = objective.gradient()
    with torch.autocast("cpu", torch.bfloat16):
        again = objective.gradient()
    assert all(torch.equal(a, b) for a, b in zip(inside, again, strict=True))
