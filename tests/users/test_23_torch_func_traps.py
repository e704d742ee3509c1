"""Problem 23: the traps of `torch.func`.

functorch #986 (BatchNorm's running statistics), #1112, pytorch #102197 and #182661 (`jvp` through DistributedDataParallel),
#91469 and #183603 (double backward of compiled code); activation checkpointing and LSTM have no forward mode. curvlinops, which
is built on it, refuses BatchNorm in training mode; hessian-eigenthings advances its statistics. Here gradients are differentiated
in reverse, wrappers are looked through, and forward mode is there for those who ask for it.
"""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from users.plain import batches, loss_of, network

import flatwise as fw

# torch's own forward mode compiles some derivatives with it.
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")


class Checkpointed(nn.Module):
    """Activation checkpointing in the variant that torch recommends, or in the old one."""

    reentrant = False

    def __init__(self):
        super().__init__()
        self.first, self.rest = network()[0], network()[1:]

    def forward(self, x):
        return checkpoint(self.rest, self.first(x), use_reentrant=self.reentrant)


class CheckpointedAsBefore(Checkpointed):
    reentrant = True


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(x.view(-1, 3, 2))[0][:, -1])


def hessian_of(model, engine="auto"):
    return fw.curvature.hessian(fw.Objective(model, loss_of, batches(2), mode="train"), engine)


def assert_same_products(a, b, tolerance=1e-5):
    torch.manual_seed(3)
    vector = [torch.randn_like(p) for p in a.like]
    for s, t in zip(a(vector), b(vector)):
        torch.testing.assert_close(s, t, rtol=tolerance, atol=tolerance)


def test_batchnorm_in_training_mode_is_measured_and_its_statistics_stay():
    model = network(norm=True)
    before = copy.deepcopy(model.state_dict())
    hessian = hessian_of(model)
    assert hessian.engine == "double"
    fw.curvature.top_eigenpairs(hessian)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("make", [Checkpointed, CheckpointedAsBefore])
def test_activation_checkpointing_is_seen_through(make):
    assert_same_products(hessian_of(make()), hessian_of(network()), tolerance=1e-5 if make is Checkpointed else 2e-2)


def test_an_lstm_is_measured():
    hessian = hessian_of(Recurrent())
    assert hessian.engine == "double"
    by_differences = hessian_of(Recurrent(), "differences")
    assert_same_products(hessian, by_differences, tolerance=1e-3)


def test_a_compiled_model_is_measured_as_the_model_inside():
    model = network()
    assert_same_products(hessian_of(torch.compile(model)), hessian_of(model))


def test_distributed_data_parallel_is_looked_through(two_processes):
    for found in two_processes["problem 24"]:
        assert found["wrapped"] == found["bare"]


@forward_mode
def test_forward_mode_is_there_for_those_who_ask_and_the_same():
    assert hessian_of(network()).engine == "double"
    forward = hessian_of(network(), "forward")
    assert forward.engine == "forward"
    assert_same_products(forward, hessian_of(network()))


@forward_mode
def test_forward_mode_where_it_cannot_be_had_is_refused_before_anything_is_measured():
    with pytest.raises(RuntimeError, match='engine="forward" is not possible'):
        hessian_of(Recurrent(), "forward")
