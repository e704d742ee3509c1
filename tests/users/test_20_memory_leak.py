"""Problem 20: memory leaks, and runs out, with `create_graph`.

PyHessian #25; pytorch #4661 and #82528; backpack #258; pytorch-minimize #29; fairchem #2099. `loss.backward(create_graph=True)`
leaves a cycle between parameters and gradients, and the graph with it, until cycles are collected or gradients cleared. PyHessian
0.1 works so, and clears them; the memory is held in between.
"""

import gc

import pytest
import torch
from torch import Tensor
from users.plain import batches, loss_of, network

import flatwise as fw


@pytest.fixture
def objective():
    return fw.Objective(network(), loss_of, batches(2), mode="eval")


def living():
    """How many tensors there are, those in cycles too: nothing is collected first."""
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def test_a_thousand_products_leave_nothing_behind(objective):
    hessian = fw.curvature.hessian(objective)
    vector = [torch.ones_like(p) for p in objective.weights]
    hessian(vector)
    gc.collect()
    gc.disable()
    try:
        before = living()
        for _ in range(1000):
            hessian(vector)
        assert living() <= before + 2
    finally:
        gc.enable()


def test_gradients_are_left_as_they_were(objective):
    parameters = list(objective.model.parameters())
    parameters[0].grad = torch.full_like(parameters[0], 7.0)
    fw.curvature.top_eigenpairs(fw.curvature.hessian(objective), k=2)
    assert torch.equal(parameters[0].grad, torch.full_like(parameters[0], 7.0))
    assert all(p.grad is None for p in parameters[1:])


def test_what_it_will_cost_is_told_before_it_starts(objective):
    forecast = objective.forecast()
    assert (forecast.samples, forecast.batches, forecast.largest, forecast.parameters) == (32, 2, 16, 103)
    assert forecast.memory() > forecast.memory(samples=8) > 0
    assert forecast.seconds(products=10) > forecast.seconds(products=1) > 0
    assert "a product about" in str(forecast)


def test_under_a_memory_bound_batches_are_cut_by_themselves(objective):
    """The product is the same, and no batch larger than the bound allows is seen."""
    bound = objective.forecast().memory(samples=5)
    sizes = []

    def watched(model, batch):
        sizes.append(len(batch[0]))
        return loss_of(model, batch)

    careful = fw.Objective(objective.model, watched, batches(2), mode="eval", max_memory=bound)
    vector = [torch.ones_like(p) for p in objective.weights]
    careful.hvp(vector)
    sizes.clear()
    found = careful.hvp(vector)
    assert max(sizes) <= 5
    assert sum(sizes) == 32
    for a, b in zip(found, objective.hvp(vector)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
