"""Friendly SAM: limits, and what the running mean is made of."""

import pytest
import torch
from methods.evidence_one import peer
from optim.problems import batches, build, flat, loss_of, mlp, step_by_closure, step_by_passes, train

from flatwise.methods import SAM, FriendlySAM


def trained(method, steps=10):
    run = build(method, dtype=torch.float64)
    train(run, batches(steps, dtype=torch.float64))
    return flat(run.params)


def test_without_sigma_it_is_sam():
    torch.testing.assert_close(trained(FriendlySAM(rho=0.1, sigma=0.0)), trained(SAM(rho=0.1)), rtol=0, atol=1e-14)


def test_the_first_step_is_sams():
    torch.testing.assert_close(trained(FriendlySAM(rho=0.1), 1), trained(SAM(rho=0.1), 1), rtol=0, atol=1e-14)
    assert (trained(FriendlySAM(rho=0.1), 2) - trained(SAM(rho=0.1), 2)).abs().max() > 1e-4


def test_the_mean_is_of_the_gradients_at_the_weights():
    run = build(FriendlySAM(rho=0.1, decay=0.8), dtype=torch.float64)
    mean = None
    for batch in batches(4, dtype=torch.float64):
        g = flat(torch.autograd.grad(loss_of(run.model, batch), run.params))
        mean = g if mean is None else 0.8 * mean + 0.2 * g
        step_by_closure(run, batch)
        known = [run.opt.state_dict()["state"][i]["flatwise.mean_gradient"] for i in range(len(run.params))]
        torch.testing.assert_close(flat(known), mean, rtol=0, atol=1e-14)


def test_what_all_batches_share_is_taken_out():
    """With sigma 1, no decay, and weights that do not move, a batch like the one before is not displaced at all."""
    still = lambda params: torch.optim.SGD(params, lr=0.0)
    run = build(FriendlySAM(rho=0.1, sigma=1.0, decay=0.0), still, dtype=torch.float64)
    batch = batches(1, dtype=torch.float64)[0]
    lengths = []
    for _ in range(2):
        step_by_passes(run, batch)
        lengths.append(run.opt.diagnostics["displacement_norm"])
    assert lengths == [pytest.approx(0.1), 0.0]


def test_a_step_that_is_skipped_leaves_the_mean_alone():
    run = build(FriendlySAM(rho=0.1), dtype=torch.float64)
    good, other = batches(2, dtype=torch.float64)
    step_by_passes(run, good)
    before = run.opt.state_dict()["state"][0]["flatwise.mean_gradient"].clone()
    step_by_passes(run, (torch.full_like(other[0], torch.nan), other[1]))
    assert run.opt.diagnostics["skipped"] == 1
    assert torch.equal(run.opt.state_dict()["state"][0]["flatwise.mean_gradient"], before)


def test_in_float32_it_agrees_with_pytorch_optimizer_at_the_paper_s_settings():
    run = build(FriendlySAM(rho=0.2, sigma=1.0, decay=0.6))
    data = batches(20)
    train(run, data)
    theirs = peer("FriendlySAM", rho=0.2, sigma=1.0, lmbda=0.6)(mlp(), data)
    torch.testing.assert_close(flat(run.params), flat(theirs.parameters()), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "value"), [("decay", 1.0), ("decay", -0.1), ("sigma", -1.0), ("sigma", None), ("decay", "0.6")]
)
def test_arguments_out_of_range_are_named(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        FriendlySAM(**{name: value})
