"""bfloat16 autocast, around the forward or around everything: torch keeps cast weights within a region, also after they moved."""

import pytest
import torch
from methods.cases import every_displacing_method, every_method
from optim.problems import assert_same, batches, build, flat, loss_of, norm_net, snapshot


def around_the_forward(run, batch):
    for p in run.opt.passes():
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss = loss_of(run.model, batch)
        p.backward(loss)
    run.opt.step()


def around_the_loop(run, batch):
    with torch.autocast("cpu", torch.bfloat16):
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batch))
    run.opt.step()


def around_the_closure(run, batch):
    def closure():
        loss = loss_of(run.model, batch)
        loss.backward()
        return loss

    with torch.autocast("cpu", torch.bfloat16):
        run.opt.step(closure)


@pytest.mark.parametrize("step", [around_the_loop, around_the_closure])
@every_method
def test_a_region_around_all_passes_is_one_around_each_forward(case, step):
    run, expected = build(case.method, net=norm_net), build(case.method, net=norm_net)
    for batch in batches(6):
        step(run, batch)
        around_the_forward(expected, batch)
    if step is around_the_loop:
        assert_same(snapshot(run), snapshot(expected))
    torch.testing.assert_close(flat(run.params), flat(expected.params), rtol=0, atol=1e-6)


@every_displacing_method
def test_the_displaced_pass_sees_displaced_weights(case):
    """Otherwise the method would be its base optimizer, and nobody would notice."""
    run, base = build(case.method), build(case.with_rho(0.0))
    for batch in batches(6):
        around_the_loop(run, batch)
        around_the_loop(base, batch)
    assert (flat(run.params) - flat(base.params)).abs().max() > 1e-3
