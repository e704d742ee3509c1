"""Averages of the weights, SWA and EMA of `torch.optim.swa_utils`, around every method.

An average may be updated at any moment at which no pass is open: after a step, from a hook, after the passes, after a break.
"""

import copy

import pytest
import torch
from methods.cases import every_displacing_method, every_method
from optim.problems import (
    assert_same,
    batches,
    build,
    every_base,
    flat,
    loss_of,
    noisy_net,
    norm_net,
    snapshot,
    step_by_closure,
    step_by_passes,
    train,
    weights,
)
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

DECAY = 0.9
STEPS = 6
both_ways = pytest.mark.parametrize("step", [step_by_closure, step_by_passes], ids=["closure", "passes"])


def path_of(setup, data, step=step_by_closure):
    """The weights after every step, flat and in float64."""
    torch.manual_seed(0)  # for dropout
    path = []
    for batch in data:
        step(setup, batch)
        path.append(flat(setup.params).double())
    return path


def plain_mean(path):
    return torch.stack(path).mean(0)


def moving_average(path):
    average = path[0]
    for now in path[1:]:
        average = DECAY * average + (1 - DECAY) * now
    return average


AVERAGES = {
    "swa": (AveragedModel, plain_mean),
    "ema": (lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY)), moving_average),
}
every_average = pytest.mark.parametrize("average", AVERAGES)


def averaged_weights(averaged):
    return flat(averaged.module.parameters()).double()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


# --- what is averaged -------------------------------------------------------------------------------------------------


@every_method
@every_average
@both_ways
def test_an_average_is_that_of_the_weights_of_training_without_it(case, average, step):
    make, expected = AVERAGES[average]
    data = batches(STEPS)
    setup = build(case.method, net=noisy_net)
    averaged = make(setup.model)
    torch.manual_seed(0)
    for batch in data:
        step(setup, batch)
        averaged.update_parameters(setup.model)
    plain = build(case.method, net=noisy_net)
    path = path_of(plain, data, step)
    assert_close(averaged_weights(averaged), expected(path))
    assert_same(snapshot(setup), snapshot(plain))  # and averaging has changed nothing


@every_displacing_method
@every_average
@pytest.mark.parametrize("place", ["opt", "base"])
def test_an_average_may_be_updated_in_a_hook_of_the_wrapper_or_of_the_base(case, average, place):
    make, expected = AVERAGES[average]
    data = batches(STEPS)
    setup = build(case.method)
    averaged = make(setup.model)
    getattr(setup, place).register_step_post_hook(lambda *_: averaged.update_parameters(setup.model))
    train(setup, data)
    assert averaged.n_averaged == STEPS
    assert_close(averaged_weights(averaged), expected(path_of(build(case.method), data)))


@every_displacing_method
def test_between_the_passes_and_the_step_an_average_sees_the_weights_before_the_step(case):
    setup = build(case.method)
    averaged = AveragedModel(setup.model)
    path = [flat(setup.params).double()]
    for batch in batches(STEPS):
        for p in setup.opt.passes():
            p.backward(loss_of(setup.model, batch))
        averaged.update_parameters(setup.model)
        setup.opt.step()
        path.append(flat(setup.params).double())
    assert_close(averaged_weights(averaged), plain_mean(path[:-1]))


@every_displacing_method
def test_after_a_break_in_a_displaced_pass_an_average_sees_the_weights(case):
    setup = build(case.method)
    before = flat(setup.params).double()
    averaged = AveragedModel(setup.model)
    (batch,) = batches(1)
    for p in setup.opt.passes():
        p.backward(loss_of(setup.model, batch))
        if not p.at_weights:
            break
    averaged.update_parameters(setup.model)
    assert torch.equal(averaged_weights(averaged), before)


@every_displacing_method
def test_inside_the_passes_only_those_at_the_weights_show_them(case):
    """A model is displaced while a displaced pass is open: whoever reads it there asks `p.at_weights` first."""
    setup = build(case.method)
    before = flat(setup.params)
    (batch,) = batches(1)
    seen = []
    for p in setup.opt.passes():
        p.backward(loss_of(setup.model, batch))
        seen.append((p.at_weights, torch.equal(flat(setup.params), before)))
    assert (True, True) in seen
    assert (False, False) in seen
    assert all(said == found for said, found in seen)


@every_method
def test_a_step_skipped_as_not_finite_counts_once_more_the_weights_that_it_left(case):
    setup = build(case.method)
    averaged = AveragedModel(setup.model)
    good, bad = batches(2)
    bad[0][0] = torch.inf
    for batch in (good, bad):
        step_by_closure(setup, batch)
        averaged.update_parameters(setup.model)
    assert averaged.n_averaged == 2
    assert_close(averaged_weights(averaged), flat(setup.params).double())


# --- BatchNorm --------------------------------------------------------------------------------------------------------


def norm_layer(model):
    return next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d))


@every_method
def test_update_bn_gives_the_averaged_network_the_statistics_of_its_own_activations(case):
    data = batches(STEPS)
    setup = build(case.method, net=norm_net)
    averaged = AveragedModel(setup.model)
    for batch in data:
        step_by_closure(setup, batch)
        averaged.update_parameters(setup.model)
    update_bn(data, averaged)
    with torch.no_grad():
        activations = [averaged.module[0](inputs) for inputs, _ in data]
    found = norm_layer(averaged)
    torch.testing.assert_close(found.running_mean, torch.stack([a.mean(0) for a in activations]).mean(0))
    torch.testing.assert_close(found.running_var, torch.stack([a.var(0) for a in activations]).mean(0))
    assert found.num_batches_tracked == STEPS


@every_method
def test_averaged_buffers_are_those_of_one_plain_pass_a_step(case):
    data = batches(STEPS)
    setup = build(case.method, net=norm_net)
    averaged = AveragedModel(setup.model, use_buffers=True)
    seen = []
    for batch in data:
        inputs = setup.model[0](batch[0]).detach()
        step_by_closure(setup, batch)
        averaged.update_parameters(setup.model)
        seen.append(inputs.mean(0))
    running, running_means = torch.zeros(10), []
    for mean in seen:
        running = 0.9 * running + 0.1 * mean
        running_means.append(running)
    torch.testing.assert_close(norm_layer(averaged).running_mean, torch.stack(running_means).mean(0))


# --- swapping, schedules, checkpoints ---------------------------------------------------------------------------------


def exchange_by_copy(model, averaged):
    with torch.no_grad():
        for p, a in zip(model.parameters(), averaged.module.parameters()):
            kept = p.clone()
            p.copy_(a)
            a.copy_(kept)


def exchange_storage(model, averaged):
    for p, a in zip(model.parameters(), averaged.module.parameters()):
        p.data, a.data = a.data, p.data


@every_method
@pytest.mark.parametrize("exchange", [exchange_by_copy, exchange_storage])
def test_swapping_the_average_in_and_out_for_an_evaluation_leaves_no_trace(case, exchange):
    data = batches(2 * STEPS)
    setup, plain = build(case.method), build(case.method)
    averaged = AveragedModel(setup.model)
    for batch in data:
        step_by_closure(setup, batch)
        averaged.update_parameters(setup.model)
        mean = averaged_weights(averaged)
        exchange(setup.model, averaged)
        assert torch.equal(flat(setup.params).double(), mean)
        exchange(setup.model, averaged)
    train(plain, data)
    assert_same(snapshot(setup), snapshot(plain))


@every_method
def test_training_goes_on_from_the_average(case):
    data = batches(2 * STEPS)
    setup = build(case.method)
    averaged = AveragedModel(setup.model)
    for batch in data[:STEPS]:
        step_by_closure(setup, batch)
        averaged.update_parameters(setup.model)
    other = build(case.method)
    other.opt.load_state_dict(copy.deepcopy(setup.opt.state_dict()))
    other.model.load_state_dict(averaged.module.state_dict())
    exchange_storage(setup.model, averaged)
    train(setup, data[STEPS:])
    train(other, data[STEPS:])
    assert_same(weights(setup), weights(other))


def with_schedule(setup):
    """Cosine for the first steps, then annealed to a constant rate; a schedule a step, as nothing else is an epoch here."""
    return CosineAnnealingLR(setup.opt, T_max=STEPS), SWALR(setup.opt, swa_lr=0.02, anneal_epochs=2)


def train_with_schedule(setup, schedules, averaged, data, done=0):
    for i, batch in enumerate(data, start=done):
        step_by_closure(setup, batch)
        schedules[i >= STEPS].step()
        if i >= STEPS:
            averaged.update_parameters(setup.model)


@every_method
@every_base
def test_swalr_on_the_wrapper_sets_the_rate_of_the_base(case, base):
    setup = build(case.method, base)
    train_with_schedule(setup, with_schedule(setup), AveragedModel(setup.model), batches(2 * STEPS))
    assert [group["lr"] for group in setup.base.param_groups] == pytest.approx([0.02])
    by_hand = build(case.method, base)
    rates = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=by_hand.base.param_groups[0]["lr"])
    schedules = CosineAnnealingLR(rates, T_max=STEPS), SWALR(rates, swa_lr=0.02, anneal_epochs=2)
    for i, batch in enumerate(batches(2 * STEPS)):
        by_hand.base.param_groups[0]["lr"] = rates.param_groups[0]["lr"]
        step_by_closure(by_hand, batch)
        rates.step()
        schedules[i >= STEPS].step()
    assert_same(weights(setup), weights(by_hand))


@every_method
@every_average
@pytest.mark.parametrize("stop", [STEPS - 2, STEPS + 1, STEPS + 4])
def test_a_run_resumed_with_its_average_goes_on_bitwise(case, average, stop):
    data = batches(2 * STEPS)
    make = AVERAGES[average][0]
    runs = []
    for _ in range(2):
        setup = build(case.method, net=norm_net)
        runs.append((setup, with_schedule(setup), make(setup.model)))
    (whole, schedules, averaged), (resumed, schedules_again, averaged_again) = runs
    train_with_schedule(whole, schedules, averaged, data[:stop])
    parts = [whole.model, whole.opt, averaged, *schedules]
    saved = copy.deepcopy([part.state_dict() for part in parts])
    train_with_schedule(whole, schedules, averaged, data[stop:], done=stop)
    for part, state in zip([resumed.model, resumed.opt, averaged_again, *schedules_again], saved):
        part.load_state_dict(state)
    train_with_schedule(resumed, schedules_again, averaged_again, data[stop:], done=stop)
    assert_same(snapshot(resumed), snapshot(whole))
    assert_same(dict(averaged_again.state_dict()), dict(averaged.state_dict()))
