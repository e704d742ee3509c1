"""The laws of a step, for every method that is listed and for the other ways that their settings open."""

import copy
import itertools

import pytest
import torch
from methods.cases import RHO, every_displacing_way, every_way
from optim.problems import (
    assert_same,
    batches,
    build,
    every_base,
    flat,
    halves,
    mlp,
    noisy_net,
    norm_net,
    seeded,
    snapshot,
    train,
    weights,
)
from optim.ways import (
    STEPS,
    buffers,
    concluded,
    count_passes,
    displacements,
    grads,
    passed,
    plain_run,
    sample_losses,
    step,
    step_by_closure,
    two_groups,
)
from torch import nn

MANY = 60


@every_base
@every_displacing_way
def test_rho_zero_is_the_base_optimizer_bitwise_at_one_evaluation(case, base):
    data = batches(STEPS)
    run = build(case.with_rho(0.0), base)
    assert [count_passes(run, batch) for batch in data] == [1] * STEPS
    if case.method.changes_update:
        return
    model, optimizer = plain_run(base, data)
    assert_same(run.model.state_dict(), model.state_dict())
    assert_same(run.base.state_dict()["state"], optimizer.state_dict()["state"])


@every_way
def test_so_many_evaluations_as_claimed(case):
    """A method that looks at gradients in evaluation mode takes one more, once, to learn that they are the same here."""
    run = build(case.method)
    counts = [count_passes(run, batch) for batch in batches(MANY)]
    claimed = case.method.evaluations(MANY)
    if claimed is None:
        assert case.method.adaptive
        assert set(counts) == {1, 2}
    else:
        looks = "same_in_evaluation" in case.method.init(run.params).numbers
        expected = round(claimed) + case.unclaimed * MANY
        assert sum(counts) in {expected, expected + looks}


@every_base
@every_way
def test_a_step_is_the_bases_own_along_the_direction(case, base):
    run = build(case.method, base)
    for batch in batches(STEPS):
        model, optimizer = copy.deepcopy((run.model, run.base))
        passed(run, batch)
        assert_same(weights(run), [p.detach() for p in model.parameters()])
        for p, direction in zip(model.parameters(), grads(run)):
            p.grad = direction
        optimizer.step()
        run.opt.step()
        assert_same(run.base.state_dict(), optimizer.state_dict())
        if not case.method.changes_update:
            assert_same(weights(run), [p.detach() for p in model.parameters()])


@every_way
def test_closures_and_passes_are_the_same_bitwise(case):
    by_closure, by_passes = build(case.method, net=noisy_net), build(case.method, net=noisy_net)
    for number, batch in enumerate(batches(STEPS)):
        torch.manual_seed(number)
        step(by_passes, batch)
        torch.manual_seed(number)
        if case.selects:
            before = snapshot(by_closure)
            with pytest.raises(RuntimeError, match=r"p\.chosen\(losses\)"):
                step_by_closure(by_closure, batch)
            assert_same(snapshot(by_closure), before)
        else:
            step_by_closure(by_closure, batch)
            assert_same(snapshot(by_closure), snapshot(by_passes))


@every_way
def test_buffers_advance_in_one_pass_at_the_weights_if_there_is_one(case):
    run = build(case.method, net=norm_net)
    for number, batch in enumerate(batches(STEPS)):
        advanced = {True: [], False: []}
        for p in run.opt.passes():
            if not p.is_probe:
                twin = copy.deepcopy(run.model)
                twin.load_state_dict(advanced.setdefault("before", buffers(run.model)), strict=False)
                twin(batch[0])
                advanced[p.at_weights].append(buffers(twin))
            p.backward(p.chosen(sample_losses(run.model, batch)).mean())
        expected = [*advanced[True], *advanced[False]][0]
        assert_same(buffers(run.model), expected)
        run.opt.step()
        assert_same(buffers(run.model), expected)
        assert run.model[1].num_batches_tracked.item() == number + 1


@every_way
def test_the_random_state_is_as_after_one_plain_pass(case):
    run = build(case.method, net=noisy_net)
    for number, batch in enumerate(batches(STEPS)):
        torch.manual_seed(number)
        copy.deepcopy(run.model)(batch[0])
        after = torch.get_rng_state()
        torch.manual_seed(number)
        step(run, batch)
        assert torch.equal(torch.get_rng_state(), after)
        assert all(module.training for module in run.model.modules())


class Partly(nn.Module):
    """With a frozen layer in half precision, one that nobody asks, and integers among the parameters."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(6, 6).bfloat16().requires_grad_(False)
        self.asked, self.unasked, self.out = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 3)
        self.code = nn.Parameter(torch.arange(5, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return self.out(torch.tanh(self.asked(x + self.frozen(x.bfloat16()).float())))


@every_base
@every_way
def test_what_has_no_gradient_stays_and_has_none(case, base):
    run = build(case.method, base, lambda dtype: seeded(Partly))
    resting = [*run.model.frozen.parameters(), *run.model.unasked.parameters(), run.model.code]
    before = [p.detach().clone() for p in resting]
    for batch in batches(STEPS):
        for p in run.opt.passes():
            assert all(torch.equal(p, old) for p, old in zip(resting, before) if not p.requires_grad)
            p.backward(p.chosen(sample_losses(run.model, batch)).mean())
        assert all(p.grad is None for p in resting)
        run.opt.step()
        assert_same([p.detach() for p in resting], before)
    assert torch.isfinite(flat(run.model.asked.parameters())).all()
    assert not torch.equal(flat(run.model.out.parameters()), flat(seeded(Partly).out.parameters()))


@every_displacing_way
def test_a_group_with_rho_zero_is_displaced_in_no_pass(case):
    run = build(case.method, groups=two_groups(0.0))
    found = [pair for batch in batches(STEPS) for pair in displacements(run, batch)]
    assert any(first.any() for first, _ in found)
    assert not any(second.any() for _, second in found)


@every_displacing_way
def test_a_group_is_displaced_in_proportion_to_its_rho(case):
    """The first displacement of a run: from then on weights, and gradients, are others."""
    rho, factor = case.method.rho, 3.0
    alike, apart = (build(case.method, dtype=torch.float64, groups=two_groups(r)) for r in (rho, factor * rho))
    for batch in batches(STEPS, dtype=torch.float64):
        found, scaled = displacements(alike, batch), displacements(apart, batch)
        if found:
            torch.testing.assert_close(scaled[0][0], found[0][0], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(scaled[0][1], factor * found[0][1], rtol=1e-9, atol=1e-12)
            break
    assert any(t.any() for t in found[0])


@every_way
def test_a_group_added_later_is_one_from_the_start(case):
    first = lambda model: [{"params": list(model[0].parameters())}]
    rho = RHO if hasattr(case.method, "rho") else 0.0
    late, early = build(case.method, groups=first), build(case.method, groups=two_groups(rho))
    late.opt.add_param_group({"params": list(late.model[2].parameters()), "rho": rho})
    for batch in batches(STEPS):
        step(late, batch)
        step(early, batch)
    assert_same(snapshot(late), snapshot(early))


@every_way
def test_a_group_added_on_the_way_is_trained(case):
    run = build(case.method, groups=lambda model: [{"params": list(model[0].parameters())}])
    data = batches(2 * STEPS)
    train(run, data[:STEPS], step)
    before = flat(run.model[2].parameters())
    run.opt.add_param_group({"params": list(run.model[2].parameters())})
    train(run, data[STEPS:], step)
    assert torch.isfinite(flat(run.params)).all()
    assert not torch.equal(flat(run.model[2].parameters()), before)


@every_base
@every_way
def test_a_scale_of_a_power_of_two_changes_nothing_bitwise(case, base):
    scaled, plain = build(case.method, base, norm_net), build(case.method, base, norm_net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for batch in batches(STEPS):
        step(scaled, batch, scaler)
        step(plain, batch)
        assert_same(snapshot(scaled), snapshot(plain))


@every_way
def test_micro_batches_are_the_whole_batch(case):
    """But for methods that choose samples, which do so within each micro-batch."""
    runs = [build(case.method, dtype=torch.float64) for _ in range(3)]
    for batch in batches(STEPS, dtype=torch.float64):
        for run, sizes in zip(runs, ([16], [4, 12], [8, 8])):
            options = {"parts": 2} if sizes == [8, 8] else {}
            parts = halves(batch, sizes)
            for p in run.opt.passes(**options):
                for part in [parts[p.part]] if options else parts:
                    p.backward(p.chosen(sample_losses(run.model, part)).mean(), weight=len(part[0]))
            run.opt.step()
    whole, *others = [flat(run.params) for run in runs]
    for other in others:
        assert ((other - whole).abs().max() < 1e-8) != case.selects


@every_way
def test_each_part_has_a_dialogue_of_its_own(case):
    """The direction is the mean of what each part alone would find."""
    run = build(case.method, dtype=torch.float64)
    for batch in batches(4, dtype=torch.float64):
        parts = halves(batch)
        if case.method.adaptive:
            with pytest.raises(ValueError, match="adaptive"):
                run.opt.passes(parts=2, each=True)
            return
        alone = [copy.deepcopy(run) for _ in parts]
        for twin, part in zip(alone, parts):
            passed(twin, part)
        for p in run.opt.passes(parts=2, each=True):
            p.backward(p.chosen(sample_losses(run.model, parts[p.part])).mean())
        mean = (flat(grads(alone[0])) + flat(grads(alone[1]))) / 2
        torch.testing.assert_close(flat(grads(run)), mean, rtol=1e-9, atol=1e-12)
        concluded(run)


@every_way
def test_diagnostics_tell_the_evaluations_and_the_loss(case):
    run = build(case.method)
    for batch in batches(STEPS):
        losses, counts = [], itertools.count()
        for p in run.opt.passes():
            next(counts)
            loss = sample_losses(run.model, batch).mean()
            losses += [float(loss.detach())] if p.at_weights and not p.is_probe else []
            p.backward(p.chosen(sample_losses(run.model, batch)).mean())
        run.opt.step()
        told = run.opt.diagnostics
        assert told["evaluations"] == next(counts)
        assert all(told["loss"] == pytest.approx(loss) for loss in losses)
        assert all(torch.isfinite(torch.tensor(list(told.values()))))


@every_way
def test_storage_of_weights_stays(case):
    run = build(case.method, net=mlp)
    before = [p.data_ptr() for p in run.params]
    train(run, batches(STEPS), step)
    assert [p.data_ptr() for p in run.params] == before
