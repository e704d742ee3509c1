"""
SWA and EMA of the weights
==========================

Averages of the weights, from ``torch.optim.swa_utils``, go around a sharpness-aware optimizer as around any other:
after a step the weights are those that the base optimizer has made, never displaced ones. Under BatchNorm an averaged
network needs statistics of its own, which ``update_bn`` gives it.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import flatwise as fw

EPOCHS, SWA_START = 40, 20

torch.manual_seed(0)
bunch = load_digits()
order = torch.randperm(len(bunch.target))
x, y = torch.tensor(bunch.data, dtype=torch.float32)[order] / 8 - 1, torch.tensor(bunch.target)[order]
wrong = torch.randperm(1000)[:200]  # a fifth of the training labels is random
y[wrong] = torch.randint(10, (200,))
test = x[1000:], y[1000:]


def epoch_of_batches():
    return [(x[i], y[i]) for i in torch.randperm(1000).split(50)]


def error(model):
    model.eval()
    with torch.no_grad():
        wrong = (model(test[0]).argmax(1) != test[1]).float().mean()
    model.train()
    return 100 * wrong.item()


# %%
# Optimizer, averages, schedules
# ------------------------------
# Both schedules are made on the wrapper; they set the learning rate of the base optimizer, as the two share their
# parameter groups.

model = torch.nn.Sequential(
    torch.nn.Linear(64, 128, bias=False),
    torch.nn.BatchNorm1d(128),
    torch.nn.ReLU(),
    torch.nn.Linear(128, 128, bias=False),
    torch.nn.BatchNorm1d(128),
    torch.nn.ReLU(),
    torch.nn.Linear(128, 10),
)
base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
optimizer = fw.SharpnessAware(base, fw.methods.SAM(rho=0.4), model=model)

swa = AveragedModel(model)
ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay=0.98))
cosine = CosineAnnealingLR(optimizer, T_max=EPOCHS)
constant = SWALR(optimizer, swa_lr=0.05, anneal_epochs=3)

# %%
# Training
# --------
# The moving average is updated after every step, the plain average after every epoch from the twentieth on.

errors = {"weights": [], "EMA": [], "SWA": [], "SWA without update_bn": []}
for epoch in range(EPOCHS):
    for inputs, targets in epoch_of_batches():
        for p in optimizer.passes():
            p.backward(F.cross_entropy(model(inputs), targets))
        optimizer.step()
        ema.update_parameters(model)
    if epoch < SWA_START:
        cosine.step()
    else:
        constant.step()
        swa.update_parameters(model)
        errors["SWA without update_bn"].append(error(swa))
        update_bn(epoch_of_batches(), swa)
        errors["SWA"].append(error(swa))
    errors["weights"].append(error(model))
    update_bn(epoch_of_batches(), ema)
    errors["EMA"].append(error(ema))

# %%
# What the averages do
# --------------------
# The title gives the errors of the last epoch. For the grey line the averaged network was tested with the statistics
# that it had: those of the network in training, which belong to other weights.

colors = {"weights": "#2a7fc9", "EMA": "#d95f0e", "SWA": "#12967a", "SWA without update_bn": "#888888"}
figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
for name, path in errors.items():
    first = EPOCHS - len(path) + 1
    axes.plot(range(first, EPOCHS + 1), path, color=colors[name], label=name)
axes.set(xlabel="epoch", ylabel="test error (%)", ylim=(0, 15))
axes.set_title(", ".join(f"{name} {path[-1]:.1f} %" for name, path in errors.items()), fontsize="medium")
axes.legend()
plt.show()

# %%
# One seed of a small problem: that the averages can be had is what is shown, not that they are better.
#
# When to update an average
# -------------------------
# At any moment at which no pass is open: after ``optimizer.step()``, in a ``register_step_post_hook`` of the wrapper
# or of the base, between the passes and the step (then it counts the weights before the step). *Inside* the loop over
# the passes, or inside a closure, the model is displaced in every pass but those at the weights, and nobody can tell
# an average that: whoever has to read weights there asks ``p.at_weights`` first. An update in a closure would count
# every pass, most of them displaced.
