"""The devices to run on: what can be checked on the CPU as well is checked there, too."""

import pytest
import torch
from optim.problems import batches, build

gpu = pytest.mark.gpu
two_gpus = pytest.mark.gpu(count=2)
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])


def build_on(device, method, base="sgd", net=None, **options):
    return build(method, base, lambda dtype: net(dtype).to(device), **options)


def batches_on(device, count, **options):
    return [(x.to(device), y.to(device)) for x, y in batches(count, **options)]


def random_state(device):
    return torch.get_rng_state() if device == "cpu" else torch.cuda.get_rng_state(device)
