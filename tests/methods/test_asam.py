"""ASAM: what is scaled, and that a rescaled network is displaced alike."""

import copy

import pytest
import torch
import torch.nn.functional as F
from methods.quadratics import displaced_requests, state_at
from optim.problems import batches, seeded
from torch import nn

import flatwise as fw
from flatwise.methods import ASAM, SAM

RHO = 1.0


def relu_net():
    layers = lambda: nn.Sequential(nn.Linear(6, 10, bias=False), nn.ReLU(), nn.Linear(10, 3, bias=False))
    return seeded(layers).double()


def rescaled(model, factor):
    """The same function: the first layer times the factor, the second divided by it."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight *= factor
        other[2].weight /= factor
    return other


def optimizer(model, method):
    return fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), method, model=model)


def displaced_outputs(model, method, batch):
    """What the network computes at the displaced weights, and each tensor's displacement by name."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    outputs, moved = [], {}
    for p in optimizer(model, method).passes():
        outputs.append(model(batch[0]))
        moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
        p.backward(F.cross_entropy(outputs[-1], batch[1]))
    return outputs[-1].detach(), moved


@pytest.mark.parametrize("scaled", ["weights", "all"])
def test_a_rescaled_network_computes_the_same_at_the_displaced_weights(scaled):
    batch = batches(1, dtype=torch.float64)[0]
    method = ASAM(rho=RHO, eta=0.0, scaled=scaled)
    expected, _ = displaced_outputs(relu_net(), method, batch)
    found, _ = displaced_outputs(rescaled(relu_net(), 7.0), method, batch)
    torch.testing.assert_close(found, expected)


def test_with_sam_it_does_not():
    batch = batches(1, dtype=torch.float64)[0]
    expected, _ = displaced_outputs(relu_net(), SAM(rho=RHO), batch)
    found, _ = displaced_outputs(rescaled(relu_net(), 7.0), SAM(rho=RHO), batch)
    assert (found - expected).abs().max() > 0.1


def test_the_radius_is_that_in_the_metric_of_the_weights():
    w = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
    h = torch.diag(torch.tensor([8.0, 3.0, -1.0], dtype=torch.float64))
    method = ASAM(rho=RHO, eta=0.1, scaled="all")
    [place], _ = displaced_requests(method, w, h, state_at(method, w))
    torch.testing.assert_close((place / (w.abs() + 0.1)).norm().item(), RHO)


def test_of_all_displacements_of_that_radius_it_rises_most():
    """To first order: no random direction of the same length in the metric beats it."""
    generator = torch.Generator().manual_seed(0)
    w = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
    h = torch.diag(torch.tensor([8.0, 3.0, -1.0], dtype=torch.float64))
    method = ASAM(rho=RHO, eta=0.1, scaled="all")
    [place], _ = displaced_requests(method, w, h, state_at(method, w))
    others = torch.randn(2000, 3, generator=generator, dtype=torch.float64)
    others = RHO * others / others.norm(dim=1, keepdim=True) * (w.abs() + 0.1)
    assert (others @ (h @ w)).max() <= place @ (h @ w)


class Named(nn.Module):
    """Tensors called weight, bias, something else, and one whose name has "weight" in front of the last dot."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
        self.norm = nn.BatchNorm1d(5)
        self.kernel = nn.Parameter(torch.randn(5, 3))

    def forward(self, x):
        return self.norm(self.layer(x)) @ self.kernel


def test_in_the_authors_variant_the_name_decides():
    """A tensor is scaled where "weight" is anywhere in its full name, as in the authors' code."""
    model = seeded(Named).double()
    batch = batches(1, dtype=torch.float64)[0]
    gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    named = {name: (p.detach().clone(), g) for (name, p), g in zip(model.named_parameters(), gradients)}
    sizes = {name: p.abs() + 0.01 if "weight" in name else torch.ones_like(p) for name, (p, _) in named.items()}
    length = torch.stack([(sizes[name] * g).norm() for name, (_, g) in named.items()]).norm()
    _, moved = displaced_outputs(model, ASAM(rho=RHO), batch)
    assert "layer.parametrizations.weight.original0" in moved
    for name, (_, g) in named.items():
        torch.testing.assert_close(moved[name], RHO * sizes[name] ** 2 * g / length, msg=name)


def test_without_a_model_the_names_are_not_known():
    model = relu_net()
    with pytest.raises(ValueError, match="scaled='all'"):
        fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), ASAM())


def test_without_a_model_all_tensors_can_be_scaled():
    model = relu_net()
    batch = batches(1, dtype=torch.float64)[0]
    with pytest.warns(UserWarning, match="without model"):
        opt = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), ASAM(scaled="all"))
    for p in opt.passes():
        p.backward(F.cross_entropy(model(batch[0]), batch[1]))
    opt.step()


def test_a_model_without_weights_in_its_names_is_refused():
    model = nn.ParameterDict({"kernel": torch.ones(3)})
    opt = optimizer(model, ASAM())
    with pytest.raises(ValueError, match="scaled='all'"):
        opt.step(lambda: _backward((model["kernel"] ** 2).sum()))
    assert torch.equal(model["kernel"].detach(), torch.ones(3))


def _backward(loss):
    loss.backward()
    return loss


def test_each_group_is_displaced_by_its_own_radius():
    """In proportion to the others, with one norm over all that are displaced."""
    model, batch = relu_net(), batches(1, dtype=torch.float64)[0]
    g = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(model.parameters()))
    sizes = [p.detach().abs() + 0.01 for p in model.parameters()]
    length = torch.stack([(s * t).norm() for s, t in zip(sizes, g)]).norm()
    base = torch.optim.SGD([{"params": [model[0].weight], "rho": 0.25}, {"params": [model[2].weight]}], lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    for p in fw.SharpnessAware(base, ASAM(rho=RHO), model=model).passes():
        moved = [p.detach() - w for p, w in zip(model.parameters(), before)]
        p.backward(F.cross_entropy(model(batch[0]), batch[1]))
    for rho, d, s, t in zip((0.25, RHO), moved, sizes, g):
        torch.testing.assert_close(d, rho * s**2 * t / length)


@pytest.mark.parametrize("value", [-0.1, float("nan"), None, "0.01"])
def test_eta_must_be_a_number_not_below_zero(value):
    with pytest.raises((ValueError, TypeError), match="eta"):
        ASAM(eta=value)


@pytest.mark.parametrize("value", ["weight", None, True])
def test_what_is_scaled_has_two_names(value):
    with pytest.raises(ValueError, match="scaled must be one of 'weights', 'all'"):
        ASAM(scaled=value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_of_half_precision_are_scaled_without_underflow(dtype):
    """T^2 g is less than float16 can hold, where the displacement itself is not."""
    model, (inputs, targets) = relu_net().to(dtype), batches(1, dtype=dtype)[0]
    loss = lambda: 1e-2 * F.cross_entropy(model(inputs).float(), targets)
    gradients = [g.double() for g in torch.autograd.grad(loss(), list(model.parameters()))]
    sizes = [p.detach().double().abs() + 0.01 for p in model.parameters()]
    length = torch.stack([(s * g).norm() for s, g in zip(sizes, gradients)]).norm()
    expected = torch.stack([(RHO * s**2 * g / length).norm() for s, g in zip(sizes, gradients)]).norm()
    opt = optimizer(model, ASAM(rho=RHO))
    for p in opt.passes():
        p.backward(loss())
    opt.step()
    assert opt.diagnostics["displacement_norm"] == pytest.approx(expected.item(), rel=1e-4)
