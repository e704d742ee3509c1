"""Problem 12: "loss collapses every time I resume".

davda54/sam #34, #73 ("state is half the size"), and PR #39 did not cure it: the wrapper's `state_dict` holds the backup of the
weights in place of the base optimizer's momentum. sam-pytorch saves nothing of the base either; composer warns of its own
mismatch in the constructor.
"""

import io

import pytest
import torch
from users.plain import batches, flat, loss_of, momentum_sgd, network

import flatwise as fw

BASES = {"momentum": momentum_sgd, "adamw": lambda params: torch.optim.AdamW(params, lr=1e-2)}
METHODS = {
    "sam": fw.methods.SAM(0.1),
    "eigen-sam": fw.methods.EigenSAM(0.1, alpha=0.5, every=3, iterations=2),
}


def prepared(base="momentum", method="sam"):
    model = network(norm=True)
    return model, fw.SharpnessAware(BASES[base](model.parameters()), METHODS[method], model=model)


def step(model, optimizer, batch):
    for p in optimizer.passes():
        p.backward(loss_of(model, batch))
    optimizer.step()


def through_a_file(model, optimizer):
    """A checkpoint as people write it."""
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "model": model.state_dict()}, file)
    file.seek(0)
    return torch.load(file)


def resumed(checkpoint, *which):
    model, optimizer = prepared(*which)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return model, optimizer


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumed_at_any_step_continues_bitwise(base, method):
    data = batches(7)
    model, optimizer = prepared(base, method)
    checkpoints = []
    for batch in data:
        checkpoints.append(through_a_file(model, optimizer))
        step(model, optimizer, batch)
    for start, checkpoint in enumerate(checkpoints):
        again, other = resumed(checkpoint, base, method)
        for batch in data[start:]:
            step(again, other, batch)
        assert torch.equal(flat(again), flat(model)), f"resumed at step {start}"


@pytest.mark.parametrize("moment", ["in the first pass", "in the displaced pass", "between passes and step"])
def test_a_checkpoint_in_the_midst_of_a_step_is_that_of_the_step_before(moment):
    """Written by a signal handler, say. Asking the optimizer ends an open dialogue, so displaced weights are never saved."""
    first, second = batches(2)
    model, optimizer = prepared()
    step(model, optimizer, first)
    for p in optimizer.passes():
        p.backward(loss_of(model, second))
        if (moment == "in the first pass") or (moment == "in the displaced pass" and not p.at_weights):
            break
    again, other = resumed(through_a_file(model, optimizer))
    step(again, other, second)
    uninterrupted, optimizer = prepared()
    for batch in (first, second):
        step(uninterrupted, optimizer, batch)
    assert torch.equal(flat(again), flat(uninterrupted))


def test_nothing_of_the_perturbation_is_saved():
    """SAM adds three numbers a parameter to what the base optimizer saves, and no tensor of the size of the weights."""
    model, optimizer = prepared()
    step(model, optimizer, batches(1)[0])
    ours, base = optimizer.state_dict(), optimizer.base.state_dict()
    for i, entry in ours["state"].items():
        extra = {name: value for name, value in entry.items() if name not in base["state"][i]}
        assert entry.keys() >= base["state"][i].keys() == {"momentum_buffer"}
        assert all(name.startswith("flatwise.") and value.numel() == 1 for name, value in extra.items())


@pytest.mark.parametrize("steps", [0, 2])
def test_the_base_goes_on_without_the_method_from_a_state_of_its_own(steps):
    """Also before the first step, and with a parameter that never had a gradient: AdamW takes any entry for a full one."""
    model, optimizer = prepared("adamw")
    unused = torch.nn.Parameter(torch.ones(1))
    model.register_parameter("unused", unused)
    optimizer.add_param_group({"params": [unused]})
    for batch in batches(steps):
        step(model, optimizer, batch)
    plain = torch.optim.AdamW([{"params": [p for p in model.parameters() if p is not unused]}, {"params": [unused]}])
    plain.load_state_dict(optimizer.base.state_dict())
    loss_of(model, batches(1)[0]).backward()
    unused.grad = torch.ones(1)
    plain.step()
    assert all(plain.state[p]["step"] == steps + 1 for p in model.parameters() if p is not unused)
    assert plain.state[unused]["step"] == 1
