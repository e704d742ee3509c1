"""
A method of your own in ten lines
=================================

A method is a dialogue with the training loss: it says where it wants the loss evaluated, is given loss and gradient
there, and returns the direction to step along. Everything else (moving the weights and putting them back,
accumulation, mixed precision, BatchNorm, data parallelism, checkpoints) is the optimizer's work and comes for free.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import flatwise as fw
from flatwise.methods import At, Dialogue, Evaluation, State, drive

# %%
# The method
# ----------
# SAM goes uphill by rho in one go. This one goes half of the way, looks again, and goes the whole way in the
# direction that it finds there.


@dataclass(frozen=True)
class SecondLook(Dialogue):
    rho: float = 0.05

    def passes(self, state):
        here = yield At.weights()
        halfway = yield At.along(here.release(), self.rho / 2)
        there = yield At.along(halfway.release(), self.rho)
        return there.release()


# %%
# Seen on a loss of two weights
# -----------------------------
# :func:`flatwise.methods.drive` runs a dialogue with a plain function in place of a network, so a method can be
# looked at, and tested in float64 against known answers. This loss is a valley with a level floor, steep on the left
# and wide on the right: every point of the floor is a minimum.


def loss(w):
    steepness = 0.5 + 8 * torch.sigmoid(-3 * w[0])
    return steepness * w[1] ** 2 / 2


def path_of(method, start, lr=0.1, steps=150):
    w, path = torch.tensor(start, dtype=torch.float64), [start]

    def evaluate(at):
        displacement = at.displacement()
        place = (w if displacement is None else w + displacement[0]).clone().requires_grad_()
        value = loss(place)
        return Evaluation(value.detach(), list(torch.autograd.grad(value, place)))

    for _ in range(steps):
        (direction,) = drive(method, evaluate, State())
        w = w - lr * direction
        path.append(w.tolist())
    return torch.tensor(path)


x, y = torch.meshgrid(torch.linspace(-1.2, 1.6, 120), torch.linspace(-0.8, 1.1, 100), indexing="xy")
figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
axes.contour(
    x, y, loss(torch.stack([x, y])), levels=[0.003 * 2**i for i in range(12)], colors="#cccccc", linewidths=0.7
)
methods = {
    "plain gradient descent": (fw.methods.SGD(), "#12967a"),
    "SAM, rho 0.3": (fw.methods.SAM(rho=0.3), "#2a7fc9"),
    "SecondLook, rho 0.3": (SecondLook(rho=0.3), "#d95f0e"),
}
for name, (method, color) in methods.items():
    path = path_of(method, [-0.7, 1.0])
    axes.plot(*path.T, color=color, marker=".", ms=4, lw=1, label=name)
    axes.plot(*path[-1], color=color, marker="*", ms=14)
axes.set(title="150 steps from the same start; a star marks the end", xlabel="first weight", ylabel="second weight")
axes.legend()
plt.show()

# %%
# Plain gradient descent stops where it meets the floor. Both sharpness-aware methods go on along it, to where it is
# wide; here the two hardly differ.
#
# Used on a network
# -----------------
# The same object goes into :class:`~flatwise.SharpnessAware`, with accumulation for the asking.

bunch = load_digits()
inputs, targets = torch.tensor(bunch.data, dtype=torch.float32) / 8 - 1, torch.tensor(bunch.target)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
optimizer = fw.SharpnessAware(base, SecondLook(rho=0.1), model=model)
for _ in range(10):
    for batch in torch.randperm(1000).split(100):
        for p in optimizer.passes():
            for part in batch.split(50):
                p.backward(F.cross_entropy(model(inputs[part]), targets[part]))
        optimizer.step()

model.eval()
print(
    f"accuracy on the 797 images not trained on: {(model(inputs[1000:]).argmax(1) == targets[1000:]).float().mean():.1%}"
)
print({name: round(value, 3) for name, value in optimizer.diagnostics.items()})

# %%
# In a file ``looks.py`` it goes by the name ``looks:SecondLook`` wherever a method does, beside ``sam``:
# ``flatwise compare --methods sgd sam looks:SecondLook --rho 0.1``; other hyper-parameters with ``--hyper``.
#
# Three evaluations a step, as asked for. A method that remembers something from step to step keeps it in
# ``state.vectors`` and ``state.numbers``, which are part of the checkpoint; :doc:`/how-a-step-works` has the whole
# story.
