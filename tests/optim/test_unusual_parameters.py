"""Frozen, unused, tied, half-precision parameters, parameters of one pass only, zero gradients."""

import pytest
import torch
from methods.cases import RHO, every_displacing_method, every_method, every_transcribed_method
from optim.problems import (
    BASES,
    batches,
    build,
    every_base,
    flat,
    loss_of,
    mlp,
    seeded,
    step_by_closure,
    step_by_passes,
    train,
    weights,
)
from reference import transcriptions
from torch import nn

from flatwise import methods


class Spare(nn.Module):
    """A used layer, a frozen one, and one that takes no part."""

    def __init__(self):
        super().__init__()
        self.used, self.frozen, self.spare = nn.Linear(6, 3), nn.Linear(3, 3), nn.Linear(4, 4)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.frozen(torch.tanh(self.used(x)))


def spare_net(dtype=torch.float32):
    return seeded(Spare).to(dtype)


@pytest.mark.parametrize("step", [step_by_closure, step_by_passes])
@every_base
@every_method
def test_frozen_and_unused_parameters_stay_as_they_are(case, base, step):
    run = build(case.method, base, spare_net)
    before = weights(run)
    train(run, batches(5), step)
    for parameter, old in zip(run.params[2:], before[2:]):
        assert parameter.grad is None
        assert torch.equal(parameter, old)
    assert not torch.equal(run.params[0], before[0])


def huge_spare_net(dtype=torch.float64):
    """The parameters without gradient are larger than the others by orders of magnitude, like a frozen backbone."""
    model = spare_net(torch.float64)
    with torch.no_grad():
        model.spare.weight.mul_(1e6)
    return model


@every_method
def test_parameters_without_gradient_change_nothing_for_the_others(case):
    """Not the norms of gradients, nor the length of a difference of gradients."""
    groups = lambda model: list(model.used.parameters())
    with_them, without = build(case.method, net=huge_spare_net), build(case.method, net=huge_spare_net, groups=groups)
    data = batches(5, dtype=torch.float64)
    train(with_them, data)
    train(without, data)
    torch.testing.assert_close(flat(with_them.params[:2]), flat(without.params[:2]), rtol=0, atol=1e-6)


class OneEvaluationOnly(nn.Module):
    """A second layer that takes part in the given evaluations (numbers within a step) only."""

    def __init__(self, evaluations):
        super().__init__()
        self.always, self.sometimes = nn.Linear(6, 3), nn.Linear(6, 3)
        self.evaluations, self.calls = evaluations, 0

    def forward(self, x):
        self.calls += 1
        out = self.always(x)
        return out + self.sometimes(x) if self.calls - 1 in self.evaluations else out


def one_evaluation_net(*evaluations):
    return lambda dtype=torch.float32: seeded(lambda: OneEvaluationOnly(evaluations)).to(dtype)


@pytest.mark.parametrize("evaluation", [0, 1])
def test_sam_with_parameters_of_one_pass_only(evaluation):
    """In the first only: displaced, restored, and not stepped. In the second only: not displaced, but stepped."""
    run = build(methods.SAM(rho=RHO), net=one_evaluation_net(evaluation))
    before = weights(run)
    step_by_closure(run, batches(1)[0])
    assert torch.equal(run.model.sometimes.weight, before[2]) == (evaluation == 0)
    assert (run.model.sometimes.weight.grad is None) == (evaluation == 0)
    assert not torch.equal(run.model.always.weight, before[0])


@every_displacing_method
def test_parameters_of_one_pass_only_are_restored(case):
    (batch,) = batches(1)
    for evaluation in range(6):
        run = build(case.method, net=one_evaluation_net(evaluation))
        before = weights(run)
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batch))
        assert all(torch.equal(p, old) for p, old in zip(run.params, before))
        run.opt.step()
        assert torch.isfinite(flat(run.params)).all()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.decode.weight = self.encode.weight

    def forward(self, x):
        return self.out(torch.tanh(self.decode(torch.tanh(self.encode(x)))))


def tied_net(dtype=torch.float32):
    return seeded(Tied).to(dtype)


@every_transcribed_method
def test_tied_weights_are_displaced_once(case):
    run, model = build(case.method, net=tied_net, dtype=torch.float64), tied_net(torch.float64)
    params = list(model.parameters())
    base = BASES["sgd"](params)
    for batch in batches(10, dtype=torch.float64):
        step_by_closure(run, batch)
        loss = lambda batch=batch: loss_of(model, batch)
        transcriptions.take_step(base, params, case.transcription(loss, params))
    assert run.model.decode.weight is run.model.encode.weight
    torch.testing.assert_close(flat(run.params), flat(params), rtol=0, atol=case.double_tolerance)


@every_base
@every_method
def test_a_zero_gradient_is_not_a_nan(case, base):
    run = build(case.method, base)
    before = flat(run.params)

    def closure():
        loss = 0.0 * loss_of(run.model, batches(1)[0])
        loss.backward()
        return loss

    for _ in range(4):
        run.opt.step(closure)
    assert torch.isfinite(flat(run.params)).all()
    assert run.opt.diagnostics["skipped"] == 0
    torch.testing.assert_close(flat(run.params), before, rtol=0.01, atol=1e-4)


@every_method
def test_half_precision_weights_with_a_zero_gradient(case):
    make = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
    run = build(case.method, make, mlp, torch.float16)
    before = flat(run.params)

    def closure():
        loss = 0.0 * run.model(torch.ones(4, 6, dtype=torch.float16)).sum()
        loss.backward()
        return loss

    for _ in range(4):
        run.opt.step(closure)
    assert torch.equal(flat(run.params), before)


def test_half_precision_gradients_whose_squares_underflow():
    """Squares of 3e-5 are zero in float16; the displacement must have length rho all the same."""
    w = nn.Parameter(torch.linspace(0.5, 1.0, 8, dtype=torch.float16))
    model = nn.ParameterList([w])
    import flatwise as fw

    opt = fw.SharpnessAware(torch.optim.SGD([w], lr=1.0), methods.SAM(rho=0.25), model=model)
    coefficients = torch.full((8,), 3e-5, dtype=torch.float16)
    start = w.detach().clone()
    for p in opt.passes():
        if not p.at_weights:
            displacement = w.detach().float() - start.float()
        p.backward((w * coefficients).sum())
    torch.testing.assert_close(displacement.norm().item(), 0.25, rtol=1e-2, atol=0)
    assert torch.equal(w, start)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@every_method
def test_weights_of_every_dtype_are_restored_bitwise(case, dtype):
    run = build(case.method, lambda params: torch.optim.SGD(params, lr=0.0), dtype=dtype)
    before = weights(run)
    for batch in batches(6, dtype=dtype):
        step_by_closure(run, batch)
        assert all(torch.equal(p, old) for p, old in zip(run.params, before))
    assert all(p.dtype == dtype for p in run.params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_method
def test_half_precision_weights_train(case, dtype):
    run = build(case.method, lambda params: torch.optim.SGD(params, lr=0.1), dtype=dtype)
    (batch,) = batches(1, dtype=dtype)
    losses = [float(step_by_closure(run, batch)) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.1
    assert run.opt.diagnostics["skipped"] == 0


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.low, self.high = nn.Linear(6, 10).to(torch.bfloat16), nn.Linear(10, 3).double()

    def forward(self, x):
        return self.high(torch.tanh(self.low(x.to(torch.bfloat16))).double())


@every_base
@every_method
def test_mixed_dtypes_in_one_model(case, base):
    run = build(case.method, base, lambda dtype: seeded(Mixed))
    (batch,) = batches(1)
    losses = [float(step_by_closure(run, batch)) for _ in range(15)]
    assert losses[-1] < losses[0]
    assert [p.dtype for p in run.params] == [torch.bfloat16] * 2 + [torch.float64] * 2
    assert run.opt.diagnostics["skipped"] == 0


def test_the_norm_of_mixed_dtypes_is_taken_over_all():
    run = build(methods.SAM(rho=RHO), net=lambda dtype: seeded(Mixed))
    (batch,) = batches(1)
    start = weights(run)
    for p in run.opt.passes():
        if not p.at_weights:
            displacement = flat([now.double() - old.double() for now, old in zip(run.params, start)])
        p.backward(loss_of(run.model, batch))
    assert displacement.norm().item() == pytest.approx(RHO, rel=2e-2)


@every_method
def test_scalar_and_empty_parameters(case):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(6, 3), nn.Parameter(torch.tensor(1.5))
            self.empty = nn.Parameter(torch.zeros(0))

        def forward(self, x):
            return self.layer(x) * self.scale + self.empty.sum()

    run = build(case.method, net=lambda dtype: seeded(Odd))
    (batch,) = batches(1)
    losses = [float(step_by_closure(run, batch)) for _ in range(10)]
    assert losses[-1] < losses[0]


@every_method
def test_non_contiguous_weights(case):
    def transposed(dtype):
        model = mlp(dtype)
        model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())
        return model

    strided, plain = build(case.method, net=transposed), build(case.method)
    train(strided, batches(5))
    train(plain, batches(5))
    torch.testing.assert_close(flat(strided.params), flat(plain.params), rtol=0, atol=1e-4)


@every_method
def test_parameters_of_the_model_that_the_optimizer_does_not_hold(case):
    """They are neither displaced nor stepped."""
    run = build(case.method, groups=lambda model: list(model[0].parameters()))
    before = weights(run)
    for batch in batches(4):
        for p in run.opt.passes():
            p.backward(loss_of(run.model, batch))
            assert all(torch.equal(p, old) for p, old in zip(run.params[2:], before[2:]))
        run.opt.step()
    assert all(torch.equal(p, old) for p, old in zip(run.params[2:], before[2:]))
