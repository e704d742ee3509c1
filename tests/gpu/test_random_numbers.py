"""Dropout on the device: its masks agree in all passes, and its generator ends where one plain pass would leave it."""

import copy

import pytest
import torch
from gpu.devices import batches_on, build_on, every_device, random_state, two_gpus
from methods.cases import every_displacing_method, every_method
from optim.problems import noisy_net, seeded, step_by_closure, step_by_passes
from torch import nn

every_route = pytest.mark.parametrize("step", [step_by_closure, step_by_passes])


class Noise(nn.Module):
    """Dropout that remembers its masks."""

    def __init__(self):
        super().__init__()
        self.drawn = []

    def forward(self, x):
        if self.training:
            self.drawn.append(torch.rand(x.shape, device=x.device))
            x = x * (self.drawn[-1] > 0.3)
        return x


def noise_net(dtype=torch.float32):
    return seeded(lambda: nn.Sequential(nn.Linear(6, 10), nn.Tanh(), Noise(), nn.Linear(10, 3))).to(dtype)


@every_device
@every_route
@every_displacing_method
def test_masks_agree_in_all_passes(case, step, device):
    run = build_on(device, case.method, net=noise_net)
    for batch in batches_on(device, 4):
        run.model[2].drawn.clear()
        step(run, batch)
        first, *later = run.model[2].drawn
        assert later
        assert all(torch.equal(mask, first) for mask in later)


@every_device
@every_displacing_method
def test_fresh_masks_differ(case, device):
    run = build_on(device, case.method, net=noise_net, fresh_noise=True)
    step_by_closure(run, batches_on(device, 1)[0])
    first, *later = run.model[2].drawn
    assert later
    assert not any(torch.equal(mask, first) for mask in later)


@every_device
@every_route
@every_method
def test_the_generator_is_as_after_one_plain_pass(case, step, device):
    run = build_on(device, case.method, net=noisy_net)
    torch.manual_seed(1)
    for batch in batches_on(device, 4):
        before = random_state(device)
        copy.deepcopy(run.model)(batch[0])
        expected = random_state(device)
        assert not torch.equal(before, expected)
        if device == "cpu":
            torch.set_rng_state(before)
        else:
            torch.cuda.set_rng_state(before, device)
        step(run, batch)
        assert torch.equal(random_state(device), expected)


class OnTwoDevices(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = noise_net().to("cuda:0"), nn.Sequential(nn.Linear(3, 3), Noise()).to("cuda:1")

    def forward(self, x):
        return self.second(self.first(x).to("cuda:1"))


@two_gpus
@every_displacing_method
def test_every_device_has_its_generator_replayed(case):
    run = build_on("cuda:0", case.method, net=lambda dtype: seeded(OnTwoDevices))
    run.model.second.to("cuda:1")
    for x, y in batches_on("cuda:0", 3):
        noises = (run.model.first[2], run.model.second[1])
        for noise in noises:
            noise.drawn.clear()
        step_by_closure(run, (x, y.to("cuda:1")))
        for noise in noises:
            first, *later = noise.drawn
            assert all(torch.equal(mask, first) for mask in later)
