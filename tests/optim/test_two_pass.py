"""`two_pass`: one call per batch takes the step that a closure or a loop over passes takes."""

import pytest
import torch
import torch.nn.functional as F
from methods.cases import every_method
from optim.problems import assert_same, batches, build, mlp, noisy_net, snapshot, step_by_closure, step_by_passes
from torch import nn

import flatwise as fw
from flatwise.methods import SAM


@every_method
def test_the_step_is_that_of_a_closure(case):
    run, twin = build(case.method, net=noisy_net), build(case.method, net=noisy_net)
    train_step = fw.two_pass(run.opt, run.model, F.cross_entropy)
    for batch in batches(4):
        torch.manual_seed(3)
        loss = train_step(*batch)
        torch.manual_seed(3)
        assert torch.equal(loss, step_by_closure(twin, batch))
        assert not loss.requires_grad
        assert_same(snapshot(run), snapshot(twin))


@pytest.mark.parametrize("count", [2, 3, 5, 16, 40])
def test_micro_batches_take_the_step_of_the_whole_batch(count):
    """Also where the pieces are unequal, and where there are fewer samples than pieces."""
    run, twin = build(SAM(0.1), dtype=torch.float64), build(SAM(0.1), dtype=torch.float64)
    train_step = fw.two_pass(run.opt, run.model, F.cross_entropy, micro_batches=count)
    for batch in batches(3, dtype=torch.float64):
        torch.testing.assert_close(train_step(*batch), step_by_closure(twin, batch))
    for p, q in zip(run.params, twin.params):
        torch.testing.assert_close(p, q)


def test_micro_batches_run_one_after_the_other():
    run = build(SAM(0.1))
    sizes = []
    run.model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    fw.two_pass(run.opt, run.model, F.cross_entropy, micro_batches=3)(*batches(1)[0])
    assert sizes == [6, 6, 4] * 2


def test_the_direction_is_clipped():
    run, twin = build(SAM(0.1)), build(SAM(0.1))
    train_step = fw.two_pass(run.opt, run.model, F.cross_entropy, max_norm=1e-2)
    for batch in batches(3):
        train_step(*batch)
        for p in twin.opt.passes():
            p.backward(F.cross_entropy(twin.model(batch[0]), batch[1]))
        assert nn.utils.clip_grad_norm_(twin.params, 1e-2) > 1e-2
        twin.opt.step()
    assert_same(snapshot(run), snapshot(twin))


def test_a_scaler_is_stepped_and_updated_and_autocast_is_entered():
    run, twin = build(SAM(0.1)), build(SAM(0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
    dtypes = []
    run.model.register_forward_hook(lambda *found: dtypes.append(found[2].dtype))
    autocast = torch.autocast("cpu", torch.float16)
    train_step = fw.two_pass(run.opt, run.model, F.cross_entropy, autocast=autocast, scaler=scaler, max_norm=1.0)
    for batch in batches(6):
        train_step(*batch)
        step_by_passes(twin, batch)
    assert set(dtypes) == {torch.float16}
    assert scaler.get_scale() == 256 * 2**3
    for p, q in zip(run.params, twin.params):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-3)


def test_an_overflow_skips_the_step():
    run = build(SAM(0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [p.detach().clone() for p in run.params]
    infinite = lambda output, target: F.cross_entropy(output, target) * torch.inf
    fw.two_pass(run.opt, run.model, infinite, scaler=scaler, max_norm=1.0)(*batches(1)[0])
    assert all(torch.equal(p, old) for p, old in zip(run.params, before))
    assert scaler.get_scale() == 2
    assert run.opt.diagnostics["skipped"] == 1


class Sum(nn.Module):
    """Takes two inputs, returns a mapping with its own loss where it gets labels, as Hugging Face models do."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, a, b, labels=None, scale=1.0):
        logits = self.net(a + b) * scale
        return logits if labels is None else {"loss": F.cross_entropy(logits, labels)}


@pytest.mark.parametrize("count", [1, 2])
def test_models_with_several_inputs_or_a_loss_of_their_own(count):
    inputs, labels = batches(1)[0]
    found = []
    for batch, loss_fn in (
        (((inputs, inputs), labels), F.cross_entropy),
        (([inputs, inputs], labels), F.cross_entropy),
        (({"a": inputs, "b": inputs}, labels), F.cross_entropy),
        (({"a": inputs, "b": inputs, "labels": labels, "scale": 1.0},), lambda output: output["loss"]),
    ):
        run = build(SAM(0.1), net=lambda _: Sum())
        fw.two_pass(run.opt, run.model, loss_fn, micro_batches=count)(*batch)
        found.append(torch.cat([p.detach().reshape(-1) for p in run.params]))
    assert all(torch.equal(f, found[0]) for f in found)


def test_tensors_of_different_sizes_cannot_be_cut():
    run = build(SAM(0.1))
    before = snapshot(run)
    with pytest.raises(ValueError, match=r"leading size.*\[15, 16\]"):
        fw.two_pass(run.opt, run.model, F.cross_entropy, micro_batches=2)(torch.randn(16, 6), torch.zeros(15).long())
    assert_same(snapshot(run), before)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"optimizer": torch.optim.SGD(mlp().parameters(), lr=0.1)}, "SharpnessAware"),
        ({"model": lambda x: x}, "model"),
        ({"loss_fn": None}, "loss_fn"),
        ({"micro_batches": 0}, "micro_batches"),
        ({"micro_batches": 1.5}, "micro_batches"),
        ({"max_norm": 0.0}, "max_norm"),
        ({"max_norm": torch.inf}, "max_norm"),
        ({"scaler": 65536.0}, "scaler"),
    ],
)
def test_what_cannot_be_right_is_refused_before_the_first_batch(change, match):
    run = build(SAM())
    arguments = {"optimizer": run.opt, "model": run.model, "loss_fn": F.cross_entropy} | change
    with pytest.raises((TypeError, ValueError), match=match):
        fw.two_pass(**arguments)


def test_a_loss_that_is_no_scalar_is_refused():
    run = build(SAM())
    before = snapshot(run)
    with pytest.raises(TypeError, match="one element"):
        fw.two_pass(run.opt, run.model, lambda output, _: output)(*batches(1)[0])
    assert_same(snapshot(run), before)
