"""
Loss landscapes
===============

What training with SAM does to the surroundings of the solution: the loss along the top eigenvector of the Hessian, in
a random plane, and on the straight line from the network that plain training found to that of SAM. The network is
small, and a fifth of its 1,000 training labels are random.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import LogNorm
from sklearn.datasets import load_digits

import flatwise as fw

generator = torch.Generator().manual_seed(0)
bunch = load_digits()
order = torch.randperm(len(bunch.target), generator=generator)[:1000]
inputs, targets = torch.tensor(bunch.data, dtype=torch.float32)[order] / 8 - 1, torch.tensor(bunch.target)[order]
targets[:200] = torch.randint(10, (200,), generator=generator)


def loss_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def trained(method, epochs):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    optimizer = fw.SharpnessAware(optimizer, method, model=model)
    for _ in range(epochs):
        for indices in torch.randperm(len(inputs)).split(64):
            for p in optimizer.passes():
                p.backward(loss_of(model, (inputs[indices], targets[indices])))
            optimizer.step()
    return model


networks = {"SGD": trained(fw.methods.SGD(), 60), "SAM": trained(fw.methods.SAM(rho=0.1), 30)}
objectives = {name: fw.Objective(model, loss_of, [(inputs, targets)]) for name, model in networks.items()}
colors = {"SGD": "#12967a", "SAM": "#2a7fc9"}

# %%
# Along the top eigenvector
# -------------------------
# Eigenvectors have length 1, so lengths are distances between weights. A line knows the parabola that touches it at 0:
# along an eigenvector its curvature is the eigenvalue, which the title gives next to it.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
titles = []
for name, objective in objectives.items():
    pairs = fw.curvature.top_eigenpairs(fw.curvature.hessian(objective), tol=1e-3)
    line = fw.landscape.line(objective, pairs.vectors[0], name="the top eigenvector")
    parabola = fw.landscape.parabola(line)
    axes.plot(line.lengths, line.losses, color=colors[name], label=name)
    axes.plot(line.lengths, [parabola.at(x) for x in line.lengths], color=colors[name], ls="--", lw=1)
    titles.append(f"{name}: eigenvalue {pairs.values[0]:.2f}, curvature of the line {parabola.curvature:.2f}")
axes.set(xlabel="distance along the top eigenvector", ylabel="training loss", ylim=(0, 4))
axes.set_title("\n".join(titles), fontsize="medium")
axes.legend()
plt.show()

# %%
# In a random plane
# -----------------
# Two random directions, each filter as long as that of the weights (`Li et al.
# <https://arxiv.org/abs/1712.09913>`_), so that networks with weights of different size can be compared. Both pictures
# have the same, logarithmic colors.

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharex=True, sharey=True)
lengths = torch.linspace(-1, 1, 21).tolist()
planes = {
    name: fw.landscape.plane(o, fw.landscape.random_direction(o, 1), fw.landscape.random_direction(o, 2), lengths)
    for name, o in objectives.items()
}
losses = torch.tensor([plane.losses for plane in planes.values()])
norm = LogNorm(losses.min(), losses.max())
levels = torch.logspace(losses.min().log10(), losses.max().log10(), 15)
for ax, (name, plane) in zip(axes, planes.items(), strict=True):
    picture = ax.pcolormesh(plane.xs, plane.ys, plane.losses, norm=norm, shading="gouraud")
    ax.contour(plane.xs, plane.ys, plane.losses, levels=levels, colors="white", linewidths=0.5)
    ax.set(title=name, xlabel="first direction, 1: as long as the weights")
axes[0].set_ylabel("second direction")
figure.colorbar(picture, ax=axes, label="training loss")
plt.show()

# %%
# From one to the other
# ---------------------
# A path takes state dicts, or Vectors. Its barrier is how far the loss rises above the straight line between both ends.

path = fw.landscape.path(objectives["SGD"], *(model.state_dict() for model in networks.values()), names=("SGD", "SAM"))
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(path.lengths, path.losses, color="#8566c9")
for mark in path.marks:
    axes.plot(*mark.place, mark.loss, "o", color=colors[mark.label])
axes.set(ylabel="training loss", title=f"barrier {path.barrier:.2f}")
axes.set_xticks([0, 1], ["SGD", "SAM"])
plt.show()
