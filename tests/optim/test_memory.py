"""Peak memory of a step, from the allocator's own record."""

import weakref

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import flatwise as fw
from flatwise import methods

WIDTH, DEPTH = 256, 8
SLACK = 0.35  # of the weights: one layer's temporaries (1/8), activations, the profiler's rounding


def network():
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)])


def weight_bytes(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def peak_bytes(action):
    """The most bytes that `action` had allocated at once on the CPU beyond those from before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        action()
    events = recorded.profiler.kineto_results.events()
    total = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        total += size
        peak = max(peak, total)
    return peak


def peak_of_a_step(method, wrapped=True, momentum=0.9):
    """In multiples of the weights, after two steps, so that the base's state is there already."""
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=momentum)
    opt = fw.SharpnessAware(base, method, model=model) if wrapped else base
    x = torch.randn(2, WIDTH)

    def closure():
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    opt.step(closure)
    opt.zero_grad()
    return peak_bytes(lambda: opt.step(closure)) / weight_bytes(model)


def test_the_measurement_sees_the_gradient():
    assert 1.0 <= peak_of_a_step(None, wrapped=False) <= 1.0 + SLACK


def test_without_displacement_there_is_one_gradient_and_nothing_else():
    assert peak_of_a_step(methods.SGD()) <= 1.0 + SLACK
    assert peak_of_a_step(methods.SAM(rho=0.0)) <= 1.0 + SLACK


@pytest.mark.parametrize("method", [methods.SAM(), methods.ReverseSAM()])
def test_sam_holds_one_backup_and_one_gradient(method):
    assert peak_of_a_step(method) <= 2.0 + SLACK


def test_gradient_norm_keeps_one_gradient_more():
    assert peak_of_a_step(methods.GradientNorm()) <= 3.0 + SLACK


def test_eigen_sam_between_refreshes_needs_no_more_than_sam():
    """The gradient is turned into the displacement; the vector itself was there before the step."""
    assert peak_of_a_step(methods.EigenSAM(every=100)) <= 2.0 + SLACK


def test_nothing_is_left_over_after_a_step():
    model = network()
    opt = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=1e-3), methods.SAM(), model=model)
    x = torch.randn(2, WIDTH)

    def closure():
        loss = model(x).square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    opt.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        for _ in range(5):
            opt.step(closure)
        opt.zero_grad()
    events = recorded.profiler.kineto_results.events()
    assert sum(e.nbytes() for e in events if e.name() == "[memory]") < 0.1 * weight_bytes(model)


@pytest.mark.parametrize("method", [methods.SAM(), methods.ReverseSAM()])
def test_the_first_gradient_is_gone_before_the_second_backward(method):
    model = network()
    opt = fw.SharpnessAware(torch.optim.SGD(model.parameters(), lr=1e-3), method, model=model)
    x = torch.randn(2, WIDTH)
    first = []
    for p in opt.passes():
        assert all(gradient() is None for gradient in first)
        p.backward(model(x).square().mean())
        if p.at_weights:
            first = [weakref.ref(parameter.grad) for parameter in model.parameters()]
    assert len(first) == 2 * DEPTH
