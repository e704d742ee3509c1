"""How near Eigen-SAM's vector is to the exact top eigenvector, on real images, at each refresh of a run with BatchNorm.

Exact: SciPy's Lanczos on double-backward products in float64, on a copy of the model as it is when the probes are made, in
evaluation mode, for the batch of that step.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from optim.problems import build, flat, loss_of, seeded
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits
from torch import nn

from flatwise.methods import EigenSAM

BASES = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=3e-3),
}


def smooth_cnn(dtype):
    layers = lambda: [
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(54, 10),
    ]
    return seeded(lambda: nn.Sequential(*layers()))


def smooth_mlp(dtype):
    layers = lambda: [
        nn.Flatten(),
        nn.Linear(64, 24),
        nn.BatchNorm1d(24),
        nn.Tanh(),
        nn.Dropout(0.1),
        nn.Linear(24, 10),
    ]
    return seeded(lambda: nn.Sequential(*layers()))


def relu_cnn(dtype):
    first = lambda: [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    second = lambda: [nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)]
    return seeded(lambda: nn.Sequential(*first(), *second(), nn.Flatten(), nn.Linear(48, 10)))


def digits(count, size=64):
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        chosen = torch.randint(len(y), (size,), generator=generator)
        yield x[chosen], y[chosen]


def exact_top(model, batch):
    model = copy.deepcopy(model).double().eval()
    params = list(model.parameters())
    g = torch.autograd.grad(F.cross_entropy(model(batch[0].double()), batch[1]), params, create_graph=True)
    sizes = [p.numel() for p in params]

    def product(x):
        v = torch.tensor(np.asarray(x, dtype=np.float64).reshape(-1))
        parts = [part.view_as(p) for part, p in zip(v.split(sizes), params)]
        return flat(torch.autograd.grad(g, params, grad_outputs=parts, retain_graph=True)).numpy()

    operator = LinearOperator((sum(sizes), sum(sizes)), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(sum(sizes))
    values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=1e-6)
    return values[0], torch.from_numpy(vectors[:, 0].copy())


def tracked(run):
    state = run.opt.state_dict()["state"]
    return flat([state[i]["flatwise.eigenvector"] for i in range(len(run.params))]).double()


def quality(net, base, steps=121, every=10, after=50):
    """|cos| with the exact vector, and Rayleigh quotient over exact eigenvalue, at each refresh from step `after` on."""
    run = build(EigenSAM(rho=0.05, every=every, iterations=5), BASES[base], net)
    cosines, ratios = [], []
    for step, batch in enumerate(digits(steps)):
        model = None
        for p in run.opt.passes():
            if p.is_probe and model is None:
                assert p.at_weights
                model = copy.deepcopy(run.model)
            p.backward(loss_of(run.model, batch))
        run.opt.step()
        if model is not None and step >= after:
            value, vector = exact_top(model, batch)
            cosines.append((tracked(run) @ vector).abs().item())
            ratios.append(run.opt.diagnostics["rayleigh_quotient"] / value)
    return np.median(cosines), np.median(ratios)


# A difference of gradients sees the kinks of ReLU and max-pooling, which double backward does not: the quotient is larger, and
# the median |cos| varies with the order of the data: 0.938 to 0.979 over three orders and the two bases.
NETS = [(smooth_cnn, 0.95, 0.1), (smooth_mlp, 0.95, 0.1), (relu_cnn, 0.9, 0.35)]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("net", "least", "tolerance"), NETS)
def test_after_a_few_refreshes_the_vector_is_the_batchs_top_eigenvector(net, least, tolerance, base):
    cosine, ratio = quality(net, base)
    assert cosine > least
    assert ratio == pytest.approx(1.0, abs=tolerance)
