"""Gradients and losses that the next evaluation overwrites in place, as replayed CUDA graphs and DDP's buckets do."""

import pytest
import torch
from methods.cases import every_method
from optim.problems import (
    assert_same,
    batches,
    build,
    closure_of,
    halves,
    loss_of,
    mlp,
    snapshot,
    step_by_closure,
    step_by_passes,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from flatwise import vectors as V


class Replay(torch.autograd.Function):
    """A linear map whose backward leaves its gradients in the same memory each time, and hands out views of it."""

    @staticmethod
    def forward(ctx, x, weight, bias, static):
        ctx.save_for_backward(x, weight)
        ctx.static = static
        return x @ weight.t() + bias

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        ctx.static[0].copy_(gradient.t() @ x)
        ctx.static[1].copy_(gradient.sum(0))
        return gradient @ weight, *(t.detach() for t in ctx.static), None


class Linear(nn.Linear):
    """Trained by replays."""

    def forward(self, x):
        if not hasattr(self, "static"):
            self.static = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]
        return Replay.apply(x, self.weight, self.bias, self.static)


def replayed(dtype=torch.float32):
    model = nn.Sequential(Linear(6, 10), nn.Tanh(), Linear(10, 3)).to(dtype)
    model.load_state_dict(mlp(dtype).state_dict())
    return model


def eager(dtype=torch.float32):
    """The same sums in the same order, in memory of their own."""
    model = replayed(dtype)
    for layer in (model[0], model[2]):
        layer.forward = lambda x, layer=layer: x @ layer.weight.t() + layer.bias
    return model


def by_two_closures(run, batch):
    return run.opt.step([closure_of(run, part) for part in halves(batch)])


def by_two_backwards(run, batch):
    for p in run.opt.passes():
        for part in halves(batch):
            p.backward(loss_of(run.model, part))
    run.opt.step()


def by_two_records(run, batch):
    for p in run.opt.passes():
        for part in halves(batch, (6, 10)):
            loss = loss_of(run.model, part)
            loss.backward()
            p.record(loss, weight=len(part[0]))
    run.opt.step()


def by_two_parts(run, batch):
    parts = halves(batch)
    for p in run.opt.passes(parts=2):
        p.backward(loss_of(run.model, parts[p.part]))
    run.opt.step()


def by_scaler(run, batch):
    step_by_passes(run, batch, torch.amp.GradScaler("cpu", init_scale=1024.0))


STEPS = [step_by_closure, step_by_passes, by_two_closures, by_two_backwards, by_two_records, by_two_parts, by_scaler]
every_step = pytest.mark.parametrize("step", STEPS)


def test_the_replay_overwrites_the_gradient_of_before():
    """Else these tests would show nothing."""
    model, (first, second) = replayed(), batches(2)
    loss_of(model, first).backward()
    kept, before = model[0].weight.grad, model[0].weight.grad.clone()
    model.zero_grad()
    loss_of(model, second).backward()
    assert not torch.equal(kept, before)


@every_step
@every_method
def test_gradients_that_a_method_keeps_survive_the_next_replay(case, step):
    run, twin = build(case.method, net=replayed), build(case.method, net=eager)
    for batch in batches(4):
        step(run, batch)
        step(twin, batch)
        torch.testing.assert_close(run.model.state_dict(), twin.model.state_dict(), rtol=0, atol=1e-6)


@pytest.fixture
def _one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@every_step
@every_method
def test_gradients_in_buckets_survive_the_next_backward(case, step):
    in_buckets = lambda dtype: DistributedDataParallel(mlp(dtype), gradient_as_bucket_view=True)
    run, twin = build(case.method, net=in_buckets), build(case.method)
    for batch in batches(4):
        step(run, batch)
        step(twin, batch)
        torch.testing.assert_close(
            run.model.module.state_dict(), twin.model.state_dict(), rtol=0, atol=case.single_tolerance
        )


@every_method
def test_the_loss_of_the_step_survives_the_next_replay(case):
    run, twin = build(case.method), build(case.method)
    static = torch.zeros(())

    def closure(batch):
        loss = loss_of(run.model, batch)
        loss.backward()
        return static.copy_(loss.detach())

    for batch in batches(4):
        loss = run.opt.step(lambda batch=batch: closure(batch))
        assert torch.equal(loss, step_by_closure(twin, batch))
        static.fill_(torch.nan)
        assert torch.isfinite(loss)
    assert_same(snapshot(run), snapshot(twin))


def test_only_memory_that_others_hold_is_copied():
    mine, shared = torch.ones(3), torch.ones(3)
    view = shared.detach()
    owned = V.owned([mine, None, shared])
    assert owned[0] is mine
    assert owned[1] is None
    assert owned[2] is not shared
    assert torch.equal(owned[2], view)


def test_sparse_gradients_have_no_storage_to_ask_about():
    sparse = torch.eye(3).to_sparse()
    assert V.owned([sparse])[0] is sparse
