"""Methods that go on with part of the samples: `p.chosen`."""

import math

import pytest
import torch
from methods.cases import RHO, every_listed_method
from optim.problems import assert_same, batches, build, flat, halves, loss_of, snapshot, step_by_passes, weights
from optim.ways import sample_losses

from flatwise import methods

HALF = methods.ESAM(rho=RHO, beta=1.0, gamma=0.5)


@every_listed_method
def test_all_losses_count_for_methods_that_do_not_choose(case):
    run = build(case.method)
    losses = torch.arange(16.0)
    for p in run.opt.passes():
        assert p.chosen(losses) is losses
        p.backward(loss_of(run.model, batches(1)[0]))


def shown_and_chosen(run, batch, scaler=None, sizes=(16,)):
    """For each pass and micro-batch the losses that were shown, and those that count."""
    found = []
    for p in run.opt.passes(scaler):
        for part in halves(batch, sizes):
            losses = sample_losses(run.model, part)
            chosen = p.chosen(losses)
            found.append((losses.detach(), chosen.detach()))
            p.backward(chosen.mean(), weight=len(part[0]))
    return found


@pytest.mark.parametrize("gamma", [0.5, 0.3, 0.01])
def test_they_are_those_whose_losses_rise_most(gamma):
    run = build(methods.ESAM(rho=RHO, beta=1.0, gamma=gamma))
    for batch in batches(3):
        (before, all_of_them), (after, chosen) = shown_and_chosen(run, batch)
        run.opt.step()
        assert torch.equal(all_of_them, before)
        order = torch.argsort(after - before, descending=True)
        assert torch.equal(chosen, after[order[: math.ceil(gamma * 16)]])


def test_each_micro_batch_has_its_own():
    run = build(HALF)
    first, second, third, fourth = shown_and_chosen(run, batches(1)[0], sizes=(6, 10))
    for before, after, size in ((first, third, 6), (second, fourth, 10)):
        rise = after[0] - before[0]
        assert torch.equal(after[1], after[0][torch.topk(rise, size // 2).indices])


def test_the_direction_is_the_gradient_of_the_chosen_at_the_displaced_weights():
    run = build(HALF, dtype=torch.float64)
    (batch,) = batches(1, dtype=torch.float64)
    start, params = weights(run), run.params
    before = sample_losses(run.model, batch)
    gradient = torch.autograd.grad(before.mean(), params)
    norm = flat(gradient).norm()
    with torch.no_grad():
        for p, g in zip(params, gradient):
            p.add_(RHO * g / norm)
    after = sample_losses(run.model, batch)
    expected = torch.autograd.grad(after[torch.topk(after - before, 8).indices].mean(), params)
    with torch.no_grad():
        for p, w in zip(params, start):
            p.copy_(w)
    shown_and_chosen(run, batch)
    torch.testing.assert_close(flat([p.grad for p in params]), flat(expected))


def test_a_scale_changes_no_choice():
    plain, scaled = build(HALF), build(HALF)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for batch in batches(3):
        assert_same(shown_and_chosen(scaled, batch, scaler), shown_and_chosen(plain, batch))
        scaler.step(scaled.opt)
        scaler.update()
        plain.opt.step()
    assert_same(snapshot(scaled), snapshot(plain))


def test_each_part_of_a_batch_has_its_own():
    run = build(HALF)
    parts, found = halves(batches(1)[0]), {0: [], 1: []}
    for p in run.opt.passes(parts=2, each=True):
        losses = sample_losses(run.model, parts[p.part])
        chosen = p.chosen(losses)
        found[p.part].append((losses.detach(), chosen.detach()))
        p.backward(chosen.mean())
    for (before, _), (after, chosen) in found.values():
        assert torch.equal(chosen, after[torch.topk(after - before, 4).indices])


def test_losses_that_were_not_shown_are_asked_for_and_nothing_changes():
    run = build(HALF)
    before = snapshot(run)
    with pytest.raises(RuntimeError, match=r"p\.chosen\(losses\)"):
        step_by_passes(run, batches(1)[0])
    assert_same(snapshot(run), before)


def test_with_gamma_one_any_loop_does():
    run = build(methods.ESAM(rho=RHO, gamma=1.0))
    before = flat(run.params)
    step_by_passes(run, batches(1)[0])
    assert not torch.equal(flat(run.params), before)
