"""rho = 0, a rho of each group's own, and groups added later."""

import pytest
import torch
from methods.cases import RHO, every_displacing_method, every_method
from optim.problems import (
    BASES,
    assert_same,
    batches,
    build,
    count_evaluations,
    every_base,
    flat,
    loss_of,
    mlp,
    step_by_closure,
    step_by_passes,
    train,
    weights,
)
from reference import transcriptions

from flatwise import methods


def plain_run(base, data, groups=None):
    model = mlp()
    optimizer = BASES[base](groups(model) if groups else model.parameters())
    for batch in data:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("step", [step_by_closure, step_by_passes])
@every_base
@every_displacing_method
def test_rho_zero_is_the_base_optimizer_bitwise(case, base, step):
    data = batches(8)
    run = build(case.with_rho(0.0), base)
    train(run, data, step)
    model, optimizer = plain_run(base, data)
    assert_same(run.model.state_dict(), model.state_dict())
    assert_same(run.base.state_dict()["state"], optimizer.state_dict()["state"])


@every_displacing_method
def test_rho_zero_in_every_group_is_the_base_optimizer_bitwise(case):
    data = batches(8)
    run = build(case.method, groups=lambda model: [{"params": model.parameters(), "rho": 0.0}])
    train(run, data)
    assert_same(run.model.state_dict(), plain_run("sgd", data)[0].state_dict())


@pytest.mark.parametrize("step", [step_by_closure, step_by_passes])
@every_displacing_method
def test_rho_zero_costs_one_evaluation(case, step):
    run = build(case.with_rho(0.0))
    assert [count_evaluations(run, step, batch) for batch in batches(3)] == [1, 1, 1]


@every_displacing_method
def test_rho_zero_in_every_group_costs_one_evaluation(case):
    run = build(case.method, groups=lambda model: [{"params": model.parameters(), "rho": 0.0}])
    assert [count_evaluations(run, step_by_closure, batch) for batch in batches(3)] == [1, 1, 1]


def two_groups(rho):
    return lambda model: [{"params": model[0].parameters()}, {"params": model[2].parameters(), "rho": rho}]


def displacement_and_gradient(run, batch):
    """The displacement of the one displaced pass that is not a probe, and the gradient at the weights."""
    start = weights(run)
    for p in run.opt.passes():
        if not p.at_weights and not p.is_probe:
            displacement = [now.detach() - before for now, before in zip(run.params, start)]
        p.backward(loss_of(run.model, batch))
    run.opt.step()
    return displacement, gradient_at(start, run, batch)


def gradient_at(start, run, batch):
    model = mlp(start[0].dtype)
    for p, value in zip(model.parameters(), start):
        p.data.copy_(value)
    return transcriptions.gradient(lambda: loss_of(model, batch), list(model.parameters()))


def test_a_group_with_rho_zero_is_not_displaced_and_does_not_count_in_the_norm():
    run = build(methods.SAM(rho=RHO), dtype=torch.float64, groups=two_groups(0.0))
    (batch,) = batches(1, dtype=torch.float64)
    displacement, g = displacement_and_gradient(run, batch)
    assert torch.equal(flat(displacement[2:]), torch.zeros(33, dtype=torch.float64))
    torch.testing.assert_close(flat(displacement[:2]), RHO * flat(g[:2]) / flat(g[:2]).norm())


def test_every_group_is_scaled_by_its_own_rho():
    run = build(methods.SAM(rho=RHO), dtype=torch.float64, groups=two_groups(3 * RHO))
    (batch,) = batches(1, dtype=torch.float64)
    displacement, g = displacement_and_gradient(run, batch)
    torch.testing.assert_close(flat(displacement[:2]), RHO * flat(g[:2]) / flat(g).norm())
    torch.testing.assert_close(flat(displacement[2:]), 3 * RHO * flat(g[2:]) / flat(g).norm())


def test_reverse_sam_scales_every_group_too():
    run = build(methods.ReverseSAM(rho=RHO), dtype=torch.float64, groups=two_groups(3 * RHO))
    (batch,) = batches(1, dtype=torch.float64)
    displacement, g = displacement_and_gradient(run, batch)
    torch.testing.assert_close(flat(displacement[2:]), -3 * RHO * flat(g[2:]) / flat(g).norm())


def test_gradient_norm_weighs_every_group_by_its_own_rho():
    """g + H d with d = rho_i g_i / |g|; a group with rho 0 does not count in the norm."""
    run = build(methods.GradientNorm(rho=RHO), dtype=torch.float64, groups=two_groups(0.0))
    (batch,) = batches(1, dtype=torch.float64)
    h = transcriptions.hessian_matrix(lambda: loss_of(run.model, batch), run.params)
    g = flat(transcriptions.gradient(lambda: loss_of(run.model, batch), run.params))
    inside = torch.arange(len(g)) < 70
    expected = g + h @ torch.where(inside, RHO * g / g[inside].norm(), 0)
    for p in run.opt.passes():
        p.backward(loss_of(run.model, batch))
    torch.testing.assert_close(flat([p.grad for p in run.params]), expected, rtol=0, atol=1e-6)


def test_eigen_sam_keeps_its_vector_to_the_displaced_groups():
    run = build(methods.EigenSAM(rho=RHO, alpha=0.5), dtype=torch.float64, groups=two_groups(0.0))
    (batch,) = batches(1, dtype=torch.float64)
    displacement, g = displacement_and_gradient(run, batch)
    state = run.opt.state_dict()["state"]
    v = [state[i]["flatwise.eigenvector"] for i in range(2)]
    expected = transcriptions.eigen_sam_displacement(g[:2], v, RHO, 0.5)
    assert torch.equal(flat(displacement[2:]), torch.zeros(33, dtype=torch.float64))
    torch.testing.assert_close(flat(displacement[:2]), flat(expected))
    torch.testing.assert_close(flat(v).norm().item(), 1.0)


@every_displacing_method
def test_a_groups_rho_is_used_where_the_methods_own_is_another(case):
    """rho on the group equals rho on the method."""
    data = batches(6, dtype=torch.float64)
    groups = lambda model: [{"params": model.parameters(), "rho": 2 * RHO}]
    on_group = build(case.method, groups=groups, dtype=torch.float64)
    on_method = build(case.with_rho(2 * RHO), dtype=torch.float64)
    train(on_group, data)
    train(on_method, data)
    torch.testing.assert_close(flat(on_group.params), flat(on_method.params), rtol=0, atol=1e-6)


@every_method
def test_a_group_added_later_equals_a_group_from_the_start(case):
    data = batches(6)
    late = build(case.method, groups=lambda model: [{"params": list(model[0].parameters())}])
    late.opt.add_param_group({"params": list(late.model[2].parameters()), "lr": 0.05})
    early = build(
        case.method,
        groups=lambda model: [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.05}],
    )
    train(late, data)
    train(early, data)
    assert_same(late.opt.state_dict(), early.opt.state_dict())
    assert_same(late.model.state_dict(), early.model.state_dict())
    assert late.opt.param_groups is late.base.param_groups


@every_method
def test_a_group_may_be_added_in_the_middle_of_a_run(case):
    run = build(case.method, groups=lambda model: [{"params": list(model[0].parameters())}])
    data = batches(8)
    train(run, data[:4])
    before = flat(run.model[2].parameters())
    run.opt.add_param_group(
        {"params": list(run.model[2].parameters()), "rho": 0.02 if hasattr(case.method, "rho") else 0.0}
    )
    train(run, data[4:])
    assert not torch.equal(flat(run.model[2].parameters()), before)
    assert torch.isfinite(flat(run.params)).all()


@pytest.mark.parametrize("method", [methods.SGD(), methods.PRGD(), methods.Late(methods.SGD())])
def test_a_groups_rho_is_refused_where_the_method_has_none(method):
    """But 0, which says what such a method does, and what was there when another method took over."""
    with pytest.raises(ValueError, match=r"has no effect: the method .* has no rho"):
        build(method, groups=two_groups(0.1))
    run = build(method, groups=lambda model: [{"params": list(model[0].parameters()), "rho": 0.0}])
    with pytest.raises(ValueError, match="has no effect"):
        run.opt.add_param_group({"params": list(run.model[2].parameters()), "rho": 0.1})
    switched = build(methods.SAM(rho=RHO), groups=two_groups(0.1))
    switched.opt.method = method
    train(switched, batches(1))


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf"), None, "0.05"])
def test_a_groups_rho_out_of_range_is_refused(rho):
    with pytest.raises((ValueError, TypeError), match="rho"):
        build(methods.SAM(), groups=two_groups(rho))
    run = build(methods.SAM(), groups=lambda model: [{"params": list(model[0].parameters())}])
    with pytest.raises((ValueError, TypeError), match="rho"):
        run.opt.add_param_group({"params": list(run.model[2].parameters()), "rho": rho})
    assert len(run.opt.param_groups) == 1
    assert run.opt.param_groups is run.base.param_groups
