"""A small run with kept checkpoints, and its dense Hessian in float64 by functions that are not ours."""

import torch

from flatwise.training import TrainConfig, resolved, train
from flatwise.training.loop import load_task
from flatwise.training.setup import build_loss, build_network

CONFIG = TrainConfig(method="sam", subset=60, widths=(3,), steps=8, keep_every=4, probe_every=0, lr=0.1)


def small_run(folder):
    return train(CONFIG, folder)


def dense_hessian(run, step, places=slice(None)):
    """The Hessian of the training loss at a checkpoint [n, n], its gradient [n], and the loss."""
    config = resolved(TrainConfig.from_dict(run.config))
    task, loss = load_task(config), build_loss(config)
    model = build_network(config, task)
    model.load_state_dict(torch.load(run.checkpoint_path(step), weights_only=True)["model"])
    model.double()
    inputs, targets = task.train_inputs[places].double(), task.train_targets[places]
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def loss_at(flat):
        parts = [t.view_as(p) for t, p in zip(flat.split(sizes), model.parameters(), strict=True)]
        return loss(torch.func.functional_call(model, dict(zip(names, parts, strict=True)), inputs), targets)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    derivatives = torch.autograd.functional
    return derivatives.hessian(loss_at, flat), derivatives.jacobian(loss_at, flat), loss_at(flat)
