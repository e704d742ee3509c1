"""Jacobians from layer to layer as matrices, sample by sample."""

from contextlib import ExitStack
from itertools import pairwise

import torch
from torch.autograd.functional import jacobian


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def swapped(output, value):
    return value if isinstance(output, torch.Tensor) else (value, *output[1:])


def run(model, sample, layers, start, value=None):
    """What goes into the first layer and what each returns, with `value` in place of that of `start`, if given."""
    modules, seen = dict(model.named_modules()), {}

    def before(_, args):
        seen["input"] = args[0]
        return (value, *args[1:]) if start == "input" and value is not None else None

    def after(name):
        def hook(_, __, output):
            seen[name] = first(output)
            return swapped(output, value) if start == name and value is not None else None

        return hook

    with ExitStack() as hooks:
        hooks.callback(modules[layers[0]].register_forward_pre_hook(before).remove)
        for name in layers:
            hooks.callback(modules[name].register_forward_hook(after(name)).remove)
        model(sample[None])
    return seen


def explicit(objective, layers, from_input):
    """A tensor [samples, outputs, inputs] for each pair of consecutive layers."""
    if objective.mode != "current":
        objective.model.train(objective.mode == "train")
    samples = torch.cat([x for x, _ in objective.data])
    names = ["input"] * from_input + layers
    return [torch.stack([between(objective.model, x, layers, *pair) for x in samples]) for pair in pairwise(names)]


def between(model, sample, layers, start, end):
    place = run(model, sample, layers, start)[start].detach().clone()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        matrix = jacobian(lambda z: run(model, sample, layers, start, z.clone())[end], place)
    return matrix.reshape(-1, place.numel())
