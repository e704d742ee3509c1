"""torch.amp.GradScaler, on the CPU: unscale_, clipping, step and update read as always."""

import math

import pytest
import torch
from methods.cases import CASES, every_method
from optim.problems import (
    assert_same,
    batches,
    build,
    every_base,
    flat,
    loss_of,
    mlp,
    norm_net,
    snapshot,
    step_by_passes,
    train,
)


def scaler(scale=2.0**12, **options):
    return torch.amp.GradScaler("cpu", init_scale=scale, **options)


@every_base
@every_method
def test_a_scale_of_a_power_of_two_changes_nothing_bitwise(case, base):
    scaled, plain = build(case.method, base, norm_net), build(case.method, base, norm_net)
    scaling = scaler()
    for batch in batches(7):
        step_by_passes(scaled, batch, scaling)
        step_by_passes(plain, batch)
        assert_same(snapshot(scaled), snapshot(plain))


@every_method
def test_the_loss_in_the_diagnostics_is_unscaled(case):
    scaled, plain = build(case.method), build(case.method)
    scaling = scaler()
    for batch in batches(3):
        step_by_passes(scaled, batch, scaling)
        step_by_passes(plain, batch)
        assert scaled.opt.diagnostics == plain.opt.diagnostics


@every_method
def test_grad_is_the_direction_times_the_scale(case):
    scaled, plain = build(case.method), build(case.method)
    scaling = scaler(2.0**8)
    (batch,) = batches(1)
    for run, options in ((scaled, {"scaler": scaling}), (plain, {})):
        for p in run.opt.passes(**options):
            p.backward(loss_of(run.model, batch))
    for a, b in zip(scaled.params, plain.params):
        assert torch.equal(a.grad, b.grad * 2.0**8)
    scaling.unscale_(scaled.opt)
    assert_same([p.grad for p in scaled.params], [p.grad for p in plain.params])


@every_method
def test_unscale_and_clip_as_always(case):
    scaled, plain = build(case.method), build(case.method)
    scaling = scaler(growth_interval=1000)
    for batch in batches(5):
        for p in scaled.opt.passes(scaling):
            p.backward(loss_of(scaled.model, batch))
        scaling.unscale_(scaled.opt)
        torch.nn.utils.clip_grad_norm_(scaled.params, 0.1)
        scaling.step(scaled.opt)
        scaling.update()
        for p in plain.opt.passes():
            p.backward(loss_of(plain.model, batch))
        torch.nn.utils.clip_grad_norm_(plain.params, 0.1)
        plain.opt.step()
    assert_same(snapshot(scaled), snapshot(plain))


@every_method
def test_the_scale_grows_once_per_step(case):
    run = build(case.method)
    scaling = scaler(2.0**4, growth_interval=2)
    scales = []
    for batch in batches(6):
        step_by_passes(run, batch, scaling)
        scales.append(scaling.get_scale())
    assert scales == [2.0**4, 2.0**5, 2.0**5, 2.0**6, 2.0**6, 2.0**7]


@every_method
def test_micro_batches_with_a_scaler_equal_the_full_batch(case):
    accumulated, full = (build(case.method, dtype=torch.float64) for _ in range(2))
    scaling = scaler()
    for batch in batches(5, dtype=torch.float64):
        for p in accumulated.opt.passes(scaling):
            for x, y in zip(batch[0].split(4), batch[1].split(4)):
                p.backward(loss_of(accumulated.model, (x, y)))
        scaling.step(accumulated.opt)
        scaling.update()
        step_by_passes(full, batch)
    torch.testing.assert_close(flat(accumulated.params), flat(full.params), rtol=0, atol=1e-6)


@every_method
def test_a_disabled_scaler_is_no_scaler(case):
    disabled, plain = build(case.method), build(case.method)
    scaling = torch.amp.GradScaler("cpu", enabled=False)
    for batch in batches(3):
        step_by_passes(disabled, batch, scaling)
        step_by_passes(plain, batch)
    assert_same(snapshot(disabled), snapshot(plain))


@every_method
def test_record_takes_over_a_scaled_backward_of_somebody_else(case):
    recorded, own = build(case.method), build(case.method)
    first, second = scaler(), scaler()
    for batch in batches(4):
        for p in recorded.opt.passes(first):
            loss = loss_of(recorded.model, batch)
            first.scale(loss).backward()
            p.record(loss)
        first.step(recorded.opt)
        first.update()
        step_by_passes(own, batch, second)
    assert_same(snapshot(recorded), snapshot(own))


def autocast_step(run, batch, scaling):
    for p in run.opt.passes(scaling):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(run.model, batch)
        p.backward(loss)
    scaling.step(run.opt)
    scaling.update()


@every_method
def test_half_precision_autocast_trains_like_single(case):
    half, single = build(case.method), build(case.method)
    scaling = scaler(2.0**10)
    for batch in batches(10):
        autocast_step(half, batch, scaling)
        step_by_passes(single, batch)
    assert half.opt.diagnostics["skipped"] == 0
    moved = (flat(single.params) - flat(mlp().parameters())).norm()
    assert (flat(half.params) - flat(single.params)).norm() < 0.1 * moved


@every_method
def test_a_scale_far_too_large_backs_off_once_a_step_until_it_fits(case):
    """A real overflow of float16 gradients, not an injected one."""
    run = build(case.method)
    scaling = scaler(2.0**40)
    start = flat(run.params)
    for batch in batches(40):
        before, scale = flat(run.params), scaling.get_scale()
        autocast_step(run, batch, scaling)
        if scaling.get_scale() < scale:
            assert scaling.get_scale() == scale / 2
            assert torch.equal(flat(run.params), before)
    assert 0 < run.opt.diagnostics["skipped"] < 40
    assert torch.isfinite(flat(run.params)).all()
    assert not torch.equal(flat(run.params), start)


@pytest.mark.parametrize("spoilt", [math.inf, math.nan])
@every_method
def test_a_forward_that_validates_is_never_shown_weights_that_are_not_finite(case, spoilt):
    """torch.distributions raises on NaN: it would end the run before the scale could back off."""
    run, scaling = build(case.method), scaler(2.0**8)
    x, _ = batches(1)[0]
    before = flat(run.params)
    for number, p in enumerate(run.opt.passes(scaling)):
        mean, deviation, other = run.model(x).unbind(1)
        loss = -torch.distributions.Normal(mean, deviation.exp()).log_prob(other).mean()
        p.backward(loss * (spoilt if number == 0 else 1.0))
    scaling.step(run.opt)
    scaling.update()
    assert scaling.get_scale() == 2.0**7
    assert torch.equal(flat(run.params), before)
    assert run.opt.diagnostics["skipped"] == 1


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_the_scaler_may_be_saved_with_everything_else(base):
    run, twin = build(CASES[1].method, base), build(CASES[1].method, base)
    first, second = scaler(growth_interval=2), scaler(growth_interval=2)
    data = batches(6)
    train(run, data[:3], lambda r, b: step_by_passes(r, b, first))
    twin.model.load_state_dict(run.model.state_dict())
    twin.opt.load_state_dict(run.opt.state_dict())
    second.load_state_dict(first.state_dict())
    for r, s in ((run, first), (twin, second)):
        train(r, data[3:], lambda r, b, s=s: step_by_passes(r, b, s))
    assert_same(snapshot(twin), snapshot(run))
    assert first.get_scale() == second.get_scale()


@every_method
def test_a_closure_through_a_scaler_is_refused_with_the_way_out(case):
    """torch refuses closure=...; passed by position it slips through, and the update would be 65,536 times too large."""
    run = build(case.method)
    scaling = scaler()
    (batch,) = batches(1)
    scaling.scale(loss_of(run.model, batch)).backward()
    before = [p.detach().clone() for p in run.params]

    def closure():
        loss = loss_of(run.model, batch)
        scaling.scale(loss).backward()
        return loss

    with pytest.raises(RuntimeError, match=r"for p in optimizer\.passes\(scaler\)"):
        scaling.step(run.opt, closure)
    assert_same([p.detach() for p in run.params], before)


@pytest.mark.parametrize("bad", [None, 0, 1])
@every_method
def test_several_optimizers_on_one_scaler(case, bad):
    """Each is skipped alone; the scale backs off once if any of them was."""
    runs, twins = ([build(case.method, base) for base in ("sgd", "adamw")] for _ in range(2))
    scaling = scaler(2.0**8, growth_interval=100)
    for step, batch in enumerate(batches(4)):
        for i, run in enumerate(runs):
            for p in run.opt.passes(scaling):
                p.backward(loss_of(run.model, batch) * (float("inf") if step == 2 and i == bad else 1))
        for run in runs:
            scaling.unscale_(run.opt)
            torch.nn.utils.clip_grad_norm_(run.params, 0.5)
        for run in runs:
            scaling.step(run.opt)
        scaling.update()
        for i, twin in enumerate(twins):
            if not (step == 2 and i == bad):
                for p in twin.opt.passes():
                    p.backward(loss_of(twin.model, batch))
                torch.nn.utils.clip_grad_norm_(twin.params, 0.5)
                twin.opt.step()
    for i, (run, twin) in enumerate(zip(runs, twins)):
        assert_same([p.detach() for p in run.params], [p.detach() for p in twin.params])
        assert run.opt.diagnostics["skipped"] == (i == bad)
    assert scaling.get_scale() == (2.0**8 if bad is None else 2.0**7)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("overflows_in", [None, "first", "last"])
@every_method
def test_every_combination_of_pass_accumulation_and_clipping(case, overflows_in, micro, clipped):
    """An overflow in one micro-batch of one pass skips the step and halves the scale; all other steps are unscaled ones."""
    run, plain = build(case.method, dtype=torch.float64), build(case.method, dtype=torch.float64)
    scaling = scaler(2.0**6, growth_interval=100)
    for step, batch in enumerate(batches(4, size=12, dtype=torch.float64)):
        before = flat(run.params)
        spoil = overflows_in if step == 2 else None
        micro_batches = list(zip(batch[0].chunk(micro), batch[1].chunk(micro)))
        for number, p in enumerate(run.opt.passes(scaling)):
            for k, part in enumerate(micro_batches):
                last = run.opt.method != CASES[0].method
                here = (spoil == "first" and number == 0) or (spoil == "last" and number == int(last))
                factor = float("inf") if here and k == micro - 1 else 1.0
                p.backward(loss_of(run.model, part) * factor)
        if clipped:
            scaling.unscale_(run.opt)
            torch.nn.utils.clip_grad_norm_(run.params, 0.1)
        scaling.step(run.opt)
        scaling.update()
        if spoil:
            assert torch.equal(flat(run.params), before)
            continue
        for p in plain.opt.passes():
            p.backward(loss_of(plain.model, batch))
        if clipped:
            torch.nn.utils.clip_grad_norm_(plain.params, 0.1)
        plain.opt.step()
    torch.testing.assert_close(flat(run.params), flat(plain.params), rtol=0, atol=1e-6)
    assert scaling.get_scale() == (2.0**6 if overflows_in is None else 2.0**5)
    assert run.opt.diagnostics["skipped"] == (overflows_in is not None)
