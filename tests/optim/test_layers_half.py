"""Half-precision weights, and gradients so small that `rho / |g|` is more than float16 can hold."""

import math

import pytest
import torch
from methods.cases import RHO, every_displacing_method, every_method
from optim.problems import batches, build, flat, seeded, step_by_closure, step_by_passes, train
from torch import nn

import flatwise as fw
from flatwise import methods
from flatwise import vectors as V

HALF = [torch.float16, torch.bfloat16]
every_half = pytest.mark.parametrize("dtype", HALF)
# The smallest float16 is 6e-8; with a norm of 1.2e-7 the factor of a displacement is 800,000, and float16 ends at 65,504.
TINIEST = [6e-8, 0.0, -6e-8, 0.0, 0.0, 6e-8, 0.0, -6e-8]
SMALL = [3e-5, -1e-5, 2e-5, 0.0, 1e-6, 6e-8, -3e-5, 1e-5]
every_size = pytest.mark.parametrize("gradient", [TINIEST, SMALL], ids=["tiniest", "small"])


class Linear(nn.Module):
    """A loss with a given gradient everywhere."""

    def __init__(self, gradient, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.02, 0.2, len(gradient)).to(dtype))
        self.register_buffer("gradient", torch.tensor(gradient).to(dtype))

    def forward(self):
        return (self.weight * self.gradient).sum()


def linear(method, gradient, dtype, like=None):
    """A run on it; with `like`, in float64 from the very numbers that another dtype rounded to."""
    model = Linear(gradient, dtype)
    if like is not None:
        model.load_state_dict({name: t.double() for name, t in like.state_dict().items()})
    opt = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=1.0), method, model=model)
    return model, opt


def places(model, opt):
    """The weights in each pass that is no probe."""
    found = []
    for p in opt.passes():
        if not p.is_probe:
            found.append(model.weight.detach().clone())
        p.backward(model())
    opt.step()
    return found


@every_half
@every_size
@every_displacing_method
def test_the_displacement_is_right_to_rounding(case, gradient, dtype):
    """Along that of the same numbers in float64; of Eigen-SAM without its eigenvector, which a linear loss does not have."""
    method = methods.EigenSAM(rho=RHO, alpha=0) if case.name == "eigen-sam" else case.method
    model, opt = linear(method, gradient, dtype)
    twin, reference = linear(method, gradient, torch.float64, like=model)
    start = model.weight.detach().clone()
    low, high = places(model, opt)[-1], places(twin, reference)[-1]
    direction = (high - start) / (high - start).norm()
    expected = start + opt.diagnostics["displacement_norm"] * direction
    torch.testing.assert_close(low, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    assert opt.diagnostics["skipped"] == 0
    torch.testing.assert_close(model.weight, start - model.gradient, rtol=torch.finfo(dtype).eps, atol=0)


@every_half
@every_size
def test_the_displacement_towards_an_eigenvector_is_right_to_rounding(gradient, dtype):
    """The tilted gradient is not formed at the gradient's own size, where the eigenvector's share would be lost."""
    method = methods.EigenSAM(rho=RHO, alpha=0.5, every=100)
    model, opt = linear(method, gradient, dtype)
    twin, reference = linear(method, gradient, torch.float64, like=model)
    vector = torch.tensor([0.5, 0.1, -0.3, 0.4, 0.2, 0.4, -0.2, 0.1]).to(dtype)
    for run in (opt, reference):
        state = run.state_dict()
        state["state"][0] |= {"flatwise.step": torch.tensor(1), "flatwise.eigenvector": vector / vector.norm()}
        run.load_state_dict(state)
    (start, low), (_, high) = places(model, opt), places(twin, reference)
    torch.testing.assert_close(low, high.to(dtype), rtol=0, atol=2 * torch.finfo(dtype).eps * 0.2)
    assert (low - start)[1].item() != 0  # where the gradient is zero only the eigenvector moves


@every_half
@every_method
def test_both_ways_of_driving_train_alike(case, dtype):
    make = lambda params: torch.optim.SGD(params, lr=0.1)
    by_closure, by_passes = build(case.method, make, dtype=dtype), build(case.method, make, dtype=dtype)
    data = batches(4, dtype=dtype)
    train(by_closure, data, step_by_closure)
    train(by_passes, data, step_by_passes)
    assert torch.equal(flat(by_closure.params), flat(by_passes.params))


@every_half
@pytest.mark.parametrize("factor", [1.0, -3e-4, 1e-7, 7e5])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_the_algebra_of_half_precision_rounds_once(dtype, factor, as_tensor):
    a = torch.linspace(-2, 2, 101).to(dtype)
    b = (torch.linspace(-1, 1, 101) / max(abs(factor), 1.0)).to(dtype)
    scalar = torch.tensor(factor, dtype=torch.float64) if as_tensor else factor
    exact = scalar * b.double()

    added, scaled = a.clone(), b.clone()
    V.add_([added, None], [b, None], scalar)
    V.scale_([scaled, None], scalar)
    in_float32 = (b.float() * factor).to(dtype)
    assert torch.equal(scaled, in_float32)
    assert torch.equal(V.scale([b], scalar)[0], in_float32)
    torch.testing.assert_close(added.double(), a.double() + exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-9)


@every_half
def test_unit_vectors_of_tiny_gradients_have_norm_one(dtype):
    (vector,) = V.unit([torch.tensor(TINIEST).to(dtype)])
    assert vector.dtype == dtype
    assert V.norm([vector]).item() == pytest.approx(1.0, abs=1e-2)


def test_a_factor_goes_to_the_device_of_every_tensor():
    """The meta device stands for a second one: it computes nothing, but refuses to be mixed."""
    here, there = torch.ones(3), torch.ones(3, device="meta")
    V.add_([here, there], [torch.ones(3), torch.ones(3, device="meta")], torch.tensor(2.0))
    V.scale_([here, there], torch.tensor(0.5))
    assert V.scale([here, there], torch.tensor(3.0))[1].device.type == "meta"
    assert torch.equal(here, torch.full((3,), 1.5))


class BehindFrozenHalf(nn.Module):
    """Trained layers in float32 behind a frozen one in half precision."""

    def __init__(self, dtype):
        super().__init__()
        self.head, self.trunk = nn.Linear(10, 3), nn.Linear(6, 10).to(dtype).requires_grad_(False)
        self.dtype = dtype

    def forward(self, x):
        return self.head(torch.tanh(self.trunk(x.to(self.dtype)).float()))


@every_half
@every_method
def test_frozen_half_precision_changes_nothing_for_the_rest(case, dtype):
    """Whether the optimizer holds it or not: neither norms nor the length of a difference of gradients depend on it."""
    net = lambda _: seeded(lambda: BehindFrozenHalf(dtype))
    held = build(case.method, net=net)
    free = build(case.method, net=net, groups=lambda model: list(model.head.parameters()))
    data = batches(5)
    train(held, data)
    train(free, data)
    assert torch.equal(flat(held.model.head.parameters()), flat(free.model.head.parameters()))


@every_method
def test_integer_parameters_take_no_part(case):
    """Quantised weights are frozen integers; the optimizer may be given them with all the others."""

    def with_integers(dtype):
        model = seeded(lambda: nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)))
        model[0].codes = nn.Parameter(torch.arange(4, dtype=torch.int8), requires_grad=False)
        return model

    run = build(case.method, net=with_integers)
    losses = [float(loss) for loss in train(run, batches(1) * 5)]
    assert losses[-1] < losses[0]
    assert torch.equal(run.model[0].codes, torch.arange(4, dtype=torch.int8))


@every_half
def test_diagnostics_of_tiny_gradients(dtype):
    model, opt = linear(methods.SAM(rho=RHO), TINIEST, dtype)
    places(model, opt)
    assert opt.diagnostics["gradient_norm"] == pytest.approx(2 * float(torch.tensor(6e-8).to(dtype)), rel=1e-3)
    assert opt.diagnostics["displacement_norm"] == pytest.approx(RHO, rel=1e-3)
    assert math.isfinite(opt.diagnostics["loss"])
