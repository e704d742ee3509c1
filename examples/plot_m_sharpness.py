"""
Accumulation and m-sharpness
============================

A batch that does not fit into memory is cut into parts. There are two ways to put a sharpness-aware step together
from parts, and they are not the same method: *accumulation*, in which every evaluation is the mean over the parts and
the step is that of the whole batch, and *m-sharpness*, in which every part has a displacement of its own and the
directions are averaged.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import flatwise as fw

RHO, BATCH = 0.1, 64

bunch = load_digits()
pixels = torch.tensor(bunch.data, dtype=torch.float32) / 8 - 1
labels = torch.tensor(bunch.target)


def batches(seed, count):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        indices = torch.randint(len(labels), (BATCH,), generator=generator)
        yield pixels[indices], labels[indices]


def made(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10)
    )
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, fw.SharpnessAware(base, fw.methods.SAM(rho=RHO), model=model)


# %%
# One loop for both
# -----------------
# ``passes(parts=m)`` yields every evaluation once for each part, which ``p.part`` names; ``each=True`` makes it a
# dialogue per part.


def step(model, optimizer, x, y, parts=1, each=False):
    xs, ys = x.chunk(parts), y.chunk(parts)
    for p in optimizer.passes(parts=parts, each=each):
        p.backward(F.cross_entropy(model(xs[p.part]), ys[p.part]))
    optimizer.step()


# %%
# The same step, or another one
# -----------------------------
# How far do the weights go from those of training on whole batches? With accumulation by rounding only.


def distances(**options):
    (whole, whole_optimizer), (parted, parted_optimizer) = made(0), made(0)
    found = []
    for x, y in batches(1, count=30):
        step(whole, whole_optimizer, x, y)
        step(parted, parted_optimizer, x, y, **options)
        apart = [a - b for a, b in zip(whole.parameters(), parted.parameters(), strict=True)]
        found.append(
            torch.nn.utils.get_total_norm(apart).item() / torch.nn.utils.get_total_norm(whole.parameters()).item()
        )
    return found


accumulated, each_part = distances(parts=4), distances(parts=4, each=True)

# %%
# What m does
# -----------
# A part of the batch is displaced against its own gradient, by the same rho however small it is. So the parts see
# more sharpness than the batch: by how much the loss rises under the displacement, mean over the parts, for one
# network and 30 batches. Clearing the gradients after the passes, in place of a step, leaves everything as it was.

model, optimizer = made(0)
for x, y in batches(2, count=200):
    step(model, optimizer, x, y)


def rise(x, y, parts):
    xs, ys, total = x.chunk(parts), y.chunk(parts), 0.0
    for p in optimizer.passes(parts=parts, each=True):
        loss = F.cross_entropy(model(xs[p.part]), ys[p.part])
        p.backward(loss)
        total += loss.item() * (-1 if p.at_weights else 1)
    optimizer.zero_grad()
    return total / parts


PARTS = [1, 2, 4, 8, 16, 32]
rises = torch.tensor([[rise(x, y, parts) for parts in PARTS] for x, y in batches(3, count=30)])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.semilogy(range(1, 31), each_part, color="#d95f0e", label="m-sharpness, each=True")
left.semilogy(range(1, 31), accumulated, color="#2a7fc9", label="accumulation")
left.set(xlabel="step", ylabel="distance of the weights / their norm")
left.set_title("training with 4 parts against whole batches", fontsize="medium")
left.legend()
right.plot(PARTS, rises.T, color="#d95f0e", lw=0.5, alpha=0.4)
right.plot(PARTS, rises.mean(0), color="#d95f0e", marker="o", label="mean of the batches")
right.set_xscale("log", base=2)
right.set(xlabel=f"parts of a batch of {BATCH}", ylabel="rise of the loss under the displacement", ylim=(0, None))
right.set_title("what each part sees of sharpness, a line per batch", fontsize="medium")
right.legend()
plt.show()

# %%
# Under DistributedDataParallel the parts are the ranks: ``perturb="global"``, the default, is accumulation over
# ranks, and ``perturb="local"`` is m-sharpness with the ranks as parts.
