"""Channels-last convolutions under autocast with a scaler, and half-precision arithmetic on the device."""

import pytest
import torch
from gpu.devices import every_device, gpu
from methods.cases import every_method
from optim.problems import build, flat, loss_of, seeded
from torch import nn

from flatwise import vectors as V

LOW = {"cpu": torch.bfloat16, "cuda": torch.float16}


def convolutions(dtype=torch.float32):
    layers = lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return seeded(layers).to(dtype)


def images(device, count):
    generator = torch.Generator().manual_seed(3)
    draw = lambda: (torch.randn(16, 3, 8, 8, generator=generator), torch.randint(3, (16,), generator=generator))
    return [(x.to(device, memory_format=torch.channels_last), y.to(device)) for x, y in (draw() for _ in range(count))]


def on(device, memory_format):
    return lambda dtype: convolutions(dtype).to(device, memory_format=memory_format)


def step(run, batch, scaler, device):
    """As in the recipes: autocast, clipping between `unscale_` and `step`."""
    for p in run.opt.passes(scaler):
        with torch.autocast(device, dtype=LOW[device]):
            loss = loss_of(run.model, batch)
        p.backward(loss)
    scaler.unscale_(run.opt)
    nn.utils.clip_grad_norm_(run.params, 5.0)
    scaler.step(run.opt)
    scaler.update()


@every_device
@every_method
def test_channels_last_under_autocast_trains_and_keeps_its_layout(case, device):
    run = build(case.method, net=on(device, torch.channels_last))
    scaler = torch.amp.GradScaler(device, init_scale=256.0)
    losses = []
    for batch in images(device, 1) * 12:
        step(run, batch, scaler, device)
        losses.append(run.opt.diagnostics["loss"])
    assert losses[-1] < losses[0]
    assert run.opt.diagnostics["skipped"] == 0
    weight = run.model[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.dtype == torch.float32


@every_device
@every_method
def test_the_layout_changes_nothing_but_rounding(case, device):
    last, first = (build(case.method, net=on(device, f)) for f in (torch.channels_last, torch.contiguous_format))
    for x, y in images(device, 4):
        last.opt.step(closure(last, (x, y)))
        first.opt.step(closure(first, (x.contiguous(), y)))
    torch.testing.assert_close(flat(last.params), flat(first.params), rtol=0, atol=2e-3)


def closure(run, batch):
    def evaluate():
        loss = loss_of(run.model, batch)
        loss.backward()
        return loss

    return evaluate


@gpu
@every_method
def test_a_scale_that_is_too_large_is_found_step_by_step(case):
    """Every overflow skips one step and halves the scale once; then training begins."""
    run = build(case.method, net=on("cuda", torch.channels_last))
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=1000)
    start = flat(run.params)
    for batch in images("cuda", 1) * 40:
        step(run, batch, scaler, "cuda")
    skipped = run.opt.diagnostics["skipped"]
    assert skipped > 0
    assert scaler.get_scale() == 2.0 ** (40 - skipped)
    assert run.model[1].num_batches_tracked.item() == 40 - skipped
    assert not torch.equal(flat(run.params), start)
    assert torch.isfinite(flat(run.params)).all()


@every_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [1e-7, 7e5])
def test_factors_beyond_the_dtype_are_not_cast_to_it(device, dtype, factor):
    """A kernel that reads a factor on the device in the dtype of the tensor reads infinity, or zero."""
    b = (torch.linspace(-1, 1, 101) / max(factor, 1.0)).to(device, dtype)
    scalar = torch.tensor(factor, device=device)
    expected = (b.float() * factor).to(dtype)
    added, scaled = torch.zeros_like(b), b.clone()
    V.add_([added], [b], scalar)
    V.scale_([scaled], scalar)
    assert torch.equal(added, expected)
    assert torch.equal(scaled, expected)
    assert torch.equal(V.scale([b], scalar)[0], expected)
