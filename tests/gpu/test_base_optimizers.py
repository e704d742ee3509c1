"""Fused, foreach and capturable base optimizers step along the same direction as the plain loop over parameters."""

import pytest
import torch
from gpu.devices import batches_on, build_on, every_device, gpu
from methods.cases import every_method
from optim.problems import flat, mlp, step_by_closure, step_by_passes

SGD, ADAMW = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}, {"lr": 1e-2, "weight_decay": 1e-2}
KINDS = {
    "sgd foreach": lambda params: torch.optim.SGD(params, **SGD, foreach=True),
    "sgd fused": lambda params: torch.optim.SGD(params, **SGD, fused=True),
    "adamw foreach": lambda params: torch.optim.AdamW(params, **ADAMW, foreach=True),
    "adamw fused": lambda params: torch.optim.AdamW(params, **ADAMW, fused=True),
}
PLAIN = {
    "sgd": lambda params: torch.optim.SGD(params, **SGD, foreach=False, fused=False),
    "adamw": lambda params: torch.optim.AdamW(params, **ADAMW, foreach=False, fused=False),
}


def by_scaler(scaler):
    return lambda run, batch: step_by_passes(run, batch, scaler)


@every_device
@pytest.mark.parametrize("kind", KINDS)
@every_method
def test_they_agree_with_the_plain_loop(case, kind, device):
    run = build_on(device, case.method, KINDS[kind], mlp)
    plain = build_on(device, case.method, PLAIN[kind.split()[0]], mlp)
    for batch in batches_on(device, 6):
        step_by_closure(run, batch)
        step_by_closure(plain, batch)
    torch.testing.assert_close(flat(run.params), flat(plain.params), rtol=0, atol=1e-4)


@every_device
@pytest.mark.parametrize("kind", ["sgd fused", "adamw fused"])
@every_method
def test_a_scaler_unscales_once_also_for_fused_ones(case, kind, device):
    """Fused optimizers can unscale by themselves; behind the wrapper the scaler does it."""
    run, plain = (build_on(device, case.method, KINDS[kind], mlp) for _ in range(2))
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    for batch in batches_on(device, 6):
        step_by_passes(run, batch, scaler)
        step_by_passes(plain, batch)
    torch.testing.assert_close(flat(run.params), flat(plain.params), rtol=0, atol=1e-4)


@every_device
@pytest.mark.parametrize("kind", ["sgd fused", "adamw fused"])
@every_method
def test_an_overflow_skips_a_fused_step_too(case, kind, device):
    run = build_on(device, case.method, KINDS[kind], mlp)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    good, bad = batches_on(device, 2)
    step_by_passes(run, good, scaler)
    before = flat(run.params)
    step_by_passes(run, (bad[0] * torch.inf, bad[1]), scaler)
    assert torch.equal(flat(run.params), before)
    assert scaler.get_scale() == 512.0
    assert run.opt.diagnostics["skipped"] == 1


@gpu
@every_method
def test_capturable_agrees_with_the_plain_loop(case):
    capturable = lambda params: torch.optim.AdamW(params, **ADAMW, capturable=True)
    run, plain = (
        build_on("cuda", case.method, capturable, mlp),
        build_on("cuda", case.method, PLAIN["adamw"], mlp),
    )
    for batch in batches_on("cuda", 6):
        step_by_closure(run, batch)
        step_by_closure(plain, batch)
    assert all(entry["step"].is_cuda for entry in run.base.state.values())
    torch.testing.assert_close(flat(run.params), flat(plain.params), rtol=0, atol=1e-4)
