"""The overhead of Eigen-SAM: what is counted, how a cycle is composed of its steps, and the published refresh."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from flatwise.experiments.claims.overhead import OVERHEAD, measure, overheads, published_refresh

PRESET = OVERHEAD.preset("smoke") | {"shape": [1, 8, 8], "iterations": 5}


def measured(model):
    cell = {"model": model, "batch_size": 4, "rounds": 1}
    return measure(PRESET, cell, 0, None, lambda done, total: None)


@pytest.mark.parametrize(("model", "evaluations"), [("mlp", 2 + 5), ("cnn6", 2 + 5 + 1)])
def test_a_refresh_counts_as_many_evaluations_as_it_takes(model, evaluations):
    """With BatchNorm the gradient in evaluation mode is one more; a multilayer perceptron has none to tell apart."""
    flops = measured(model)["flops"]
    assert flops["stale"] == flops["SAM"]
    first_look = model == "mlp"  # the first refresh also finds out that the modes do not differ
    assert flops["refreshing"] / flops["SAM"] == pytest.approx((evaluations + first_look) / 2)


def test_what_is_counted_is_the_same_for_every_seed():
    cell = {"model": "cnn6", "batch_size": 4, "rounds": 1}
    one, other = (measure(PRESET, cell, seed, None, lambda done, total: None)["flops"] for seed in (0, 1))
    assert one == other


def test_a_cycle_is_composed_of_its_steps():
    found = {"flops": {"SAM": 2.0, "stale": 2.0, "refreshing": 8.0, "exact refresh": 11.0}}
    assert overheads(found, "flops", "differences", 100) == pytest.approx(3.0)
    assert overheads(found, "flops", "differences", 1) == pytest.approx(300.0)
    assert overheads(found, "flops", "published", 100) == pytest.approx(5.5)


def test_the_published_refresh_is_the_power_iteration_of_the_hessian_in_evaluation_mode():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    batch = torch.randn(6, 3, dtype=torch.float64), torch.randint(3, (6,))
    model(batch[0])
    named = dict(model.named_parameters())
    shapes = [weight.shape for weight in named.values()]
    start = torch.randn(sum(shape.numel() for shape in shapes), dtype=torch.float64)
    pieces = [piece.view(shape) for piece, shape in zip(start.split([s.numel() for s in shapes]), shapes)]
    vector = published_refresh(model, batch, 3, pieces)

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.eval()

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(named, parts, shapes)}
        return F.cross_entropy(functional_call(model, weights | buffers, batch[0]), batch[1])

    matrix = hessian(loss, torch.cat([weight.detach().flatten() for weight in named.values()]))
    expected = start
    for _ in range(3):
        expected = matrix @ expected / (matrix @ expected).norm()
    torch.testing.assert_close(torch.cat([piece.flatten() for piece in vector]), expected)


def test_the_published_refresh_leaves_mode_gradients_and_buffers():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    published_refresh(model, (torch.randn(5, 3), torch.randint(2, (5,))), 1)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_counts_decide_and_times_are_judged_over_seeds():
    cells = [measured("cnn6")]
    outcome = OVERHEAD.judge(PRESET | {"cells": [{"model": "cnn6"}]}, [cells, cells])
    deciding = [c for c in outcome.criteria if c.decisive]
    assert [c.exact for c in deciding] == [True, False, True, False]
    assert all(c.most == 10.0 for c in deciding)
    assert deciding[0].values == pytest.approx([3.0, 3.0])
