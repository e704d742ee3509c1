"""LookSAM: its savings counted, its limits, and the direction between SAM steps."""

import pytest
import torch
from methods.evidence_one import from_peer, peer
from methods.quadratics import evaluate_around, state_at
from optim.problems import assert_same, batches, build, count_evaluations, flat, mlp, snapshot, step_by_closure, train

from flatwise.methods import SAM, SGD, LookSAM, drive

H = torch.diag(torch.tensor([8.0, 3.0, 1.0, 0.2, -2.0], dtype=torch.float64))
W = torch.tensor([0.3, -1.0, 0.7, 2.0, 0.4], dtype=torch.float64)


def trained(method, steps=12):
    run = build(method, dtype=torch.float64)
    train(run, batches(steps, dtype=torch.float64))
    return flat(run.params)


def test_ten_steps_take_twelve_evaluations():
    run = build(LookSAM(rho=0.1, every=5))
    counts = [count_evaluations(run, step_by_closure, batch) for batch in batches(10)]
    assert counts == [2, 1, 1, 1, 1] * 2
    assert sum(counts) == 12 == 10 * run.opt.method.cost


def test_at_every_step_it_is_sam():
    torch.testing.assert_close(trained(LookSAM(rho=0.1, every=1)), trained(SAM(rho=0.1)), rtol=0, atol=1e-14)


def test_without_alpha_the_steps_between_are_the_base_optimizers():
    """As SAM at every third step is."""
    run = build(SAM(rho=0.1), dtype=torch.float64)
    for step, batch in enumerate(batches(12, dtype=torch.float64)):
        run.opt.method = SGD() if step % 3 else SAM(rho=0.1)
        step_by_closure(run, batch)
    torch.testing.assert_close(trained(LookSAM(rho=0.1, every=3, alpha=0.0)), flat(run.params), rtol=0, atol=1e-14)


def directions(method, places):
    """One for each place, at steps 0, 1, 2, ... of one run."""
    state = state_at(method, W)
    for step, w in enumerate(places):
        state.weights, state.step = [w], step
        yield drive(method, evaluate_around(w, H), state)[0]


def test_between_the_gradient_is_turned_by_alpha_times_its_length():
    w = W + 0.1
    sams, turned = directions(LookSAM(rho=0.3, every=5, alpha=0.7), [W, w])
    torch.testing.assert_close(sams, H @ (W + 0.3 * H @ W / (H @ W).norm()))
    added = turned - H @ w
    torch.testing.assert_close(added.norm(), 0.7 * (H @ w).norm())
    assert abs(added @ (H @ W)).item() < 1e-10
    assert added @ sams > 0


def test_along_an_eigenvector_there_is_nothing_to_turn_by():
    w = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    _, between = directions(LookSAM(rho=0.3, every=5), [w, W])
    torch.testing.assert_close(between, H @ W)


def test_a_skipped_sam_step_is_made_up_for():
    """Schedules count steps that were taken."""
    run = build(LookSAM(rho=0.1, every=3), dtype=torch.float64)
    data = batches(4, dtype=torch.float64)
    train(run, data[:3])
    broken = (torch.full_like(data[3][0], torch.nan), data[3][1])
    assert count_evaluations(run, step_by_closure, broken) == 2
    assert count_evaluations(run, step_by_closure, data[3]) == 2
    assert run.opt.diagnostics["skipped"] == 1


def test_resuming_between_two_sam_steps_is_bitwise():
    data = batches(10, dtype=torch.float64)
    whole = build(LookSAM(rho=0.1, every=4), dtype=torch.float64)
    train(whole, data[:6])
    resumed = build(LookSAM(rho=0.1, every=4), dtype=torch.float64)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.opt.load_state_dict(whole.opt.state_dict())
    train(whole, data[6:])
    train(resumed, data[6:])
    assert_same(snapshot(resumed), snapshot(whole))


def test_tensor_by_tensor_it_is_another_method():
    """As pytorch_optimizer 4.1 has it. The paper has one projection and one length over all weights."""
    theirs = peer("LookSAM", rho=0.1, k=3, alpha=0.7)
    assert from_peer(LookSAM(rho=0.1, every=3), theirs) > 1e-2


def test_pytorch_optimizer_saves_nothing_by_it():
    model, calls = mlp(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    peer("LookSAM", rho=0.1, k=5, alpha=0.7)(model, batches(10))
    assert len(calls) == 20


@pytest.mark.parametrize(("name", "value"), [("every", 0), ("every", 2.5), ("alpha", -0.1), ("alpha", None)])
def test_arguments_out_of_range_are_named(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        LookSAM(**{name: value})
