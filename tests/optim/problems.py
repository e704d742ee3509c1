"""Small networks, data, base optimizers and ways to drive a step, shared by the tests of the optimizer."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flatwise as fw

BASES = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=1e-2),
}
every_base = pytest.mark.parametrize("base", BASES)


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def mlp(dtype=torch.float32):
    return seeded(lambda: nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))).to(dtype)


def norm_net(dtype=torch.float32):
    """With BatchNorm: it has buffers that a pass in training mode advances."""
    layers = lambda: nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 3))
    return seeded(layers).to(dtype)


def noisy_net(dtype=torch.float32):
    """With BatchNorm and dropout."""
    layers = lambda: nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Dropout(0.3), nn.Linear(10, 3))
    return seeded(layers).to(dtype)


def batches(count, size=16, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: (
        torch.randn(size, 6, generator=generator, dtype=torch.float64).to(dtype),
        torch.randint(3, (size,), generator=generator),
    )
    return [draw() for _ in range(count)]


def halves(batch, sizes=(8, 8)):
    """The batch cut into micro-batches of the given sizes."""
    return list(zip(batch[0].split(list(sizes)), batch[1].split(list(sizes))))


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@dataclass
class Setup:
    model: nn.Module
    base: torch.optim.Optimizer
    opt: torch.optim.Optimizer

    @property
    def params(self):
        return list(self.model.parameters())


def build(method, base="sgd", net=mlp, dtype=torch.float32, groups=None, **options):
    """A fresh model, base optimizer and wrapper. `groups(model)` gives the base's parameter groups."""
    model = net(dtype)
    make_base = BASES[base] if isinstance(base, str) else base
    inner = make_base(groups(model) if groups else model.parameters())
    return Setup(model, inner, fw.SharpnessAware(inner, method, model=model, **options))


def closure_of(setup, batch, zero=None):
    def closure():
        if zero is not None:
            zero()
        loss = loss_of(setup.model, batch)
        loss.backward()
        return loss

    return closure


def step_by_closure(setup, batch):
    return setup.opt.step(closure_of(setup, batch))


def step_by_passes(setup, batch, scaler=None, **options):
    for p in setup.opt.passes(scaler, **options) if scaler else setup.opt.passes(**options):
        p.backward(loss_of(setup.model, batch))
    if scaler is None:
        setup.opt.step()
    else:
        scaler.step(setup.opt)
        scaler.update()


def train(setup, data, step=step_by_closure):
    return [step(setup, batch) for batch in data]


def weights(setup):
    return [p.detach().clone() for p in setup.params]


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def modes(model):
    return [module.training for module in model.modules()]


def snapshot(setup):
    """Everything a step may change, copied. The model is read first: no call of the optimizer has mended it before."""
    model, training = copy.deepcopy(setup.model.state_dict()), modes(setup.model)
    base = copy.deepcopy(setup.base.state_dict())
    return {"model": model, "modes": training, "base": base, "optimizer": copy.deepcopy(setup.opt.state_dict())}


def assert_same(actual, expected, where="snapshot"):
    """Bitwise equality of nested dicts, lists, tensors and numbers."""
    assert type(actual) is type(expected), where
    if isinstance(expected, dict):
        assert list(actual) == list(expected), where
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for i, (a, e) in enumerate(zip(actual, expected)):
            assert_same(a, e, f"{where}[{i}]")
    elif isinstance(expected, torch.Tensor):
        assert actual.dtype == expected.dtype, where
        assert torch.equal(actual, expected), where
    else:
        assert actual == expected, where


def count_evaluations(setup, step, batch):
    """How many forward passes `step(setup, batch)` makes."""
    calls = []
    handle = setup.model.register_forward_hook(lambda *_: calls.append(1))
    step(setup, batch)
    handle.remove()
    return len(calls)
