"""
Two lines
=========

A training loop, the same loop with two lines changed, and what that does on a small network: 1,000 handwritten
digits, a fifth of whose training labels are random. A step of SAM costs two evaluations of the gradient in place of
one, so plain training gets twice the epochs here.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import flatwise as fw

EPOCHS, SEEDS = 25, range(3)


def digits(seed):
    """1,000 images with a fifth of the labels drawn at random, and 797 with the true ones."""
    bunch = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(bunch.target), generator=generator)
    x = torch.tensor(bunch.data, dtype=torch.float32)[order] / 8 - 1
    y = torch.tensor(bunch.target)[order]
    wrong = torch.randperm(1000, generator=generator)[:200]
    y[wrong] = torch.randint(10, (200,), generator=generator)
    return (x[:1000], y[:1000]), (x[1000:], y[1000:])


def network():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
    )


def batches(x, y):
    for indices in torch.randperm(len(x)).split(64):
        yield x[indices], y[indices]


def accuracy(model, x, y):
    with torch.no_grad():
        return 100 * (model(x).argmax(1) == y).float().mean().item()


# %%
# The loop as it was
# ------------------


def train(seed):
    torch.manual_seed(seed)
    training, test = digits(seed)
    model, path = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2 * EPOCHS)
    for _ in range(2 * EPOCHS):
        for x, y in batches(*training):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()
        path.append(accuracy(model, *test))
    return model, training, path


# %%
# The loop with SAM
# -----------------
# The optimizer is wrapped, and the forward and backward stand in a loop over its passes. Everything else, the
# schedule too, is as it was.


def train_with_sam(seed):
    torch.manual_seed(seed)
    training, test = digits(seed)
    model, path = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    optimizer = fw.SharpnessAware(optimizer, fw.methods.SAM(rho=0.1), model=model)  # line 1
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for x, y in batches(*training):
            for p in optimizer.passes():  # line 2
                p.backward(F.cross_entropy(model(x), y))
            optimizer.step()
        schedule.step()
        path.append(accuracy(model, *test))
    return model, training, path


plain = [train(seed) for seed in SEEDS]
aware = [train_with_sam(seed) for seed in SEEDS]

# %%
# What happened
# -------------
# On the left, accuracy on the 797 test images against the work done, one line per seed. On the right, the training
# loss (with its wrong labels) as the final weights of seed 0 are moved along the top eigenvector of the Hessian
# there: the curvature in the middle is the top eigenvalue, which the legend gives.


def slice_of(model, training):
    """The loss along the top eigenvector of the Hessian, and the top eigenvalue."""
    objective = fw.Objective(model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), [training])
    pairs = fw.curvature.top_eigenpairs(fw.curvature.hessian(objective))
    parameters, losses = list(model.parameters()), []
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for distance in distances:
            for p, w, v in zip(parameters, before, pairs.vectors[0], strict=True):
                p.copy_(w + distance * v)
            losses.append(objective.value().item())
        for p, w in zip(parameters, before, strict=True):
            p.copy_(w)
    return losses, pairs.values[0]


distances = torch.linspace(-1, 1, 41).tolist()
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
means = []
for name, runs, cost, color in [("SGD", plain, 1, "#12967a"), ("SAM", aware, 2, "#2a7fc9")]:
    for seed, (_, _, path) in enumerate(runs):
        work = [cost * epoch for epoch in range(1, len(path) + 1)]
        left.plot(work, path, color=color, lw=1, label=name if seed == 0 else None)
    losses, value = slice_of(*runs[0][:2])
    right.plot(distances, losses, color=color, label=f"{name}: {value:.2g}")
    means.append(f"{name} {sum(path[-1] for *_, path in runs) / len(runs):.1f} %")
left.set(xlabel="gradient evaluations per training image", ylabel="test accuracy (%)", ylim=(85, 100))
left.set_title(f"mean of {len(SEEDS)} seeds at the end: {', '.join(means)}", fontsize="medium")
left.legend()
right.set(xlabel="distance along the top eigenvector", ylabel="training loss")
right.set_title("around the final weights of seed 0", fontsize="medium")
right.legend(title="top eigenvalue")
plt.show()

# %%
# Plain training goes on to fit the wrong labels, and its accuracy falls: stopped early, it would have done better
# than it did here. Three seeds of a small problem are an example, not evidence. ``flatwise compare`` repeats over
# seeds and gives intervals.
