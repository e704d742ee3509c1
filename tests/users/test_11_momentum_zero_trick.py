"""Problem 11: the trick against problem 10, "set BatchNorm's momentum to 0 and back", is fragile itself.

mlcommons/algorithmic-efficiency PR #798: switching off twice in a row overwrites the backup of the momentum with 0, and
BatchNorm never learns again (pytorch_optimizer 4.1 has such a helper); layers of other classes with running buffers are
missed. Here no class is known by name: whatever has buffers is saved and put back, and nothing is switched off.
"""

import contextlib
import copy

import pytest
import torch
from torch import nn
from users.plain import batches, loss_of, momentum_sgd

import flatwise as fw


class Centre(nn.Module):
    """Somebody's own layer: a running mean, a counter, and a buffer that is replaced rather than written into."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("newest", torch.zeros(10), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            self.count += 1
            self.newest = x.detach().mean(0)
        return x - self.mean


def instance_norm():
    return nn.Sequential(nn.Unflatten(1, (5, 2)), nn.InstanceNorm1d(5, track_running_stats=True), nn.Flatten())


LAYERS = {
    "BatchNorm": lambda: nn.BatchNorm1d(10),
    "BatchNorm, cumulative": lambda: nn.BatchNorm1d(10, momentum=None),
    "InstanceNorm": instance_norm,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(10, 10)),
    "somebody's own": Centre,
}
every_layer = pytest.mark.parametrize("layer", LAYERS)


def prepared(layer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), LAYERS[layer](), nn.Tanh(), nn.Linear(10, 3))
    return model, fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(0.1), model=model)


def assert_same_buffers(model, other):
    for name, buffer in other.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name


def step(model, optimizer, batch):
    for p in optimizer.passes():
        p.backward(loss_of(model, batch))
    optimizer.step()


@every_layer
def test_layers_of_any_class_advance_as_in_one_forward_a_step(layer):
    model, optimizer = prepared(layer)
    for batch in batches(3):
        plain = copy.deepcopy(model)
        plain(batch[0])
        step(model, optimizer, batch)
        assert_same_buffers(model, plain)


@every_layer
def test_interrupted_as_often_as_you_like_the_next_step_is_as_if_nothing_had_been(layer):
    """Where a switch is off when an exception comes, somebody has to switch it on again."""
    model, optimizer = prepared(layer)
    untouched, other = prepared(layer)
    for batch in batches(3):
        for exception in (KeyError, KeyboardInterrupt):
            with contextlib.suppress(exception):
                for p in optimizer.passes():
                    p.backward(loss_of(model, batch))
                    if not p.at_weights:
                        raise exception
            assert_same_buffers(model, untouched)
        for _ in optimizer.passes():
            loss_of(model, batch)
            break
        step(model, optimizer, batch)
        step(untouched, other, batch)
        assert_same_buffers(model, untouched)


def test_a_frozen_batchnorm_in_evaluation_mode_stays_frozen():
    model, optimizer = prepared("BatchNorm")
    model[1].eval()
    before = copy.deepcopy(model)
    for batch in batches(3):
        step(model, optimizer, batch)
    assert_same_buffers(model, before)
    assert model.training
    assert not model[1].training


def test_under_no_sync_the_statistics_are_those_of_a_plain_loop(two_processes):
    """DistributedDataParallel, two micro-batches, the first without synchronisation: one pass' worth of statistics."""
    for found, plain in two_processes["problem 11"]:
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], plain[name]) for name in plain)
