"""The methods as pytorch_optimizer 4.1 has them, driven such that its results can be compared.

Where it is not the papers' rule:

- Norms are summed in float32, also of float64 gradients, and 1e-12 is added: displacements differ by about one part in 10^7.
- GSAM and WSAM go back to the weights by subtracting the displacement, which rounds; compare in float64.
- LookSAM takes the orthogonal part and its length tensor by tensor, where the paper has one vector, and evaluates twice in every
  step: it agrees on models of one tensor.
- SAM's `adaptive` scales all tensors by |w|, without the paper's eta, as in the popular re-implementation.
- SAM, LookSAM and FriendlySAM do not evaluate at the weights themselves: the gradient has to be there before `step(closure)`.
- WSAM is decoupled by default: the sharpness does not go through the base optimizer.
"""

import copy
import types

import pytorch_optimizer
import torch
import torch.nn.functional as F

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}


def closure_of(model, optimizer, batch):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    return closure


def with_fresh_gradients(name, model, data, base=SGD, **options):
    """SAM, LookSAM, FriendlySAM."""
    optimizer = getattr(pytorch_optimizer, name)(model.parameters(), torch.optim.SGD, **options, **base)
    for batch in data:
        closure = closure_of(model, optimizer, batch)
        closure()
        optimizer.step(closure)
    return model


def wsam(model, data, base=SGD, **options):
    """It evaluates at the weights itself."""
    optimizer = pytorch_optimizer.WSAM(model, model.parameters(), torch.optim.SGD, **options, **base)
    for batch in data:
        optimizer.step(closure_of(model, optimizer, batch))
    return model


def gsam(model, data, rho, alpha):
    """It takes rho from a schedule, and batches in place of closures."""
    base = torch.optim.SGD(model.parameters(), **SGD)
    constant = types.SimpleNamespace(step=lambda: rho)
    optimizer = pytorch_optimizer.GSAM(model.parameters(), base, model, constant, alpha=alpha)
    for inputs, targets in data:
        optimizer.set_closure(F.cross_entropy, inputs, targets)
        optimizer.step()
    return model


def sam_direction(model, batch, rho):
    """SAM's gradient of a batch, from the step that it makes with learning rate 1."""
    moved = with_fresh_gradients("SAM", copy.deepcopy(model), [batch], {"lr": 1.0}, rho=rho)
    return [(p - q).detach() for p, q in zip(model.parameters(), moved.parameters())]


def m_sam(model, batches_in_parts, rho):
    """The mean of the directions of the parts of each batch, taken by SGD."""
    base = torch.optim.SGD(model.parameters(), **SGD)
    for parts in batches_in_parts:
        directions = [sam_direction(model, part, rho) for part in parts]
        for p, *ds in zip(model.parameters(), *directions):
            p.grad = sum(ds) / len(ds)
        base.step()
    return model
