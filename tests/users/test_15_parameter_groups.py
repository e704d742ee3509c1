"""Problem 15: several parameter groups, and groups added later.

davda54/sam PR #65; pytorch_optimizer #442, whose 4.1 raises a KeyError in the step after `add_param_group`; sam-pytorch says
"Not supported" to a second group. And mueller-mp/SAM-ON #1: over which groups is the norm taken?
"""

import pytest
import torch
from users.plain import batches, flat, loss_of, network

import flatwise as fw


def groups_of(model, first, second):
    """The two layers of the network as groups, each with a rho of its own or None."""
    kept = lambda rho: {} if rho is None else {"rho": rho}
    return [
        {"params": list(model[0].parameters()), **kept(first)},
        {"params": list(model[2].parameters()), "lr": 0.02, **kept(second)},
    ]


def displacement(first, second):
    """What SAM(rho=0.1) adds to the weights of the two layers, and their gradients."""
    model = network(dtype=torch.float64)
    base = torch.optim.SGD(groups_of(model, first, second), lr=0.1)
    optimizer = fw.SharpnessAware(base, fw.methods.SAM(rho=0.1), model=model)
    (batch,) = batches(1, dtype=torch.float64)
    before = [flat(model[0]), flat(model[2])]
    for p in optimizer.passes():
        if not p.at_weights:
            moved = [flat(model[0]) - before[0], flat(model[2]) - before[1]]
        p.backward(loss_of(model, batch))
        if p.at_weights:
            gradients = [torch.cat([q.grad.reshape(-1) for q in model[i].parameters()]) for i in (0, 2)]
    return moved, gradients


@pytest.mark.parametrize("rhos", [(None, None), (0.05, 0.2), (None, 0.3)])
def test_a_rho_of_its_own_for_each_group_and_one_norm_over_all_that_are_displaced(rhos):
    moved, gradients = displacement(*rhos)
    norm = torch.cat(gradients).norm()
    for found, gradient, rho in zip(moved, gradients, rhos):
        torch.testing.assert_close(found, (0.1 if rho is None else rho) * gradient / norm)


def test_rho_zero_means_not_perturbed_and_not_in_the_norm():
    (still, moved), (_, gradient) = displacement(0.0, None)
    assert not still.any()
    torch.testing.assert_close(moved, 0.1 * gradient / gradient.norm())


def test_all_groups_are_trained_with_their_own_learning_rate():
    model = network()
    optimizer = fw.SharpnessAware(
        torch.optim.SGD(groups_of(model, 0.0, None), lr=0.1), fw.methods.SAM(0.1), model=model
    )
    before = [p.detach().clone() for p in model.parameters()]
    for p in optimizer.passes():
        p.backward(loss_of(model, batches(1)[0]))
    optimizer.step()
    for p, old, lr in zip(model.parameters(), before, [0.1, 0.1, 0.02, 0.02]):
        torch.testing.assert_close(p.detach(), old - lr * p.grad)


def test_normalisation_layers_and_biases_left_where_they_are_in_one_line():
    model = network(norm=True)
    optimizer = fw.SharpnessAware(torch.optim.SGD(fw.parameter_groups(model), lr=0.1), fw.methods.SAM(0.1), model=model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in optimizer.passes():
        if not p.at_weights:
            moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        p.backward(loss_of(model, batches(1)[0]))
    assert moved == {"0.weight", "3.weight"}


def test_a_group_added_while_training_joins_with_its_own_rho():
    """Unfreezing the first layer after some steps."""
    model = network()
    base = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
    optimizer = fw.SharpnessAware(base, fw.methods.SAM(0.1), model=model)
    data = batches(4)

    def step(batch):
        norms = []
        before = flat(model[0])
        for p in optimizer.passes():
            norms.append((flat(model[0]) - before).norm().item())
            p.backward(loss_of(model, batch))
        optimizer.step()
        return norms[-1], not torch.equal(flat(model[0]), before)

    assert step(data[0]) == (0.0, False)
    optimizer.add_param_group({"params": list(model[0].parameters()), "rho": 0.02, "lr": 0.05})
    displaced, trained = step(data[1])
    assert 0 < displaced <= 0.02
    assert trained
    assert [group["lr"] for group in base.param_groups] == [0.1, 0.05]
