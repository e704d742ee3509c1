"""Every module with running buffers: after a step they are as after one plain pass at the weights, whatever happened in it."""

import copy
import itertools

import pytest
import torch
from methods.cases import every_displacing_method, every_method
from optim.problems import assert_same, batches, build, loss_of, seeded, step_by_closure, step_by_passes
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations

from flatwise import methods
from flatwise.modules import Buffers

every_route = pytest.mark.parametrize("step", [step_by_closure, step_by_passes])


class As(nn.Module):
    """Runs a layer on the ten features in another shape."""

    def __init__(self, shape, layer):
        super().__init__()
        self.shape, self.layer = shape, layer

    def forward(self, x):
        return self.layer(x.reshape(len(x), *self.shape)).reshape(len(x), -1)


class MovingMean(nn.Module):
    """An average that is replaced by assignment, a counter that is written into, and a queue of what was seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("queue", torch.zeros(0, 10), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            self.count += 1
            self.queue = torch.cat([self.queue, x[:1].detach()])
        return x - self.mean


class FirstBatch(nn.Module):
    """Registers what it needs when it meets the first batch, and a buffer that was None gets its value then."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", None)

    def forward(self, x):
        if self.centre is None:
            self.centre = x.detach().mean(0)
            self.register_buffer("spread", x.detach().std(0))
        if self.training:
            self.spread.mul_(0.9)
        return (x - self.centre) * self.spread


class Target(nn.Module):
    """A slow copy of a layer's weights in buffers, as in self-distillation."""

    def __init__(self):
        super().__init__()
        self.fast = nn.Linear(10, 10)
        self.register_buffer("slow", self.fast.weight.detach().clone())

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.slow.lerp_(self.fast.weight, 0.1)
        return self.fast(x) + x @ self.slow.t()


def fake_quantiser():
    """Its scales and ranges are empty until the first batch, then resized in place."""
    return quantization.FakeQuantize(
        observer=quantization.MovingAveragePerChannelMinMaxObserver,
        quant_min=-128,
        quant_max=127,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=1,
    )


LAYERS = {
    "batchnorm1d": lambda: nn.BatchNorm1d(10),
    "batchnorm1d cumulative": lambda: nn.BatchNorm1d(10, momentum=None),
    "batchnorm1d without affine": lambda: nn.BatchNorm1d(10, affine=False),
    "batchnorm1d untracked": lambda: nn.BatchNorm1d(10, track_running_stats=False),
    "batchnorm2d": lambda: As((5, 2, 1), nn.BatchNorm2d(5)),
    "batchnorm3d": lambda: As((5, 2, 1, 1), nn.BatchNorm3d(5)),
    "instancenorm1d": lambda: As((2, 5), nn.InstanceNorm1d(2, track_running_stats=True)),
    "instancenorm2d": lambda: As((2, 5, 1), nn.InstanceNorm2d(2, affine=True, track_running_stats=True)),
    "instancenorm3d": lambda: As((2, 5, 1, 1), nn.InstanceNorm3d(2, track_running_stats=True)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(10, 10)),
    "spectral_norm of a convolution": lambda: As((1, 10), parametrizations.spectral_norm(nn.Conv1d(1, 2, 6))),
    "moving mean": MovingMean,
    "first batch": FirstBatch,
    "target": Target,
    "observer": quantization.MinMaxObserver,
    "observer per channel": lambda: quantization.PerChannelMinMaxObserver(ch_axis=1),
    "histogram": lambda: quantization.HistogramObserver(bins=16),
    "fake quantiser": quantization.FakeQuantize,
    "fake quantiser per channel": fake_quantiser,
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


def with_layer(name):
    return lambda dtype=torch.float32: seeded(
        lambda: nn.Sequential(nn.Linear(6, 10), LAYERS[name](), nn.Tanh(), nn.Linear(10, 3))
    ).to(dtype)


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def identities(model):
    return {name: id(buffer) for name, buffer in model.named_buffers()}


def after_one_plain_pass(model, batch):
    plain = copy.deepcopy(model)
    plain(batch[0])
    return buffers(plain)


@every_layer
@every_method
def test_buffers_are_as_after_one_plain_pass(case, layer):
    run = build(case.method, net=with_layer(layer))
    for i, batch in enumerate(batches(4)):
        expected = after_one_plain_pass(run.model, batch)
        (step_by_passes if i % 2 else step_by_closure)(run, batch)
        assert_same(buffers(run.model), expected)


@every_layer
def test_a_step_in_evaluation_mode_changes_no_buffer(layer):
    run = build(methods.EigenSAM(rho=0.1, alpha=0.5, every=2, iterations=2), net=with_layer(layer))
    run.model(batches(1)[0][0])
    run.model.eval()
    if "observer" in layer or "histogram" in layer or "quantiser" in layer:
        run.model.apply(quantization.disable_observer)
        run.model[1].forward = lambda x: x  # a bare observer watches in evaluation mode as well
    before = buffers(run.model)
    for batch in batches(3, seed=2):
        step_by_closure(run, batch)
    assert_same(buffers(run.model), before)


def interrupted(run, batch, at):
    """Whether pass `at` was reached; the exception comes after its forward, which has moved the buffers."""
    try:
        for i, p in enumerate(run.opt.passes()):
            loss = loss_of(run.model, batch)
            if i == at:
                raise KeyboardInterrupt
            p.backward(loss)
    except KeyboardInterrupt:
        return True
    run.opt.step()
    return False


@every_layer
@every_method
def test_an_exception_in_any_pass_leaves_the_buffers_as_they_were(case, layer):
    """Also those that were registered, resized or replaced in it."""
    run = build(case.method, net=with_layer(layer))
    for batch in batches(2):
        for at in itertools.count():
            before, objects = buffers(run.model), identities(run.model)
            if not interrupted(run, batch, at):
                break
            assert_same(buffers(run.model), before)
            assert identities(run.model) == objects


@every_route
@every_displacing_method
def test_buffers_that_are_written_into_never_move(case, step):
    """What holds their address, such as a CUDA graph, goes on seeing them."""
    run = build(case.method, net=with_layer("batchnorm1d"))
    addresses = [buffer.data_ptr() for buffer in run.model.buffers()]
    for batch in batches(4):
        step(run, batch)
        assert [buffer.data_ptr() for buffer in run.model.buffers()] == addresses


@every_route
@every_method
def test_a_step_inside_a_pass_of_another_optimizer_counts_once(case, step):
    """One optimizer for the body and one for the head, on one model: two plain passes, one after the other."""
    body = build(case.method, net=with_layer("batchnorm1d"), groups=lambda model: list(model[:2].parameters()))
    head = build(case.method, net=lambda dtype: body.model, groups=lambda model: list(model[3].parameters()))
    for outer, inner in zip(batches(3), batches(3, seed=2)):
        plain = copy.deepcopy(body.model)
        plain(inner[0])
        plain(outer[0])
        entered = False
        for p in body.opt.passes():
            if not entered:
                step(head, inner)
                entered = True
            p.backward(loss_of(body.model, outer))
        body.opt.step()
        assert_same(buffers(body.model), buffers(plain))


@every_displacing_method
def test_the_exception_of_an_inner_step_undoes_both(case):
    body = build(case.method, net=with_layer("batchnorm1d"), groups=lambda model: list(model[:2].parameters()))
    head = build(case.method, net=lambda dtype: body.model, groups=lambda model: list(model[3].parameters()))
    outer, inner = batches(2)
    before = copy.deepcopy(body.model.state_dict())
    for at in range(2):
        with pytest.raises(KeyboardInterrupt):
            nested_with_an_exception(body, head, outer, inner, at)
        assert_same(body.model.state_dict(), before)


def nested_with_an_exception(body, head, outer, inner, at):
    for p in body.opt.passes():
        for i, q in enumerate(head.opt.passes()):
            loss = loss_of(head.model, inner)
            if i == at:
                raise KeyboardInterrupt
            q.backward(loss)
        p.backward(loss_of(body.model, outer))


@every_method
def test_a_buffer_that_nobody_can_write_into_is_left_alone(case):
    """An expanded one has no room for a value per entry; one made in inference mode refuses to be written into."""

    class Constants(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("expanded", torch.ones(1).expand(10))
            with torch.inference_mode():
                self.register_buffer("cached", torch.full((10,), 0.5))
            self.register_buffer("sparse", torch.eye(10).to_sparse())

        def forward(self, x):
            return x * self.expanded + self.cached + torch.sparse.mm(self.sparse, x.t()).t()

    run = build(case.method, net=lambda dtype: seeded(lambda: nn.Sequential(nn.Linear(6, 10), Constants(), nn.Tanh())))
    objects = identities(run.model)
    for batch in batches(3):
        step_by_closure(run, batch)
    assert identities(run.model) == objects
    assert run.opt.diagnostics["skipped"] == 0


class Diary(nn.Module):
    """Counts in a Python attribute, which no framework can see."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x


def test_what_a_module_counts_in_a_python_attribute_counts_every_pass():
    """Only buffers are looked after: a counter that should advance once a step belongs in one."""
    run = build(methods.SAM(rho=0.1), net=lambda dtype: seeded(lambda: nn.Sequential(nn.Linear(6, 3), Diary())))
    for batch in batches(3):
        step_by_closure(run, batch)
    assert run.model[1].calls == 6


def test_restoring_buffers_twice_is_restoring_them_once():
    model = with_layer("fake quantiser per channel")()
    saved = Buffers(model)
    before = buffers(model)
    for _ in range(2):
        model(batches(1)[0][0])
        saved.restore()
        saved.restore()
        assert_same(buffers(model), before)
