"""ESAM: the draw of tensors, the choice of samples against brute force, micro-batches, and loops that do not show losses."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from methods.evidence import by_samples
from optim.problems import (
    assert_same,
    batches,
    build,
    closure_of,
    count_evaluations,
    flat,
    halves,
    loss_of,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
)

from flatwise.methods import ESAM, SAM, Selection

RHO = 0.5


def losses_of(run, batch):
    return F.cross_entropy(run.model(batch[0]), batch[1], reduction="none")


def moved_in(run, batch):
    """The displacement of each tensor in one step."""
    before = [p.detach().clone() for p in run.params]
    for p in run.opt.passes():
        moved = [p.detach() - w for p, w in zip(run.params, before)]
        p.backward(loss_of(run.model, batch))
    run.opt.step()
    return moved


# --- tensors ----------------------------------------------------------------------------------------------------------


def test_with_all_tensors_and_all_samples_it_is_sam():
    run, sam = (build(method, dtype=torch.float64) for method in (ESAM(rho=RHO, beta=1.0), SAM(rho=RHO)))
    for batch in batches(10, dtype=torch.float64):
        by_samples(run, batch)
        step_by_passes(sam, batch)
    torch.testing.assert_close(flat(run.params), flat(sam.params), rtol=0, atol=1e-14)


def test_tensors_are_displaced_wholly_or_not_at_all():
    run = build(ESAM(rho=RHO, beta=0.6), dtype=torch.float64)
    for batch in batches(10, dtype=torch.float64):
        g = torch.autograd.grad(loss_of(run.model, batch), run.params)
        full = [RHO / 0.6 * t / flat(g).norm() for t in g]
        for d, expected in zip(moved_in(run, batch), full):
            assert not d.any() or torch.allclose(d, expected, rtol=1e-10, atol=1e-12)


def test_the_mean_displacement_is_sams():
    """Over 300 draws at weights that stay, within four standard errors of each tensor's share."""
    still = lambda params: torch.optim.SGD(params, lr=0.0)
    beta, count = 0.6, 300
    run = build(ESAM(rho=RHO, beta=beta, seed=3), still, dtype=torch.float64)
    batch = batches(1, dtype=torch.float64)[0]
    g = torch.autograd.grad(loss_of(run.model, batch), run.params)
    shares = []
    for _ in range(count):
        moved = moved_in(run, batch)
        shares.append([((d * t).sum() / (t * t).sum() * flat(g).norm() / RHO).item() for d, t in zip(moved, g)])
    shares = torch.tensor(shares)
    error = ((1 - beta) / beta / count) ** 0.5
    assert ((shares.mean(0) - 1).abs() < 4 * error).all()


def test_the_draw_depends_on_seed_and_step_alone():
    data = batches(4)
    same = [build(ESAM(rho=RHO, seed=7)) for _ in range(2)]
    other = build(ESAM(rho=RHO, seed=8))
    torch.manual_seed(0)
    train(same[0], data)
    torch.manual_seed(1)
    train(same[1], data)
    train(other, data)
    assert torch.equal(flat(same[0].params), flat(same[1].params))
    assert not torch.equal(flat(same[0].params), flat(other.params))


def test_resuming_draws_what_would_have_been_drawn():
    data = batches(8, dtype=torch.float64)
    whole, resumed = (build(ESAM(rho=RHO, gamma=0.5), dtype=torch.float64) for _ in range(2))
    train(whole, data[:3], by_samples)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.opt.load_state_dict(whole.opt.state_dict())
    train(whole, data[3:], by_samples)
    train(resumed, data[3:], by_samples)
    assert_same(snapshot(resumed), snapshot(whole))


# --- samples ----------------------------------------------------------------------------------------------------------


def by_hand(run, pieces, gamma):
    """The direction of the second pass: of each micro-batch the subset, of all of that size, that rises most."""
    g = torch.autograd.grad(sum(len(x) * loss_of(run.model, (x, y)) for x, y in pieces), run.params)
    names = [name for name, _ in run.model.named_parameters()]
    there = {n: (p + RHO * t / flat(g).norm()).detach().requires_grad_() for n, p, t in zip(names, run.params, g)}
    total = 0.0
    for x, y in pieces:
        before = F.cross_entropy(run.model(x), y, reduction="none")
        after = F.cross_entropy(torch.func.functional_call(run.model, there, (x,)), y, reduction="none")
        size = -int(-gamma * len(x) // 1)
        best = max(itertools.combinations(range(len(x)), size), key=lambda s, rise=after - before: rise[list(s)].sum())
        total = total + len(x) * after[list(best)].mean()
    return torch.autograd.grad(total / sum(len(x) for x, _ in pieces), list(there.values()))


@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.7, 0.99])
@pytest.mark.parametrize("sizes", [(8,), (3, 5), (1, 7)], ids=str)
def test_the_samples_are_those_that_rise_most(gamma, sizes):
    """In unequal micro-batches, of each the share, rounded up, weighted by what the micro-batch has."""
    batch = batches(1, size=8, dtype=torch.float64)[0]
    run = build(ESAM(rho=RHO, beta=1.0, gamma=gamma), dtype=torch.float64)
    pieces = halves(batch, sizes)
    expected = by_hand(run, pieces, gamma)
    for p in run.opt.passes():
        for piece in pieces:
            p.backward(p.chosen(losses_of(run, piece)).mean(), weight=len(piece[0]))
    torch.testing.assert_close(flat([p.grad for p in run.params]), flat(expected), rtol=0, atol=1e-13)


def test_all_samples_count_at_the_weights():
    run = build(ESAM(rho=RHO, gamma=0.5))
    batch = batches(1)[0]
    sizes = []
    for p in run.opt.passes():
        chosen = p.chosen(losses_of(run, batch))
        sizes.append(len(chosen))
        p.backward(chosen.mean())
    run.opt.step()
    assert sizes == [16, 8]
    torch.testing.assert_close(run.opt.diagnostics["loss"], loss_of(build(ESAM()).model, batch).item())


def test_parts_of_a_batch_choose_apart():
    batch = batches(1, dtype=torch.float64)[0]
    parts = halves(batch, (4, 12))
    run, twin = (build(ESAM(rho=RHO, beta=1.0, gamma=0.5), dtype=torch.float64) for _ in range(2))
    for p in run.opt.passes(parts=2, each=True):
        p.backward(p.chosen(losses_of(run, parts[p.part])).mean())
    expected = []
    for part in parts:
        for p in twin.opt.passes():
            p.backward(p.chosen(losses_of(twin, part)).mean())
        expected.append(flat([p.grad for p in twin.params]))
        twin.opt.zero_grad()
    torch.testing.assert_close(flat([p.grad for p in run.params]), sum(expected) / 2)


@pytest.mark.parametrize("size", [1, 7, 20, 50, 100, 128])
def test_a_share_in_percent_is_rounded_up_and_not_by_one_more(size):
    for percent in range(1, 100):
        selection = Selection(percent / 100)
        selection.of(torch.zeros(size))
        selection.choose()
        assert len(selection.of(torch.zeros(size))) == -(-percent * size // 100), percent


def test_however_small_the_share_one_sample_counts():
    selection = Selection(1e-15)
    selection.of(torch.zeros(3))
    selection.choose()
    assert len(selection.of(torch.zeros(3))) == 1


def test_of_losses_that_rise_alike_the_first_count():
    selection = Selection(0.5)
    selection.of(torch.arange(6.0))
    selection.choose()
    assert selection.of(torch.arange(6.0) + torch.tensor([0.0, 2.0, 1.0, 2.0, 2.0, 2.0])).tolist() == [3.0, 5.0, 6.0]


def test_other_methods_let_all_samples_count():
    run = build(SAM(rho=RHO))
    batch = batches(1)[0]
    for p in run.opt.passes():
        losses = losses_of(run, batch)
        assert p.chosen(losses) is losses
        p.backward(losses.mean())
    run.opt.step()


# --- what is told -----------------------------------------------------------------------------------------------------


def closure(run, batch):
    step_by_closure(run, batch)


def closures(run, batch):
    run.opt.step([closure_of(run, half) for half in halves(batch)])


def without_losses(run, batch):
    step_by_passes(run, batch)


def only_at_first(run, batch):
    for p in run.opt.passes():
        losses = losses_of(run, batch)
        p.backward((p.chosen(losses) if p.at_weights else losses).mean())


def by_mean(run, batch):
    for p in run.opt.passes():
        p.backward(p.chosen(loss_of(run.model, batch)))


def by_pieces(run, first, second):
    for p in run.opt.passes():
        for piece in first if p.at_weights else second:
            p.backward(p.chosen(losses_of(run, piece)).mean())


@pytest.mark.parametrize("step", [closure, closures, without_losses, only_at_first])
def test_a_step_that_does_not_show_its_losses_is_told_how(step):
    run = build(ESAM(rho=RHO, gamma=0.5))
    good, batch = batches(2)
    by_samples(run, good)
    before = snapshot(run)
    with pytest.raises(RuntimeError, match=r"p\.backward\(p\.chosen\(losses\)\.mean\(\)\)"):
        step(run, batch)
    assert_same(snapshot(run), before)
    by_samples(run, batch)


@pytest.mark.parametrize("step", [closure, closures, without_losses])
def test_with_all_samples_any_loop_will_do(step):
    run = build(ESAM(rho=RHO))
    assert count_evaluations(run, step, batches(1)[0]) == (4 if step is closures else 2)


def test_losses_must_be_one_for_each_sample():
    run = build(ESAM(rho=RHO, gamma=0.5))
    batch = batches(1)[0]
    with pytest.raises(ValueError, match=r"the loss of each sample.*\[\]"):
        by_mean(run, batch)


@pytest.mark.parametrize("change", [lambda pieces: pieces[::-1], lambda pieces: [*pieces, pieces[0]]])
def test_every_pass_takes_the_same_micro_batches(change):
    run = build(ESAM(rho=RHO, gamma=0.5))
    before = flat(run.params).clone()
    pieces = halves(batches(1)[0], (4, 12))
    with pytest.raises(ValueError, match="the same micro-batches"):
        by_pieces(run, pieces, change(pieces))
    assert torch.equal(flat(run.params), before)


def test_a_micro_batch_that_is_missing_later_is_told():
    run = build(ESAM(rho=RHO, gamma=0.5))
    pieces = halves(batches(1)[0], (4, 12))
    with pytest.raises(RuntimeError, match="in every pass"):
        by_pieces(run, pieces, pieces[:1])


@pytest.mark.parametrize("name", ["beta", "gamma"])
@pytest.mark.parametrize("value", [0.0, 1.1, -0.5, float("nan"), None, "0.5"])
def test_shares_must_be_above_zero_and_at_most_one(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        ESAM(**{name: value})
