"""Problem 13: checkpoint libraries call `step()` without a closure.

pytorch #133415, #164929, #192202: `torch.distributed.checkpoint` initialises an optimizer's state by a step with learning rate
zero and zero gradients. davda54/sam, sam-pytorch and pytorch_optimizer 4.1 raise there, as no closure was given.
"""

import copy

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from users.plain import batches, flat, loss_of, momentum_sgd, network

import flatwise as fw

BASES = {"momentum": momentum_sgd, "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2)}
every_base = pytest.mark.parametrize("base", BASES)


def prepared(base):
    model = network()
    return model, fw.SharpnessAware(BASES[base](model.parameters()), fw.methods.SAM(0.1), model=model)


def train(model, optimizer, data):
    for batch in data:
        for p in optimizer.passes():
            p.backward(loss_of(model, batch))
        optimizer.step()


@every_base
def test_a_step_with_learning_rate_zero_and_no_closure_only_initialises_state(base):
    model, optimizer = prepared(base)
    before = flat(model)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.0) if base == "adamw" else 0.0  # the library does either
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(flat(model), before)
    assert len(optimizer.state) == 4  # the base optimizer's, for each parameter
    assert optimizer.diagnostics == {"skipped": 0.0}


@every_base
def test_an_optimizer_that_never_stepped_can_be_saved_and_loaded_into(base):
    first, rest = batches(6)[:3], batches(6)[3:]
    model, optimizer = prepared(base)
    get_optimizer_state_dict(model, optimizer)  # before the first step
    train(model, optimizer, first)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    again, fresh = prepared(base)
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, fresh, state)
    train(model, optimizer, rest)
    train(again, fresh, rest)
    assert torch.equal(flat(again), flat(model))
