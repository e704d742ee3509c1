"""Parameter groups by kind: every trainable parameter in exactly one, with the rho that was asked for."""

import pytest
import torch
from torch import nn

import flatwise as fw


class RootNorm(nn.Module):
    """A normalisation layer of somebody's own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x * self.scale


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2), RootNorm(), nn.LSTM(4, 3))


def names_in(model, groups):
    names = {p: name for name, p in model.named_parameters()}
    return [{names[p] for p in group["params"]} for group in groups]


def test_weights_norms_and_biases():
    model = network()
    groups = fw.parameter_groups(model)
    assert [group.get("rho") for group in groups] == [None, 0.0, 0.0]
    rest, norms, biases = names_in(model, groups)
    assert norms == {"1.weight", "1.bias", "3.scale"}
    assert biases == {"0.bias", "2.in_proj_bias", "2.out_proj.bias", "4.bias_ih_l0", "4.bias_hh_l0"}
    assert rest == {"0.weight", "2.in_proj_weight", "2.out_proj.weight", "4.weight_ih_l0", "4.weight_hh_l0"}


def test_frozen_parameters_are_left_out_and_shared_ones_appear_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    (rest, biases) = names_in(model, fw.parameter_groups(model))
    assert rest == {"0.weight"}
    assert biases == {"0.bias", "1.bias"}


def test_a_kind_that_the_model_does_not_have_gives_no_group():
    assert len(fw.parameter_groups(nn.Linear(3, 3, bias=False))) == 1


def displaced(groups, model):
    """The names of the parameters that move in the displaced pass."""
    opt = fw.SharpnessAware(torch.optim.SGD(groups, lr=0.1), fw.methods.SAM(0.1), model=model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in opt.passes():
        moved = {name for name, w in model.named_parameters() if not torch.equal(w, before[name])}
        p.backward(model(torch.arange(8.0).reshape(2, 4)).square().mean())
    return moved


def small():
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_norms_and_biases_stay_where_they_are_in_one_line():
    model = small()
    assert displaced(fw.parameter_groups(model), model) == {"0.weight", "2.weight"}


def test_only_norms_move_in_one_line():
    """SAM-ON, arXiv 2306.04226."""
    model = small()
    assert displaced(fw.parameter_groups(model, rho=0.0, norms=None), model) == {"1.weight", "1.bias"}


@pytest.mark.parametrize("name", ["rho", "norms", "biases"])
def test_a_rho_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match="must be finite and not negative"):
        fw.parameter_groups(small(), **{name: -0.1})
