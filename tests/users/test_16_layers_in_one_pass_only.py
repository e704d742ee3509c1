"""Problem 16: "KeyError: 'old_p'", None gradients, layers that are used in one pass only.

davda54/sam #51; frozen layers in PyTorch-SM3 #19. With stochastic depth or a mixture of experts a layer may have a gradient in
the first pass and none in the second, and stays where it was displaced to (pytorch-lightning-sam-callback does that today).
"""

import pytest
import torch
from torch import nn
from users.plain import batches, flat, loss_of, momentum_sgd, network, sam_by_hand

import flatwise as fw


class Routed(nn.Module):
    """Two experts, one of which is used in a forward."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([network(), network(dropout=0.1)])
        self.head = nn.Linear(3, 3)
        self.expert = 0

    def forward(self, x):
        return self.head(self.experts[self.expert](x))


@pytest.mark.parametrize("route", [(0, 1), (1, 0)])
def test_whatever_was_displaced_is_put_back_also_without_a_second_gradient(route):
    torch.manual_seed(0)
    model = Routed()
    optimizer = fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(0.1), model=model)
    for batch in batches(5):
        before = flat(model)
        for i, p in enumerate(optimizer.passes()):
            model.expert = route[i]
            p.backward(loss_of(model, batch))
        assert torch.equal(flat(model), before)
        optimizer.step()
        assert not torch.equal(flat(model), before)


def test_stochastic_depth_drops_the_same_layers_in_both_passes():
    """The random numbers of the first pass are replayed, so the two gradients are of one loss."""
    torch.manual_seed(0)
    used = []

    class Block(nn.Linear):
        def forward(self, x):
            keep = bool(torch.rand(()) < 0.5)
            used.append(keep)
            return x + super().forward(x) if keep else x

    model = nn.Sequential(*[Block(6, 6) for _ in range(8)], nn.Linear(6, 3))
    optimizer = fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(0.1), model=model)
    for batch in batches(4):
        used.clear()
        for p in optimizer.passes():
            p.backward(loss_of(model, batch))
        optimizer.step()
        assert used[:8] == used[8:]


def test_frozen_layers_and_layers_without_gradient_are_left_alone():
    model, reference = network(), network()
    for m in (model, reference):
        m[0].bias.requires_grad_(False)
        m.register_parameter("unused", nn.Parameter(torch.ones(4)))
    optimizer = fw.SharpnessAware(momentum_sgd(model.parameters()), fw.methods.SAM(0.1), model=model)
    trained = nn.ParameterList([reference[0].weight, reference[2].weight, reference[2].bias])
    base = momentum_sgd(trained)
    for batch in batches(10):
        for p in optimizer.passes():
            p.backward(loss_of(model, batch))
        assert model.unused.grad is None
        assert model[0].bias.grad is None
        optimizer.step()
        sam_by_hand(trained, base, lambda batch=batch: loss_of(reference, batch), 0.1)
    torch.testing.assert_close(flat(model), flat(reference))
    assert torch.equal(model.unused, torch.ones(4))
