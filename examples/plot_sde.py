"""
SAM beside its differential equations
=====================================

A step of SAM draws a mini-batch and follows its gradient at ``w + rho * g / |g|``. Expanded in rho, in the limit of
small learning rates, this is a stochastic differential equation: of second order with the Hessian term alone
(`Compagnoni et al. <https://arxiv.org/abs/2301.08203>`_), of third order with the term that lowers curvature along the
displacement too (`Luo et al. <https://arxiv.org/abs/2501.12666>`_). All three are simulated here on a small network,
many paths at once.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import flatwise as fw
from flatwise.theory import fields

LR, RHO, STEPS, PATHS = 0.2, 0.5, 150, 24

bunch = load_digits()
images = torch.tensor(bunch.images[:120] / 16, dtype=torch.float64)
inputs = F.avg_pool2d(images.unsqueeze(1), 2).flatten(1)
inputs, targets = inputs - inputs.mean(0), torch.tensor(bunch.target[:120])
batches = [(inputs[i::6], targets[i::6]) for i in range(6)]

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Tanh(), torch.nn.Linear(8, 10)).double()

# %%
# How good is the expansion?
# --------------------------
# The batches of an :class:`~flatwise.Objective` stand for the mini-batches of training. At one place, in the mean over
# them, the error of the expansion falls with the power of rho that its order promises.

objective = fw.Objective(model, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]), batches)
ensemble = fw.theory.Ensemble(objective)
here = ensemble.weights.unsqueeze(0)
radii = [0.8, 0.4, 0.2, 0.1, 0.05]
apart = {
    order: [
        float(
            (ensemble.fields(fields.sam(r), here) - ensemble.fields(fields.sam_expansion(r, order), here))
            .mean(0)
            .norm()
        )
        for r in radii
    ]
    for order in (2, 3)
}

# %%
# Along the training
# ------------------
# The method itself, and both equations: the same start, as many paths. A step of the method takes the time ``lr``. What
# is observed is any function of the weights of all paths, here the loss and the gradient norm of all the data, and the
# norm of the weights.


def observed(x):
    gradients = ensemble.fields(fields.gradient, x).mean(0)
    return {
        "training loss": ensemble.losses(x).mean(0),
        "gradient norm": gradients.norm(dim=1),
        "norm of the weights": x.norm(dim=1),
    }


looks = {"paths": PATHS, "observe": observed, "every": 10}
runs = {"SAM": fw.theory.discrete(ensemble, fields.sam(RHO), LR, STEPS, **looks)}
for order in (2, 3):
    equation = fw.theory.sam_sde(ensemble, LR, RHO, order)
    runs[f"order {order}"] = fw.theory.simulate(equation, STEPS * LR, **looks)

# %%
# Means over the paths, with twice their standard errors. The displacement is long here, so that the orders can be told
# apart by eye.

figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
for order, errors in apart.items():
    axes[0].loglog(radii, errors, "o-", color=f"C{order - 1}", label=f"order {order}")
axes[0].set(title="error of one step", xlabel="rho")
axes[0].set_xticks(radii, radii)
axes[0].minorticks_off()
axes[0].legend()
for axis, name in zip(axes[1:], runs["SAM"].observed, strict=True):
    for color, (label, run) in zip(("k", "C1", "C2"), runs.items(), strict=True):
        mean, error = run.mean(name), 2 * run.standard_error(name)
        axis.plot(run.times / LR, mean, color=color, label=label)
        axis.fill_between(run.times / LR, mean - error, mean + error, color=color, alpha=0.2, lw=0)
    axis.set(title=name, xlabel="steps")
axes[1].legend()
plt.show()
