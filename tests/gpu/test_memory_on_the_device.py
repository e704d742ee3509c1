"""Peak memory by the device's own allocator: one copy of the weights beyond the base optimizer's step."""

import pytest
import torch
from gpu.devices import gpu
from torch import nn

import flatwise as fw
from flatwise import methods

WIDTH, DEPTH = 1024, 8
SLACK = 0.35  # of the weights: one layer's temporaries (1/8), activations, rounding to blocks

pytestmark = gpu


def peak(method):
    """Of a step after two others, in multiples of the weights; `method` None is the base optimizer alone."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]).to("cuda")
    base = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=False)
    opt = base if method is None else fw.SharpnessAware(base, method, model=model)
    x = torch.randn(2, WIDTH, device="cuda")

    def closure():
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    opt.step(closure)
    opt.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    opt.step(closure)
    peak = torch.cuda.max_memory_allocated() - before
    return peak / sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (methods.SGD(), 0.0),
        (methods.SAM(), 0.0),
        (methods.ReverseSAM(), 0.0),
        (methods.EigenSAM(every=100), 0.0),
        (methods.GradientNorm(), 1.0),
    ],
)
def test_a_step_holds_one_gradient_and_those_that_the_method_keeps(method, kept):
    """The copy of the weights is there from the step before; a refresh of Eigen-SAM's vector is not among these steps."""
    assert peak(method) <= peak(None) + kept + SLACK
