import pytest
import torch
from torch import nn

from flatwise.modules import Buffers, Modes, RandomState, data_parallel, devices, measuring, sharded


class Counter(nn.Module):
    """A custom layer whose buffer is replaced at each forward, and that owns a buffer that is None."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("secret", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)

    def forward(self, x):
        self.calls = self.calls + 1
        self.secret.add_(1)
        return x


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Counter())
    model[1].eval()  # a frozen BatchNorm in a model that is trained
    return model


def snapshot(model):
    flags = [m.training for m in model.modules()]
    return flags, [b.clone() for b in model.buffers()], [id(b) for b in model.buffers()], torch.get_rng_state()


def same(a, b):
    tensors = all(torch.equal(s, t) for s, t in zip(a[1], b[1], strict=True))
    return a[0] == b[0] and tensors and a[2] == b[2] and torch.equal(a[3], b[3])


def test_modes_give_back_each_modules_own():
    model = network()
    modes = Modes(model)
    before = [m.training for m in model.modules()]
    for training in (True, False):
        modes.set(training)
        assert [m.training for m in model.modules()] == [training] * len(before)
    modes.restore()
    assert [m.training for m in model.modules()] == before


def test_buffers_are_restored_in_place_also_replaced_ones():
    model = network().train()
    before = snapshot(model)
    buffers = Buffers(model)
    model(torch.randn(8, 3))
    assert not same(snapshot(model), before)
    buffers.restore()
    assert same(snapshot(model)[:3] + before[3:], before)


def test_buffers_are_restored_whatever_the_gradient_mode():
    model = network()
    buffers = Buffers(model)
    model[1].running_mean.add_(1)
    with torch.inference_mode():
        buffers.restore()
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_random_states_compare_and_restore():
    state = RandomState([torch.device("cpu")])
    assert state == RandomState()
    drawn = torch.rand(3)
    assert state != RandomState()
    state.restore()
    assert torch.equal(torch.rand(3), drawn)
    assert state != "a state"


def test_without_a_model_there_is_nothing_to_restore():
    modes, buffers = Modes(None), Buffers(None)
    modes.set(True)
    modes.restore()
    buffers.restore()
    assert data_parallel(None) is None
    assert sharded(None) == []


def test_devices_come_once_each():
    assert devices([torch.zeros(1), torch.zeros(2), torch.zeros(1, device="meta")]) == [
        torch.device("cpu"),
        torch.device("meta"),
    ]


@pytest.mark.parametrize(("mode", "expected"), [("current", None), ("eval", False), ("train", True)])
def test_measuring_changes_nothing(mode, expected):
    model = network()
    before = snapshot(model)
    with measuring(model, mode):
        flags = [m.training for m in model.modules()]
        assert flags == (before[0] if expected is None else [expected] * len(flags))
        model(torch.randn(8, 3))
    assert same(snapshot(model), before)


class Impatient(nn.Module):
    """Presses Ctrl-C when its mode is set for the n-th time."""

    def __init__(self, times):
        super().__init__()
        object.__setattr__(self, "left", times)

    def __setattr__(self, name, value):
        if name == "training" and "left" in vars(self):
            object.__setattr__(self, "left", self.left - 1)
            if self.left == 0:
                raise KeyboardInterrupt
        super().__setattr__(name, value)


def test_measuring_changes_nothing_when_it_is_interrupted_while_it_puts_things_back():
    model = nn.Sequential(Impatient(2), network())
    before = snapshot(model)

    def interrupted():
        with measuring(model, "eval"):
            model[1].train()(torch.randn(8, 3))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same(snapshot(model), before)


def test_measuring_changes_nothing_when_the_body_raises():
    model = network()
    before = snapshot(model)

    def interrupted():
        with measuring(model, "train"):
            model(torch.randn(8, 3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same(snapshot(model), before)


def test_wrappers_are_recognised():
    model = nn.Linear(2, 2)
    assert data_parallel(model) is None
    assert sharded(model) == []
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert data_parallel(wrapped) is wrapped
        assert data_parallel(torch.compile(wrapped)) is wrapped
    finally:
        torch.distributed.destroy_process_group()
